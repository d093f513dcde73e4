"""Counts that the user chooses: pins, suspension, schedules, a single active consumer."""

from __future__ import annotations

import pytest

from tests.support.kubernetes import kubectl
from tests.support.wait import eventually
from tests.support.workqueues import Lab, watching_replicas


@pytest.mark.slow
def test_kubectl_scale_pins_count_and_merge_patch_releases_it(lab: Lab) -> None:
    workqueue = lab.workqueue("pinned").apply().wait_ready()
    where = f"--namespace={lab.namespace}"
    kubectl("scale", "wq/pinned", "--replicas=2", where)
    eventually(lambda: workqueue.status().get("readyReplicas") == 2, 120, "two workers are Ready")
    assert workqueue.condition("ScalingActive")["reason"] == "Pinned"
    kubectl("patch", "wq", "pinned", "--type=merge", '--patch={"spec":{"replicas":null}}', where)
    eventually(lambda: workqueue.replicas() == 0, 120, "no message is left, so no worker stays")
    workqueue.delete()


@pytest.mark.slow
def test_pin_of_zero_stops_workers_while_rabbitmq_refuses_the_login(lab: Lab) -> None:
    """Neither the operator nor the workers have a connection, so the depth is unknown."""
    user, old = "locked-out", "the-old-password"
    lab.rabbit.ctl("add_user", user, old)
    lab.rabbit.ctl("set_permissions", "--vhost", lab.vhost, user, ".*", ".*", ".*")
    lab.secret(user, username=user, password=old)
    workqueue = lab.workqueue("locked", connectionSecretRef={"name": user}, replicas=2).apply()
    eventually(lambda: workqueue.status().get("readyReplicas") == 2, 120, "two workers are Ready")
    lab.rabbit.ctl("change_password", user, "another-password")
    lab.rabbit.ctl("close_all_user_connections", user, "locked out")
    workqueue.wait_condition("DepthKnown", "False")

    kubectl("scale", "wq/locked", "--replicas=0", f"--namespace={lab.namespace}")

    eventually(lambda: workqueue.replicas() == 0, 60, "the workers leave")
    eventually(lambda: workqueue.pods() == [], 60, "and their pods")
    workqueue.delete()


@pytest.mark.slow
def test_suspended_workqueue_is_left_unchanged(lab: Lab) -> None:
    workqueue = lab.workqueue("suspended").apply().wait_ready()
    workqueue.change(suspend=True).wait_condition("ScalingActive", "False", "Suspended")
    workqueue.publish([{"id": 1}])
    eventually(lambda: lab.consumers("suspended") == 0, 60, "no consumer is left")
    eventually(lambda: lab.ready("suspended") == 1, 60, "it waits")
    assert workqueue.replicas() == 0
    workqueue.change(suspend=False)
    assert len(workqueue.results(1)) == 1
    workqueue.delete()


@pytest.mark.slow
def test_scheduled_minimum_is_kept(lab: Lab) -> None:
    always = {"start": "* * * * *", "end": "0 0 1 1 *", "timeZone": "Europe/Berlin", "minReplicas": 1}
    workqueue = lab.workqueue("scheduled", scaling={"schedules": [always]}).apply()
    eventually(lambda: workqueue.status().get("readyReplicas") == 1, 120, "the minimum of the schedule runs")
    workqueue.change(scaling={"schedules": []})
    eventually(lambda: workqueue.replicas() == 0, 120, "without it none does")
    never = {**always, "start": "0 0 30 2 *"}
    workqueue.change(scaling={"schedules": [never, always]})
    assert "0 0 30 2 *" in workqueue.wait_condition("Ready", "False", "ScheduleInvalid")["message"]
    eventually(lambda: workqueue.replicas() == 1, 120, "the other schedule has its minimum")
    workqueue.change(scaling={"schedules": [never]})
    eventually(lambda: workqueue.replicas() == 0, 120, "without it none does")
    workqueue.publish([{"id": 1}])
    assert [result["id"] for result in workqueue.results(1)] == [1], "the queue is served all the same"
    workqueue.delete()


@pytest.mark.slow
def test_single_active_consumer_gets_one_worker(lab: Lab) -> None:
    workqueue = lab.workqueue("ordered", queue={"singleActiveConsumer": True}).apply().wait_ready()
    with watching_replicas(workqueue) as replicas:
        workqueue.publish([{"id": number, "seconds": 1} for number in range(10)])
        workqueue.wait_condition("ScalingActive", "True", "SingleActiveConsumer")
        assert [result["id"] for result in workqueue.results(10)] == list(range(10)), "in order"
        eventually(lambda: replicas.counts[-1] == 0, 120, "the worker leaves")
    assert replicas.counts == [0, 1, 0]
    workqueue.delete()
