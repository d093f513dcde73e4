"""Messages are cancelled by their ids, in pods that the operator scales."""

from __future__ import annotations

import time

import pytest

from tests.support.operators import OperatorRelease
from tests.support.wait import eventually
from tests.support.workqueues import Lab
from workqueue import Publisher
from workqueue.contract import headers

TOLD_SECONDS = 1.0


@pytest.mark.slow
def test_cancel_tells_a_running_handler_and_drops_a_waiting_message(
    lab: Lab, operator: OperatorRelease
) -> None:
    scaling = {"maxReplicas": 1, "scaleInDelaySeconds": 0}
    workqueue = lab.workqueue("unwanted", scaling=scaling).apply().wait_ready()
    with Publisher(lab.rabbit.url(lab.vhost, lab.vhost, lab.password)) as publisher:
        publisher.publish(
            {"id": "running", "seconds": 60, "announced": True}, queue="unwanted", message_id="running"
        )
        [started] = workqueue.results(1)
        for name in ("waiting", "other"):
            publisher.publish({"id": name}, queue="unwanted", message_id=name)

        publisher.cancel("running", "waiting", queue="unwanted")
        cancelled_at = time.time()

    results = {result["id"]: result for result in workqueue.results(2)}
    assert started["event"] == "started"
    assert {name: result["event"] for name, result in results.items()} == {
        "running": "interrupted",
        "other": "done",
    }
    assert results["running"]["at"] - cancelled_at < TOLD_SECONDS
    eventually(lambda: lab.ready("unwanted.dead") == 2, 30, "both are dead letters")
    assert cancelled(lab) == {"running", "waiting"}
    workqueue.delete()


def cancelled(lab: Lab) -> set[str]:
    """The ids of dead letters with the reason of a cancel."""
    found = set()
    while (got := lab.channel.basic_get("unwanted.dead", auto_ack=True))[0] is not None:
        properties = got[1]
        if properties.headers[headers.FAILURE_REASON] == "Cancelled":
            found.add(properties.message_id)
    return found
