"""Print one line for each step, and the elapsed time while a long step runs."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console

HEARTBEAT_SECONDS: Final = 5.0
SHORT_STEP_SECONDS: Final = 1.0

_terminal = Console(stderr=True, highlight=False)


class Step:
    """A running step. `detail` may be set at any time. It is shown with the elapsed time."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.detail = ""
        self._started = time.monotonic()

    def seconds(self) -> float:
        """Return the seconds since the step began."""
        return time.monotonic() - self._started

    def progress(self) -> str:
        """Return the title, the elapsed time and the detail in one line."""
        return f"{self.title}: {self.seconds():.0f} s" + (f", {self.detail}" if self.detail else "")


def say(sentence: str) -> None:
    """Print one line for the user to standard error."""
    _terminal.print(sentence, markup=False, soft_wrap=True)
    sys.stderr.flush()


@contextmanager
def step(title: str, expected: str = "") -> Iterator[Step]:
    """Announce a step, show its progress, and print its duration.

    Args:
        title: the work, as in "building Kubernetes v1.35.4 from source".
        expected: the usual duration, as in "about 6 minutes, once".
    """
    current = Step(title)
    say(f"{title}: {expected}" if expected else title)
    finished = threading.Event()
    show = _spin if _terminal.is_terminal else _beat
    shown = threading.Thread(target=show, args=(current, finished), daemon=True)
    shown.start()
    try:
        yield current
    finally:
        finished.set()
        shown.join()
    if current.seconds() > SHORT_STEP_SECONDS:
        say(f"{title}: done in {current.seconds():.0f} s")


def _beat(current: Step, finished: threading.Event) -> None:
    while not finished.wait(HEARTBEAT_SECONDS):
        say(current.progress())


def _spin(current: Step, finished: threading.Event) -> None:
    with _terminal.status(current.progress()) as status:
        while not finished.wait(0.2):
            status.update(current.progress())
