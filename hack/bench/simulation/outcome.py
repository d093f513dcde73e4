"""Sum up the raw outcome of a simulation in one line of a table."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from hack.bench.simulation.jobs import HOUR, JobMix
from hack.bench.simulation.world import Autoscaler, Outcome, World


@dataclass(frozen=True)
class Summary:
    """One line of a table. Times are in seconds.

    Attributes:
        wait_p50, wait_p99, wait_max: from the publish to the handler.
        age_mean: the age of the oldest waiting message, averaged over the time in which messages wait.
        replica_hours: the lifetime of all pods.
        utilization: the share of it that handlers used.
        writes: the changes of the replica count.
        interrupted: the terminated busy pods.
        repeated: the killed and restarted jobs.
    """

    wait_p50: float
    wait_p99: float
    wait_max: float
    age_mean: float
    replica_hours: float
    utilization: float
    writes: int
    interrupted: int
    repeated: int


def simulate(workload: JobMix, autoscaler: Autoscaler) -> tuple[Summary, Outcome]:
    """Run one autoscaler on one workload."""
    outcome = World(workload, autoscaler).run()
    return summary(workload, outcome), outcome


def summary(workload: JobMix, outcome: Outcome) -> Summary:
    """Return the summary of an outcome."""
    waits = sorted(outcome.waits)
    needed = sum(job.seconds for job in workload.jobs)
    return Summary(
        wait_p50=waits[len(waits) // 2],
        wait_p99=waits[len(waits) * 99 // 100],
        wait_max=waits[-1],
        age_mean=_mean_age(outcome.oldest),
        replica_hours=outcome.replica_seconds / HOUR,
        utilization=needed / outcome.replica_seconds,
        writes=outcome.writes,
        interrupted=outcome.interrupted,
        repeated=outcome.repeated,
    )


def _mean_age(oldest: list[tuple[float, float | None]]) -> float:
    """Return the mean age. Between two changes, an age grows with the clock."""
    area = seconds = 0.0
    for (begun, published), (ended, _) in pairwise(oldest):
        if published is not None:
            seconds += ended - begun
            area += (ended - begun) * ((begun + ended) / 2 - published)
    return area / seconds if seconds else 0.0
