"""Messages are cancelled by their ids, in pods that the operator scales."""

from __future__ import annotations

import pytest

from tests.support.operators import OperatorRelease
from tests.support.wait import eventually
from tests.support.workqueues import Lab
from workqueue import Publisher
from workqueue.contract import headers


@pytest.mark.slow
def test_cancel_tells_a_running_handler_and_drops_a_waiting_message(
    lab: Lab, operator: OperatorRelease
) -> None:
    scaling = {"maxReplicas": 1, "scaleInDelaySeconds": 0}
    worker = {"timeoutSeconds": 900}
    workqueue = lab.workqueue("unwanted", scaling=scaling, worker=worker).apply().wait_ready()
    with Publisher(lab.rabbit.url(lab.vhost, lab.vhost, lab.password)) as publisher:
        publisher.publish(
            {"id": "running", "seconds": 600, "announced": True}, queue="unwanted", message_id="running"
        )
        [started] = workqueue.results(1)
        for name in ("waiting", "other"):
            publisher.publish({"id": name}, queue="unwanted", message_id=name)

        # In this order: the end of the handler makes room for the next message.
        publisher.cancel("waiting", "running", queue="unwanted")

    results = {result["id"]: result for result in workqueue.results(2)}
    assert started["event"] == "started"
    assert {name: result["event"] for name, result in results.items()} == {
        "running": "interrupted",
        "other": "done",
    }
    eventually(lambda: lab.ready("unwanted.dead") == 2, 60, "both are dead letters")
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
