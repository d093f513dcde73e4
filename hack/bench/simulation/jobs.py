"""Generate the publish time and the handler time of each message. All autoscalers get the same seeded jobs."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HOUR: Final = 3600.0
COMMITS: Final = Path(__file__).with_name("commits.txt")


@dataclass(frozen=True, slots=True)
class Job:
    """One message.

    Attributes:
        published: seconds from the start of the simulation.
        seconds: the running time of its handler.
    """

    published: float
    seconds: float


@dataclass(frozen=True)
class JobMix:
    """The messages of one queue, and its scaling settings.

    Attributes:
        jobs: ordered by publish time.
        seconds: the length of the simulation. The last jobs come before its end.
        messages_per_replica: the target of all autoscalers.
        max_wait_seconds: the target of the operator, where it has a waiting time as its target.
    """

    name: str
    what: str
    jobs: tuple[Job, ...]
    seconds: float
    messages_per_replica: int
    max_replicas: int
    max_wait_seconds: int = 30


def sparse() -> JobMix:
    """Return rare single messages."""
    chance = random.Random(1)
    jobs = tuple(Job(at, 2.0) for at in _poisson(chance, 4 * HOUR, lambda _: 1 / 600))
    return JobMix("sparse", "one message every 10 minutes on average, 2 s each", jobs, 5 * HOUR, 10, 10, 10)


def bursts() -> JobMix:
    """Return bursts with pauses between them."""
    chance = random.Random(2)
    starts = _poisson(chance, 4 * HOUR, lambda _: 1 / 900)
    jobs = tuple(Job(at + 0.002 * number, 2.0) for at in starts for number in range(200))
    what = "200 messages at once, every 15 minutes on average, 2 s each"
    return JobMix("bursts", what, _in_order(jobs), 5 * HOUR, 10, 20, 30)


def steady() -> JobMix:
    """Return a constant load, for which a changing replica count is a waste."""
    chance = random.Random(3)
    jobs = tuple(Job(at, chance.expovariate(1.0)) for at in _poisson(chance, HOUR, lambda _: 5.0))
    return JobMix(
        "steady", "5 messages per second for an hour, 1 s each on average", jobs, 1.5 * HOUR, 2, 20, 10
    )


def diurnal() -> JobMix:
    """Return the load of a day and a night."""
    chance = random.Random(4)

    def rate(now: float) -> float:
        return max(0.0, 1.5 * math.sin(math.pi * (now / HOUR - 6) / 12))  # from 6 h to 18 h

    jobs = tuple(
        Job(at, chance.lognormvariate(0.0, 0.8)) for at in _poisson(chance, 24 * HOUR, rate, most=1.5)
    )
    what = "a day: up to 1.5 messages per second at noon, none at night; log-normal, 1.4 s each on average"
    return JobMix("diurnal", what, jobs, 25 * HOUR, 2, 20, 10)


def heavy() -> JobMix:
    """Return mostly short and a few very long handlers."""
    chance = random.Random(5)
    jobs = tuple(
        Job(at, min(2.0 * chance.paretovariate(1.2), HOUR))
        for at in _poisson(chance, 4 * HOUR, lambda _: 0.3)
    )
    what = "0.3 messages per second; Pareto, half of them below 4 s, the longest an hour at most"
    return JobMix("heavy tail", what, jobs, 6 * HOUR, 2, 30, 60)


def recorded() -> JobMix:
    """Return one week of pushes to a busy project. Each push starts 20 jobs of continuous integration."""
    chance = random.Random(6)
    commits = [float(line) for line in COMMITS.read_text().splitlines() if not line.startswith("#")]
    jobs = tuple(Job(at, chance.lognormvariate(3.5, 0.8)) for at in commits for _ in range(20))
    what = "133 commits of a real week, 20 jobs each; log-normal, 46 s each on average"
    return JobMix("recorded", what, _in_order(jobs), 7 * 24 * HOUR + HOUR, 1, 40, 180)


WORKLOADS: Final[tuple[Callable[[], JobMix], ...]] = (sparse, bursts, steady, diurnal, heavy, recorded)


def _poisson(
    chance: random.Random, end: float, rate: Callable[[float], float], most: float | None = None
) -> Iterator[float]:
    """Return the times of a Poisson process whose rate (per second) may change but never exceeds `most`."""
    highest = rate(0.0) if most is None else most
    now = 0.0
    while (now := now + chance.expovariate(highest)) < end:
        if chance.random() * highest < rate(now):
            yield now


def _in_order(jobs: tuple[Job, ...]) -> tuple[Job, ...]:
    return tuple(sorted(jobs, key=lambda job: job.published))
