"""The command line that all consumers share."""

from __future__ import annotations

import sys
from typing import NamedTuple


class Arguments(NamedTuple):
    """What a consumer is to do.

    Attributes:
        kind: `classic` or `quorum`.
        slots: messages in hand at once.
        seconds: that a handler waits.
    """

    url: str
    queue: str
    kind: str
    slots: int
    seconds: float


def read() -> Arguments:
    """The arguments of this process."""
    url, queue, kind, slots, seconds = sys.argv[1:]
    return Arguments(url, queue, kind, int(slots), float(seconds))
