"""Print one line for each step, and the elapsed times while long steps run, alone or side by side."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from rich.console import Console
from rich.status import Status

HEARTBEAT_SECONDS: Final = 5.0
REFRESH_SECONDS: Final = 0.2
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


class _Display:
    """Shows all running steps in one place. Its thread lives while a step runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: list[Step] = []
        self._finished = threading.Event()
        self._thread: threading.Thread | None = None
        self.overall: Callable[[], str] | None = None

    def add(self, step: Step) -> None:
        with self._lock:
            self._running.append(step)
            if self._thread is None:
                self._finished = threading.Event()
                self._thread = threading.Thread(target=self._show, args=(self._finished,), daemon=True)
                self._thread.start()

    def remove(self, step: Step) -> None:
        with self._lock:
            self._running.remove(step)
            if not self._running and self._thread is not None:
                # A terminal can have one live display at a time, so the next thread starts after this one.
                self._finished.set()
                self._thread.join()
                self._thread = None

    def _text(self) -> str:
        steps = [step.progress() for step in tuple(self._running)]
        overall = [self.overall()] if self.overall else []
        return "; ".join([*overall, *steps])

    def _show(self, finished: threading.Event) -> None:
        with ExitStack() as stack:
            status: Status | None = None
            if _terminal.is_terminal:
                status = stack.enter_context(_terminal.status(""))
            while not finished.wait(REFRESH_SECONDS if status else HEARTBEAT_SECONDS):
                if status:
                    status.update(self._text())
                else:
                    say(self._text())


_display: Final = _Display()


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
    _display.add(current)
    try:
        yield current
    finally:
        _display.remove(current)
    if current.seconds() > SHORT_STEP_SECONDS:
        say(f"{title}: done in {current.seconds():.0f} s")


@contextmanager
def overall(text: Callable[[], str]) -> Iterator[None]:
    """Show a text, such as the time left for the whole, before the steps that run in the block."""
    _display.overall = text
    try:
        yield
    finally:
        _display.overall = None
