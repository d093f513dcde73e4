"""Limits across all workers, in pods that the operator scales, with a leader that is killed."""

from __future__ import annotations

import pytest

from tests.support.kubernetes import kubectl
from tests.support.objects import Object
from tests.support.operators import OperatorRelease
from tests.support.wait import eventually
from tests.support.workqueues import Lab

STARTED_LATE = 3.0
"""Seconds from its token until a handler starts, at most: the machine is busy."""


def kill_leader(operator: OperatorRelease) -> None:
    """Kill the leader's pod."""
    where = f"--namespace={operator.namespace}"
    kubectl("delete", "pod", operator.wait_leader(), where, "--grace-period=0", "--force")


def most_at_once(results: list[Object]) -> int:
    """Return how many handlers ran at the same time at most."""
    changes = sorted(
        [(result["begun"], 1) for result in results] + [(result["ended"], -1) for result in results]
    )
    running = most = 0
    for _, change in changes:
        running += change
        most = max(most, running)
    return most


@pytest.mark.slow
def test_no_more_handlers_run_than_the_limit_allows(lab: Lab, operator: OperatorRelease) -> None:
    scaling = {"messagesPerReplica": 1, "maxReplicas": 6, "scaleInDelaySeconds": 0}
    workqueue = lab.workqueue("narrow", scaling=scaling, limits={"concurrency": 2}).apply().wait_ready()

    workqueue.publish([{"id": number, "seconds": 4} for number in range(12)])
    workqueue.wait_condition("ScalingActive", "True", "AtConcurrencyLimit")
    kill_leader(operator)
    results = workqueue.results(12)

    assert sorted(result["id"] for result in results) == list(range(12))
    assert most_at_once(results) == 2
    workqueue.delete()


@pytest.mark.slow
def test_no_more_handlers_start_than_the_rate_allows(lab: Lab, operator: OperatorRelease) -> None:
    scaling = {"messagesPerReplica": 1, "maxReplicas": 6, "scaleInDelaySeconds": 0}
    limits = {"ratePerSecond": 2, "burst": 2}
    workqueue = lab.workqueue("paced", scaling=scaling, limits=limits).apply().wait_ready()
    workqueue.publish([{"id": "first", "seconds": 1}])
    workqueue.results(1)  # the cap on the count needs a handler time

    workqueue.publish([{"id": number, "seconds": 1} for number in range(40)])
    workqueue.wait_condition("ScalingActive", "True", "AtRateLimit")
    kill_leader(operator)
    begun = sorted(result["begun"] for result in workqueue.results(40))

    # Two starts are saved, and one token is in progress, also beside a change of leader. Twice the rate would be 30
    # starts within 15 s.
    for first, last in zip(begun, begun[30:], strict=False):
        assert 2 * (last - first + STARTED_LATE) + 3 > 30
    eventually(lambda: workqueue.replicas() == 0, 120, "the workers have gone")
    workqueue.delete()
