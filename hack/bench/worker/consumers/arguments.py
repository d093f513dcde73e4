"""Parse the command line of all consumers."""

from __future__ import annotations

import sys
from typing import NamedTuple


class Arguments(NamedTuple):
    """The arguments of a consumer.

    Attributes:
        kind: `classic` or `quorum`.
        slots: messages that are handled at the same time.
        seconds: how long a handler sleeps.
    """

    url: str
    queue: str
    kind: str
    slots: int
    seconds: float


def read() -> Arguments:
    """Return the arguments of this process."""
    url, queue, kind, slots, seconds = sys.argv[1:]
    return Arguments(url, queue, kind, int(slots), float(seconds))
