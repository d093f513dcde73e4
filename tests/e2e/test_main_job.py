"""The main job: messages come, workers come, every message is done, workers go."""

from __future__ import annotations

import re

import pytest

from tests.support.kubernetes import kubectl
from tests.support.objects import Object
from tests.support.operators import OperatorRelease
from tests.support.wait import eventually
from tests.support.workqueues import Lab, watching_replicas


def test_workers_scale_from_zero_and_back_with_every_result(lab: Lab, operator: OperatorRelease) -> None:
    workqueue = lab.workqueue("ladder").apply().wait_ready()
    assert workqueue.replicas() == 0
    # A template that never had a Ready pod starts with a canary.
    workqueue.publish([{"id": "first"}])
    assert [result["id"] for result in workqueue.results(1)] == ["first"]
    eventually(lambda: workqueue.replicas() == 0, 120, "the first worker has gone")
    eventually(lambda: lab.consumers("ladder") == 1, 60, "the doorbell is installed")
    wakes = wakes_by_doorbell(operator)
    with watching_replicas(workqueue) as watch:
        workqueue.publish([{"id": number, "seconds": 0.4} for number in range(60)])
        results = workqueue.results(60)
        eventually(lambda: workqueue.replicas() == 0, 120, "the workers have gone")
        eventually(lambda: watch.counts[-1] == 0, 60, "the watch has seen it")
    assert sorted(result["id"] for result in results) == list(range(60)), "each once, none lost"
    assert {result["event"] for result in results} == {"done"}
    assert len({result["pod"] for result in results}) > 1, "the work was shared"
    assert max(watch.counts) == 5
    up = watch.counts[: watch.counts.index(5) + 1]
    assert up == sorted(up), "outward without stepping back"
    assert wakes_by_doorbell(operator) > wakes, "the wake-up does not wait for a poll"
    assert (lab.ready("ladder"), lab.ready("ladder.dead")) == (0, 0)
    assert not [name for name in lab.queues() if name.startswith("ladder.retry.")], (
        "delay queues are made on first need"
    )


def wakes_by_doorbell(operator: OperatorRelease) -> int:
    """The number of wakes by a doorbell, as the leader counts them."""
    [count] = re.findall(r"(?m)^workqueue_wake_seconds_count (\d+)", operator.metrics())
    return int(count)


@pytest.mark.slow
def test_starting_workers_cause_no_further_scale_out(lab: Lab) -> None:
    """Some workers have a message while others do not respond yet. No worker may be counted twice."""
    scaling = {"maxReplicas": 30, "messagesPerReplica": 1, "scaleInDelaySeconds": 0}
    workqueue = lab.workqueue("eight", scaling=scaling).apply().wait_ready()
    workqueue.publish([{"id": "first"}])
    workqueue.results(1)
    eventually(lambda: workqueue.replicas() == 0, 120, "the first worker has gone")
    with watching_replicas(workqueue) as watch:
        workqueue.publish([{"id": number, "seconds": 6} for number in range(8)])
        results = workqueue.results(8)
        eventually(lambda: workqueue.replicas() == 0, 120, "the workers have gone")
        eventually(lambda: watch.counts[-1] == 0, 60, "the watch has seen it")
    assert sorted(result["id"] for result in results) == list(range(8))
    assert max(watch.counts) == 8
    workqueue.delete()


def test_every_retry_and_dead_letter_is_accounted_for(lab: Lab) -> None:
    workqueue = lab.workqueue("moody", worker={"handler": {"python": "jobs:moody"}}).apply().wait_ready()
    workqueue.publish(
        [{"id": number, "failures": number % 3} for number in range(6)]
        + [{"id": 6, "failures": 9}, {"id": 7, "reject": True}, {"id": 8, "die": True}]
    )
    results = {result["id"]: result["attempt"] for result in workqueue.results(7)}
    assert results == {**{number: number % 3 + 1 for number in range(6)}, 8: 1}
    eventually(lambda: lab.ready("moody.dead") == 2, 60, "two messages were given up")
    eventually(lambda: workqueue.status().get("deadLetters") == 2, 120, "the status says so")


@pytest.mark.slow
def test_message_that_kills_its_worker_gets_configured_attempts(lab: Lab) -> None:
    """A limit of 1 allows one redelivery. The ring does not count."""
    changes = {"queue": {"deliveryLimit": 1}, "worker": {"handler": {"python": "jobs:poison"}}}
    workqueue = lab.workqueue("poison", **changes).apply().wait_ready()

    workqueue.publish([{"id": "poison"}])
    eventually(lambda: workqueue.status().get("deadLetters") == 1, 240, "the message was given up")

    assert [result["event"] for result in workqueue.results(2, 1)] == ["started", "started"]
    _, properties, _ = lab.channel.basic_get("poison.dead", auto_ack=True)
    assert properties.headers["x-workqueue-failure-reason"] == "DeliveryLimit"
    workqueue.delete()


def test_killed_and_restarted_operator_does_no_harm(lab: Lab, operator: OperatorRelease) -> None:
    workqueue = lab.workqueue("steady").apply().wait_ready()
    workqueue.publish([{"id": number, "seconds": 0.5} for number in range(40)])
    eventually(lambda: workqueue.status().get("readyReplicas", 0) > 0, 120, "a worker is Ready")
    kill(operator)
    results = workqueue.results(40)
    assert sorted(result["id"] for result in results) == list(range(40))
    assert {result["event"] for result in results} == {"done"}
    eventually(lambda: workqueue.replicas() == 0, 120, "the new operator has brought the workers home")


@pytest.mark.slow
def test_restarted_operator_keeps_time_of_last_scaling(lab: Lab, operator: OperatorRelease) -> None:
    workqueue = lab.workqueue("recall").apply().wait_ready()
    workqueue.publish([{"id": 0}])
    workqueue.results(1)
    idle = eventually(lambda: _says_idle(workqueue.status()), 120, "the status says why the last worker went")
    leader = operator.wait_leader()
    kill(operator)
    operator.wait_leader(other_than=leader)
    workqueue.change(scaling={"maxReplicas": 3}).wait_ready()
    assert _says_idle(workqueue.status()) == idle
    workqueue.delete()


def _says_idle(status: Object) -> tuple[str, str] | None:
    reason = status.get("lastScaleReason", "")
    return (reason, status["lastScaleTime"]) if reason.startswith("Idle") else None


def kill(operator: OperatorRelease) -> None:
    """Kill the operator's pods."""
    pods = [pod["metadata"]["name"] for pod in operator.pods()]
    kubectl(
        "delete",
        "pod",
        *pods,
        "--ignore-not-found",
        "--force",
        "--grace-period=0",
        f"--namespace={operator.namespace}",
    )


@pytest.mark.slow
def test_message_on_idle_queue_scales_out_in_one_step(lab: Lab) -> None:
    """Twenty wakes in a row: each message done, none dead-lettered, each scale-out a single write."""
    workqueue = lab.workqueue("sleeper", scaling={"scaleInDelaySeconds": 0}).apply().wait_ready()
    workqueue.publish([{"id": "canary"}])
    workqueue.results(1)
    eventually(lambda: workqueue.replicas() == 0, 120, "it sleeps")
    with watching_replicas(workqueue) as watch:
        for number in range(20):
            asleep = [0, *[1, 0] * number]
            eventually(lambda counts=asleep: watch.counts == counts, 120, f"it sleeps after {number} wakes")
            workqueue.publish([{"id": number}])
            assert [result["id"] for result in workqueue.results(1)] == [number]
        eventually(lambda: watch.counts == [0, *[1, 0] * 20], 120, "it sleeps after 20 wakes")
    assert lab.ready("sleeper.dead") == 0
    workqueue.delete()
