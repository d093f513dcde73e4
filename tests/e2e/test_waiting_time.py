"""Waiting time as the target: as many workers as it takes, and a condition when there may not be so many."""

from __future__ import annotations

import pytest

from tests.support.wait import eventually
from tests.support.workqueues import Lab, watching_replicas


@pytest.mark.slow
def test_waiting_time_sets_the_count_and_is_named_when_it_cannot_be_met(lab: Lab) -> None:
    scaling = {"messagesPerReplica": None, "maxWaitSeconds": 20, "maxReplicas": 5, "scaleInDelaySeconds": 0}
    workqueue = lab.workqueue("punctual", scaling=scaling).apply().wait_ready()
    workqueue.publish([{"id": number, "seconds": 1} for number in range(4)])
    workqueue.results(4)
    eventually(lambda: workqueue.replicas() == 0, 120, "the first workers have gone")

    with watching_replicas(workqueue) as watch:
        workqueue.publish([{"id": number, "seconds": 1} for number in range(40)])
        workqueue.results(40)

    assert 1 < max(watch.counts) <= 5, "one worker would take 40 s"
    # Five workers would take the next messages before one of them is late.
    eventually(lambda: workqueue.replicas() == 0, 120, "they have gone")
    workqueue.change(scaling={"maxReplicas": 1})
    workqueue.publish([{"id": number, "seconds": 1} for number in range(60)])
    workqueue.wait_condition("ScalingActive", "True", "WaitNotMet")
    workqueue.delete()
