"""What `kubectl get` and the status show of messages that are easy to miss."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.support.kubernetes import kubectl
from tests.support.wait import eventually
from tests.support.workqueues import Lab, WorkQueueUnderTest


def columns(workqueue: WorkQueueUnderTest) -> dict[str, str]:
    """The row of a WorkQueue as `kubectl get --output=wide` prints it, by the head of its columns.

    The cell of an unknown count is empty.
    """
    head, row = kubectl(
        "get", "wq", workqueue.name, f"--namespace={workqueue.lab.namespace}", "--output=wide"
    ).splitlines()
    cells = [(found.group().strip(), *found.span()) for found in re.finditer(r"\S+\s*", head)]
    return {name: row[begin:end].strip() for name, begin, end in cells}


@pytest.fixture
def draining(lab: Lab) -> Iterator[WorkQueueUnderTest]:
    """A WorkQueue whose only message is in a worker that a restart has asked to stop."""
    workqueue = lab.workqueue("draining", worker={"timeoutSeconds": 600}).apply().wait_ready()
    workqueue.publish([{"id": "long", "seconds": 500}])
    eventually(lambda: workqueue.status().get("busyReplicas") == 1, 120, "it is in hand")
    kubectl("rollout", "restart", "deployment/draining-worker", f"--namespace={lab.namespace}")
    eventually(
        lambda: any("deletionTimestamp" in pod["metadata"] for pod in workqueue.pods()),
        120,
        "the busy worker gets SIGTERM",
    )
    yield workqueue
    workqueue.delete()
    kubectl(
        "delete",
        "pods",
        "--selector=workqueue.dev/workqueue=draining",
        "--grace-period=1",
        "--wait=false",
        f"--namespace={lab.namespace}",
    )


@pytest.mark.slow
def test_message_in_stopping_worker_is_shown_and_starts_no_worker(
    draining: WorkQueueUnderTest,
) -> None:
    eventually(lambda: draining.replicas() == 0, 120, "no new worker is needed")

    # While a busy machine keeps the worker from answering, the operator does not know that it is busy.
    wanted = {"MESSAGES": "0", "WORKERS": "0", "DESIRED": "0", "BUSY": "1"}
    eventually(lambda: wanted.items() <= columns(draining).items(), 60, "the status says so")
    reason = draining.status()["lastScaleReason"]
    assert reason.endswith("not counting 1 message in workers that are shutting down.")
    eventually(
        lambda: "finish their messages" in draining.condition("WorkersAvailable")["message"],
        60,
        "the condition says so",
    )
    assert draining.replicas() == 0


@pytest.mark.slow
def test_message_awaiting_retry_is_shown_after_its_worker_has_ended(lab: Lab) -> None:
    workqueue = lab.workqueue(
        "retried",
        retry={"maxAttempts": 2, "delaysSeconds": [3600]},
        worker={"handler": {"python": "jobs:moody"}},
    ).apply()
    workqueue.wait_ready().publish([{"id": 1, "failures": 9}])
    eventually(lambda: workqueue.status().get("retrying") == 1, 120, "it waits for its retry")

    eventually(lambda: not workqueue.pods(), 120, "the worker has gone")

    wanted = {"MESSAGES": "0", "RETRYING": "1", "DEAD": "0"}
    eventually(lambda: wanted.items() <= columns(workqueue).items(), 60, "the status says so")
    assert "retried.retry.step.500ms" in workqueue.status()["delayQueues"]
    workqueue.delete()


def test_unknown_counts_are_empty_while_broker_is_unreachable(lab: Lab) -> None:
    lab.secret("nobody-there", host="nobody-there.invalid")
    workqueue = lab.workqueue("blind", connectionSecretRef={"name": "nobody-there"}).apply()
    workqueue.wait_condition("DepthKnown", "False")

    shown = columns(workqueue)

    assert (shown["MESSAGES"], shown["RETRYING"], shown["BUSY"], shown["DEAD"]) == ("", "", "", "")
    workqueue.delete()
