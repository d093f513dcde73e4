"""Print a line for each step, and a table that gets a row for each change while workers handle messages.

Without a terminal, the rows of the table are plain lines: one for each change, at most one per second.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from hack.demo.watch import Workers

SECONDS_BETWEEN_ROWS: Final = 1.0
PLAIN_WIDTH: Final = 160
WIDE: Final = 76
BAR: Final = 24
LINES_AROUND_ROWS: Final = 6
BUSY, READY, STARTING = "■", "□", "·"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table.

    Attributes:
        waiting: messages in the queue, or None while the count is unknown.
        done: documents with a result.
    """

    waiting: int | None
    workers: Workers
    done: int


class Step:
    """A running step. `title` may change until it ends."""

    def __init__(self, title: str) -> None:
        self.title = title


class Screen:
    """Writes to standard output."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        if not self.console.is_terminal:
            self.console.width = PLAIN_WIDTH

    def say(self, text: str = "", style: str = "", *, verbatim: bool = False) -> None:
        """Print one line. A narrow terminal wraps it between words, unless it is `verbatim`, for copying."""
        self.console.print(
            text, style=style, markup=False, soft_wrap=verbatim or not self.console.is_terminal
        )

    def figures(self, rows: Iterable[tuple[str, str, str]]) -> None:
        """Print the name, value and remark of each figure."""
        table = Table(box=None, padding=(0, 2), show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, justify="right", style="bold")
        table.add_column()
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Show a running step, and its duration at the end."""
        step, started = Step(title), time.monotonic()
        try:
            if self.console.is_terminal:
                with self.console.status(title):
                    yield step
            else:
                yield step
        except BaseException:
            self.say(f"{time.monotonic() - started:6.1f} s  failed: {step.title}", style="red")
            raise
        self.say(f"{time.monotonic() - started:6.1f} s  {step.title}")


class Board:
    """The live table, inside a `with` block.

    Args:
        total: the number of documents.
    """

    def __init__(self, screen: Screen, total: int) -> None:
        self._console = screen.console
        self._screen = screen
        self._total = total
        self._started = self._written = time.monotonic()
        self._rows: list[tuple[float, Row]] = []
        self._shown: Row | None = None
        self._live: Live | None = None

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=5, vertical_overflow="crop")
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown is not None:
            self._keep(self._shown)
        if self._live is not None:
            self._live.vertical_overflow = "visible"
            self._live.update(self._table(self._rows))
            self._live.stop()

    def show(self, row: Row) -> None:
        """Show the current row. It stays in the table if it differs from the last row and 1 s has passed."""
        now = time.monotonic()
        self._shown = row
        if not self._rows or now - self._written >= SECONDS_BETWEEN_ROWS:
            self._keep(row)
        if self._live is not None:
            room = max(self._console.height - LINES_AROUND_ROWS, 1)
            rows = self._rows if self._is_last(row) else [*self._rows, (now - self._started, row)]
            self._live.update(self._table(rows[-room:]))

    def _keep(self, row: Row) -> None:
        if self._is_last(row):
            return
        self._written = time.monotonic()
        self._rows.append((self._written - self._started, row))
        if self._live is None:
            self._screen.say(self._line(*self._rows[-1]))

    def _is_last(self, row: Row) -> bool:
        """Return whether the row would look like the last row that was kept."""
        return bool(self._rows) and self._line(0, self._rows[-1][1]) == self._line(0, row)

    def _line(self, elapsed: float, row: Row) -> str:
        workers = row.workers
        return (
            f"{elapsed:6.1f} s  waiting {_count(row.waiting):>4}  workers {workers.ready}/{workers.desired}"
            f"  busy {workers.busy}  done {row.done:>4}/{self._total}"
        )

    def _table(self, rows: list[tuple[float, Row]]) -> Table:
        pictures = self._console.width >= WIDE and not self._console.options.ascii_only
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("elapsed", justify="right", no_wrap=True)
        table.add_column("waiting", justify="right", no_wrap=True)
        if pictures:
            table.add_column("", width=BAR, no_wrap=True)
        table.add_column("workers", justify="right", no_wrap=True)
        if pictures:
            table.add_column("", no_wrap=True)
        table.add_column("busy", justify="right", no_wrap=True)
        table.add_column("done", justify="right", no_wrap=True)
        for elapsed, row in rows:
            workers = row.workers
            cells = [f"{elapsed:.1f} s", _count(row.waiting), f"{workers.ready}/{workers.desired}"]
            if pictures:
                cells.insert(2, f"[yellow]{bar(row.waiting or 0, self._total)}[/]")
                cells.append(f"[green]{picture(workers)}[/]")
            table.add_row(*cells, str(workers.busy), f"{row.done}/{self._total}")
        return table


def bar(count: int, total: int, width: int = BAR) -> str:
    """Return a bar of at most `width` characters, and of at least one unless the count is 0."""
    return "█" * min(width, -(-count * width // total))


def picture(workers: Workers) -> str:
    """Return one sign for each replica: busy, Ready, or starting (at the end: stopping)."""
    busy = min(workers.busy, workers.ready)
    starting = max(workers.desired, workers.existing) - workers.ready
    return BUSY * busy + READY * (workers.ready - busy) + STARTING * max(starting, 0)


def _count(waiting: int | None) -> str:
    return "?" if waiting is None else str(waiting)
