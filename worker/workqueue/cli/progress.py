"""Progress of a command on a terminal: with rich if it is installed, else one plain line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

Update = Callable[[int], None]
"""Called with the number done so far, as often as the command likes."""

_EVERY_SECONDS: Final = 0.1


@contextmanager
def progress(label: str, total: int | None) -> Iterator[Update]:
    """Show progress while the context lasts.

    Args:
        total: the number expected; None if unknown.
    """
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        with _plain(label, total) as update:
            yield update
        return
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield _seldom(lambda done: bar.update(task, completed=done))


@contextmanager
def _plain(label: str, total: int | None) -> Iterator[Update]:
    def show(done: int) -> None:
        sys.stderr.write(f"\r{label} {done}{'' if total is None else f'/{total}'}")
        sys.stderr.flush()

    try:
        yield _seldom(show)
    finally:
        sys.stderr.write("\r\x1b[K")


def _seldom(show: Update) -> Update:
    shown_at = 0.0

    def update(done: int) -> None:
        nonlocal shown_at
        now = time.monotonic()
        if now - shown_at >= _EVERY_SECONDS:
            shown_at = now
            show(done)

    return update
