"""Durations as text for people, and as they type them."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_LARGEST_FIRST: Final = ((86_400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s"))
_MINUTE: Final = 60
_LONGEST_DAYS: Final = 36_500
_SMALLEST_MILLISECONDS: Final = 0.1


def duration(text: str) -> timedelta:
    """Read `90`, `90s`, `10m`, `2h` or `7d`.

    Raises:
        ValueError: the text has another form, or is longer than a hundred years.
    """
    found = re.fullmatch(r"(\d{1,9})([smhd]?)", text)
    if not found:
        raise ValueError(f"{text!r} is not a time such as 90s, 10m, 2h or 7d")
    read = timedelta(seconds=int(found[1]) * _UNITS[found[2]])
    if read.days > _LONGEST_DAYS:
        raise ValueError(f"{text!r} is longer than {_LONGEST_DAYS}d")
    return read


def age(seconds: float) -> str:
    """Format an age in its two largest units, as kubectl does. A time in the future, by another clock, is 0s."""
    left = max(0, int(seconds))
    for size, unit, below, small in _LARGEST_FIRST:
        if left >= size:
            rest = left % size // below
            return f"{left // size}{unit}{f'{rest}{small}' if rest else ''}"
    return f"{left}s"


def span(seconds: float) -> str:
    """Format a measured duration in the unit that people use for it: `0.1 ms`, `250 ms`, `2.35 s`, `4m12s`."""
    milliseconds = seconds * 1000
    if milliseconds < _SMALLEST_MILLISECONDS / 2:
        return f"< {_SMALLEST_MILLISECONDS:g} ms"
    if milliseconds < 10:  # noqa: PLR2004 - one decimal is enough from here
        return f"{milliseconds:.1f} ms"
    if milliseconds < 999.5:  # noqa: PLR2004 - otherwise rounded to 1000 ms
        return f"{milliseconds:.0f} ms"
    if seconds < _MINUTE - 0.05:
        return f"{seconds:.3g} s"
    return age(seconds + 0.5)
