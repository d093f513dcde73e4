"""Plan pods with full knowledge: the measure for `maxWaitSeconds`.

The oracle knows every message and its handler time in advance. It starts all of them in time, as far as maxReplicas
allows, and pays for the start of a pod, its handlers, and its idle time. It plans greedily, so the optimum may be a
little cheaper, but never less than the time in handlers.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass

from hack.bench.simulation.jobs import JobMix
from hack.bench.simulation.world import START_SECONDS


@dataclass(frozen=True)
class Plan:
    """A plan.

    Attributes:
        replica_seconds: the lifetime of all pods.
        late: messages that start too late, since maxReplicas is too low for them.
    """

    replica_seconds: float
    late: int


def plan(workload: JobMix, limit: float) -> Plan:
    """Plan the pods of a workload.

    Args:
        limit: the longest wait, in seconds.
    """
    plans = (_plan(workload, limit, start_late=late) for late in (False, True))
    return min(plans, key=lambda one: (one.late, one.replica_seconds))


def _plan(workload: JobMix, limit: float, *, start_late: bool) -> Plan:
    seconds, late = 0.0, 0
    free: list[float] = []
    """When each pod has finished its messages, in order."""
    for job in workload.jobs:
        due = job.published + limit
        # A pod that would be idle for longer than a new one takes to start is removed.
        del free[: bisect_left(free, job.published - START_SECONDS)]
        # The pod that is free last, but in time, so that the others can be removed early.
        chosen = bisect_right(free, due) - 1
        if chosen >= 0:
            finished = free.pop(chosen)
            start = max(finished, job.published)
            seconds += start - finished
        elif len(free) < workload.max_replicas:
            start = job.published + START_SECONDS
            start = max(start, due) if start_late else start
            seconds += START_SECONDS
        else:
            start = free.pop(0)
        late += start > due
        seconds += job.seconds
        insort(free, start + job.seconds)
    return Plan(seconds, late)
