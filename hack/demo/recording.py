"""Record the rows of a run, for the moving picture of animation.py."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Final

from hack.demo.board import Row
from hack.demo.watch import Workers

COLUMNS: Final = ("seconds", "waiting", "desired", "existing", "ready", "busy", "done")


@dataclass(frozen=True, slots=True)
class Sample:
    """One row, and when it was seen, in seconds since the first row."""

    seconds: float
    row: Row


@dataclass(frozen=True, slots=True)
class Recording:
    """A run from an idle queue to an idle queue.

    Attributes:
        what: the messages, in words, such as `400 documents`.
    """

    what: str
    samples: Sequence[Sample]


class Recorder:
    """Keeps each row that differs from the row before it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started: float | None = None
        self.samples: list[Sample] = []

    def note(self, row: Row) -> None:
        """Keep the row."""
        if self._started is None:
            self._started = self._clock()
        if not self.samples or self.samples[-1].row != row:
            self.samples.append(Sample(round(self._clock() - self._started, 2), row))


def write(file: Path, recording: Recording) -> None:
    """Write the recording as JSON, one sample on each line."""
    lines = ",\n".join(f"  {json.dumps(_cells(sample))}" for sample in recording.samples)
    what, columns = json.dumps(recording.what), json.dumps(COLUMNS)
    file.write_text(f'{{"what": {what},\n "columns": {columns},\n "samples": [\n{lines}\n]}}\n')


def read(file: Path) -> Recording:
    """Return the recording of a file that `write` wrote."""
    found = json.loads(file.read_text())
    return Recording(
        found["what"],
        [
            Sample(seconds, Row(waiting, Workers(*workers), done))
            for seconds, waiting, *workers, done in found["samples"]
        ],
    )


def _cells(sample: Sample) -> list[float | None]:
    row = sample.row
    return [sample.seconds, row.waiting, *astuple(row.workers), row.done]
