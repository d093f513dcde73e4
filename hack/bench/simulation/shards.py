"""What very many queues ask of several operators: unit costs times numbers, and a simulation of their wakes.

Place in the flow: beside the others; the unit costs come from the operator's own benchmark.

An operator is one process with one event loop, so that its wakes wait for each other: the simulation is a queue
with one server for each operator. What a wake takes beside processor time (RabbitMQ, the API server) is the same
with one operator and with many, and is added as it was measured.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hack.bench.report import read_rows

QUEUES: Final = 100_000
HEADROOM: Final = 0.5
"""The part of a processor that wakes may use: the rest is for what comes at once."""

MEMORY_MIB: Final = 1_024
RESTART_SECONDS: Final = 30.0
"""What an operator may need, and for how long a standby that takes over may leave idle queues unwatched."""


@dataclass(frozen=True)
class UnitCosts:
    """What one operator costs, as measured.

    Attributes:
        base_mib, queue_kib: memory of the process, and of each WorkQueue more.
        base_cores, queue_cores: processor time at rest.
        restart_seconds: for each WorkQueue, from the start of the process to its bell.
        wake_seconds: from publishing to the new count, median, alone.
        wake_processor_seconds: of the operator, for one wake and the scale-in after it.
    """

    base_mib: float
    queue_kib: float
    base_cores: float
    queue_cores: float
    restart_seconds: float
    wake_seconds: float
    wake_processor_seconds: float


@dataclass(frozen=True)
class ShardPlan:
    """What each of so many operators has to bear. Times are in seconds."""

    operators: int
    queues: int
    memory_mib: float
    cores: float
    restart_seconds: float
    wake_p50: float
    wake_p99: float

    @property
    def fits(self) -> bool:
        """Whether an operator stays within what it may need."""
        enough = self.memory_mib <= MEMORY_MIB and self.restart_seconds <= RESTART_SECONDS
        return enough and self.cores <= HEADROOM


def from_results(file: Path) -> UnitCosts | None:
    """Unit costs from the results of the operator's benchmark; None where it has not measured two sizes."""
    if not file.exists():
        return None
    rows = read_rows(file)
    rest = _by_queues(rows, "at rest, ")
    wake = _by_queues(rows, "wake, ")
    restart = _by_queues(rows, "operator restarted with ")
    if len(rest) < 2 or not wake or not restart:
        return None
    few, many = min(rest), max(rest)
    more = many - few
    raw_few, raw_many = rest[few]["raw"], rest[many]["raw"]
    most, least = max(restart), min(restart)
    slope = (_restart(restart[most]) - _restart(restart[least])) / max(1, most - least)
    waked = wake[max(wake)]["raw"]
    return UnitCosts(
        base_mib=raw_few["resident_mib"],
        queue_kib=(raw_many["resident_mib"] - raw_few["resident_mib"]) * 1024 / more,
        base_cores=raw_few["cores"],
        queue_cores=max(0.0, raw_many["cores"] - raw_few["cores"]) / more,
        restart_seconds=slope,
        wake_seconds=sorted(waked["seconds"])[len(waked["seconds"]) // 2],
        wake_processor_seconds=waked["processor_seconds_each"],
    )


def plan(costs: UnitCosts, operators: int, wakes_per_second: float, queues: int = QUEUES) -> ShardPlan:
    """What each operator bears when queues and wakes are shared out evenly.

    Args:
        wakes_per_second: of all queues together.
    """
    each = math.ceil(queues / operators)
    rate = wakes_per_second / operators
    waits = wake_waits(rate, costs.wake_processor_seconds)
    return ShardPlan(
        operators=operators,
        queues=each,
        memory_mib=costs.base_mib + costs.queue_kib * each / 1024,
        cores=costs.base_cores + costs.queue_cores * each + rate * costs.wake_processor_seconds,
        restart_seconds=costs.restart_seconds * each,
        wake_p50=costs.wake_seconds + waits[len(waits) // 2],
        wake_p99=costs.wake_seconds + waits[len(waits) * 99 // 100],
    )


def wake_waits(rate: float, seconds: float, count: int = 20_000) -> list[float]:
    """How long each of many wakes waits for those before it, sorted.

    Args:
        rate: wakes a second, at random times.
        seconds: that the operator is busy with each.
    """
    if rate * seconds >= 1:
        return [math.inf]
    chance = random.Random(0)
    now = free = 0.0
    waits = []
    for _ in range(count):
        now += chance.expovariate(rate)
        waits.append(max(0.0, free - now))
        free = max(free, now) + seconds
    return sorted(waits)


def _by_queues(rows: list[dict[str, Any]], beginning: str) -> dict[int, dict[str, Any]]:
    """The rows of a figure by the number of WorkQueues."""
    found = {}
    for row in rows:
        if row["figure"].startswith(beginning):
            number = row["figure"].removeprefix(beginning).split(" ", 1)[0]
            found[int(number.replace(",", ""))] = row
    return found


def _restart(row: dict[str, Any]) -> float:
    hung: float = row["raw"]["hung"]
    process: float = row["raw"]["process"]
    return hung - process
