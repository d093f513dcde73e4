"""Run the sequences of a seed; shrink one that fails."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.generated.sequences import Step, check, sequences
from tests.generated.stage import Stage

BATCH: Final = 20
"""Sequences of one seed: few, so that one is replayed in a minute or two."""


@dataclass
class Batch:
    """What the sequences of one seed did.

    Attributes:
        number: the seed.
        tried: sequences, with the attempts to shrink a failure.
        failure: what does not hold, with the shortest sequence that shows it; empty if all holds.
    """

    number: int
    tried: int = 0
    steps: int = 0
    refused: int = 0
    seconds: float = 0.0
    failure: str = ""

    def __str__(self) -> str:
        counted = f"{self.tried} sequences, {self.steps} steps, {self.refused} of them refused"
        result = f"failed\n{self.failure}" if self.failure else "passed"
        return f"seed {self.number}: {counted}, {self.seconds:.0f} s, {result}"


def run(place: Stage, number: int) -> Batch:
    """Run all sequences of a seed."""
    batch, begun = Batch(number), time.monotonic()

    @seed(number)
    @settings(
        max_examples=BATCH,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(sequences())
    def each(steps: Sequence[Step]) -> None:
        batch.tried += 1
        batch.steps += len(steps)
        batch.refused += len(check(place, steps).refused)

    try:
        each()
    except Exception as error:  # noqa: BLE001 - it is reported with its seed
        batch.failure = "\n".join([str(error), *getattr(error, "__notes__", ())])
    batch.seconds = time.monotonic() - begun
    return batch
