"""Drift: the operator restores what another client changed or deleted."""

from __future__ import annotations

import json

import pytest

from tests.support.kubernetes import kubectl, kubectl_json
from tests.support.wait import eventually
from tests.support.workqueues import Lab


def test_deleted_queue_is_redeclared_and_reported(lab: Lab) -> None:
    workqueue = lab.workqueue("drift").apply().wait_ready()
    lab.channel.queue_delete("drift")
    workqueue.wait_condition("QueueDeclared", "True", "DeclaredAgain")
    workqueue.publish([{"id": 1}])
    assert len(workqueue.results(1)) == 1
    workqueue.delete()


@pytest.mark.slow
def test_cancelled_doorbell_is_reinstalled_without_reporting_loss(lab: Lab) -> None:
    """RabbitMQ cancels consumers when a queue is deleted, and also when its leader moves."""
    workqueue = lab.workqueue("cancelled").apply().wait_ready()
    eventually(lambda: lab.consumers("cancelled") == 1, 60, "the doorbell is installed")
    queue = f'rabbit_misc:r(<<"{lab.vhost}">>, queue, <<"cancelled">>)'
    cancel = (
        f"{{ok, Q}} = rabbit_amqqueue:lookup({queue}), [rabbit_channel:send_command(element(1, C),"
        " {'basic.cancel', element(2, C), true}) || C <- rabbit_amqqueue:consumers(Q)]."
    )
    lab.rabbit.ctl("eval", cancel)
    # The broker still counts the consumer after the forced cancel.
    eventually(lambda: lab.consumers("cancelled") == 2, 60, "a new doorbell is installed")
    assert workqueue.condition("QueueDeclared")["reason"] == "Declared"
    assert "DeclaredAgain" not in workqueue.event_reasons()
    workqueue.delete()


@pytest.mark.parametrize(
    "wipe",
    [
        pytest.param({"status": None}, id="all of it"),
        pytest.param(
            {"status": {"conditions": None, "queueName": None}}, id="its conditions", marks=pytest.mark.slow
        ),
    ],
)
def test_wiped_status_is_rewritten(wipe: dict[str, object], lab: Lab) -> None:
    workqueue = lab.workqueue("wiped").apply().wait_ready()
    before = {one["type"]: one["status"] for one in workqueue.status()["conditions"]}
    where = f"--namespace={lab.namespace}"
    kubectl(
        "patch", "wq", "wiped", "--subresource=status", "--type=merge", f"--patch={json.dumps(wipe)}", where
    )

    def written() -> bool:
        status = workqueue.status()
        return {one["type"]: one["status"] for one in status.get("conditions", ())} == before and bool(
            status.get("queueName")
        )

    eventually(written, 60, "the operator says it again")
    workqueue.delete()


def test_edited_or_deleted_deployment_is_repaired_with_its_count(lab: Lab) -> None:
    workqueue = lab.workqueue("edited", scaling={"minReplicas": 1}).apply()
    workqueue.wait_condition("WorkersAvailable", "True", "WorkersReady")
    where = f"--namespace={lab.namespace}"
    edit = {
        "metadata": {"labels": {"theirs": "kept"}},
        "spec": {"template": {"spec": {"enableServiceLinks": True}}},
    }
    kubectl("patch", "deployment", "edited-worker", where, "--type=merge", f"--patch={json.dumps(edit)}")

    def put_right() -> bool:
        live = workqueue.deployment()
        return live["spec"]["template"]["spec"]["enableServiceLinks"] is False

    eventually(put_right, 60, "our field is restored")
    live = workqueue.deployment()
    assert live["metadata"]["labels"]["theirs"] == "kept"
    assert live["spec"]["replicas"] == 1
    kubectl("delete", "deployment", "edited-worker", where)

    def made_again() -> bool:
        named = "--field-selector=metadata.name=edited-worker"
        found = kubectl_json("get", "deployments", named, where)["items"]
        new = [one for one in found if one["metadata"]["uid"] != live["metadata"]["uid"]]
        return any(one["status"].get("readyReplicas") == 1 for one in new)

    eventually(made_again, 120, "it is made again")
    workqueue.delete()
