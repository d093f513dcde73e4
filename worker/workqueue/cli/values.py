"""Types of command-line options.

Each function is an argparse `type`: it raises ArgumentTypeError, which says what is expected.
"""

from __future__ import annotations

import argparse
from typing import Final

LONGEST_TIMEOUT_SECONDS: Final = 86_400


def count(text: str) -> int:
    """Read a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def timeout(text: str) -> float:
    """Read a number of seconds above 0, up to a day."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= LONGEST_TIMEOUT_SECONDS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of seconds above 0, up to {LONGEST_TIMEOUT_SECONDS}"
        )
    return seconds
