"""Compute the load of very many queues on several operators, from measured unit costs.

An operator is one process with one event loop, so it handles wakes one after another. The simulation is a queue with
one server for each operator. The other parts of a wake (RabbitMQ, the API server) take as long with one operator as
with many. Their measured time is added.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hack.bench.report import read

QUEUES: Final = 100_000
HEADROOM: Final = 0.5
"""The share of a core that an operator may use. The rest is for bursts."""

MEMORY_MIB: Final = 1_024
RESTART_SECONDS: Final = 30.0
"""The longest time without doorbells during a takeover by a standby."""


@dataclass(frozen=True)
class UnitCosts:
    """The measured costs of one operator.

    Attributes:
        base_mib, queue_kib: memory of the process, and additional memory for each WorkQueue.
        base_cores, queue_cores: processor time at rest.
        restart_seconds: for each WorkQueue, from the start of the process to its doorbell.
        wake_seconds: the median time from the publish to the write of the count, without other wakes.
        wake_processor_seconds: processor time of the operator for one wake and the scale-in after it.
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
    """The load of each operator. Times are in seconds."""

    operators: int
    queues: int
    memory_mib: float
    cores: float
    restart_seconds: float
    wake_p50: float
    wake_p99: float

    @property
    def fits(self) -> bool:
        """Return whether an operator stays within the limits."""
        enough = self.memory_mib <= MEMORY_MIB and self.restart_seconds <= RESTART_SECONDS
        return enough and self.cores <= HEADROOM


def from_results(file: Path) -> UnitCosts | None:
    """Return the unit costs from the operator's benchmark, or None if it has not measured two sizes."""
    if not file.exists():
        return None
    rows = read(file)["rows"]
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
    raw_wake = wake[max(wake)]["raw"]
    return UnitCosts(
        base_mib=raw_few["resident_mib"],
        queue_kib=(raw_many["resident_mib"] - raw_few["resident_mib"]) * 1024 / more,
        base_cores=raw_few["cores"],
        queue_cores=max(0.0, raw_many["cores"] - raw_few["cores"]) / more,
        restart_seconds=slope,
        wake_seconds=sorted(raw_wake["seconds"])[len(raw_wake["seconds"]) // 2],
        wake_processor_seconds=raw_wake["processor_seconds_each"],
    )


def plan(costs: UnitCosts, operators: int, wakes_per_second: float, queues: int = QUEUES) -> ShardPlan:
    """Return the load of each operator if they share queues and wakes evenly.

    Args:
        wakes_per_second: over all queues.
    """
    each = math.ceil(queues / operators)
    rate = wakes_per_second / operators
    at_rest = costs.base_cores + costs.queue_cores * each
    waits = wake_waits(rate, costs.wake_processor_seconds, at_rest)
    return ShardPlan(
        operators=operators,
        queues=each,
        memory_mib=costs.base_mib + costs.queue_kib * each / 1024,
        cores=at_rest + rate * costs.wake_processor_seconds,
        restart_seconds=costs.restart_seconds * each,
        wake_p50=costs.wake_seconds + waits[len(waits) // 2],
        wake_p99=costs.wake_seconds + waits[len(waits) * 99 // 100],
    )


def wake_waits(rate: float, seconds: float, at_rest: float = 0.0, count: int = 20_000) -> list[float]:
    """Return how long each wake waits for earlier wakes, sorted, in seconds.

    Args:
        rate: wakes per second, at random times.
        seconds: the processor time of one wake.
        at_rest: the share of the core that the operator uses without wakes.
    """
    if rate * seconds + at_rest >= 1:
        return [math.inf]
    seconds /= 1 - at_rest
    chance = random.Random(0)
    now = free = 0.0
    waits = []
    for _ in range(count):
        now += chance.expovariate(rate)
        waits.append(max(0.0, free - now))
        free = max(free, now) + seconds
    return sorted(waits)


def _by_queues(rows: list[dict[str, Any]], beginning: str) -> dict[int, dict[str, Any]]:
    """Return the rows of a figure by the number of WorkQueues."""
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
