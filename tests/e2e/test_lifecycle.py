"""Drift, change, pins, deletion: the life of a WorkQueue."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.kstatus import kstatus
from tests.support.kubernetes import kubectl, kubectl_json, temporary_namespace
from tests.support.objects import Object
from tests.support.operators import operator_of_the_whole_cluster
from tests.support.wait import eventually
from tests.support.workqueues import Lab, lab_in, watching_replicas


def test_deleted_queue_is_redeclared_and_reported(lab: Lab) -> None:
    workqueue = lab.workqueue("drift").apply().wait_ready()
    lab.channel.queue_delete("drift")
    workqueue.wait_condition("QueueDeclared", "True", "DeclaredAgain")
    workqueue.publish([{"id": 1}])
    assert len(workqueue.results(1)) == 1
    workqueue.delete()


def test_cancelled_doorbell_is_reinstalled_without_reporting_loss(lab: Lab) -> None:
    """RabbitMQ cancels consumers when a queue is deleted, and also when its leader moves."""
    workqueue = lab.workqueue("cancelled").apply().wait_ready()
    eventually(lambda: lab.queues()["cancelled"]["consumers"] == 1, 30, "the bell hangs")
    queue = f'rabbit_misc:r(<<"{lab.vhost}">>, queue, <<"cancelled">>)'
    cancel = (
        f"{{ok, Q}} = rabbit_amqqueue:lookup({queue}), [rabbit_channel:send_command(element(1, C),"
        " {'basic.cancel', element(2, C), true}) || C <- rabbit_amqqueue:consumers(Q)]."
    )
    lab.rabbit.ctl("eval", cancel)
    # The broker still counts the consumer after the forced cancel.
    eventually(lambda: lab.queues()["cancelled"]["consumers"] == 2, 30, "a new bell hangs")
    assert workqueue.condition("QueueDeclared")["reason"] == "Declared"
    assert "DeclaredAgain" not in workqueue.event_reasons()
    workqueue.delete()


def test_waiting_tools_see_progress_until_workqueue_is_ready(lab: Lab) -> None:
    """As Flux does; every other test here waits like `kubectl wait`."""
    workqueue = lab.workqueue("waited").apply()
    eventually(lambda: kstatus(workqueue.get()) == "Current", 60, "it is done")
    assert workqueue.condition("Ready")["status"] == "True", "and not before it is Ready"
    workqueue.change(connectionSecretRef={"name": "nowhere"})
    eventually(lambda: kstatus(workqueue.get()) == "InProgress", 30, "it is not Ready")
    workqueue.change(connectionSecretRef={"name": "rabbitmq"})
    eventually(lambda: kstatus(workqueue.get()) == "Current", 60, "it is done again")
    workqueue.delete()


@pytest.mark.parametrize(
    "wipe",
    [{"status": None}, {"status": {"conditions": None, "queueName": None}}],
    ids=["all of it", "its conditions"],
)
def test_wiped_status_is_rewritten(wipe: dict[str, object], lab: Lab) -> None:
    workqueue = lab.workqueue("wiped").apply().wait_ready()
    before = {one["type"]: one["reason"] for one in workqueue.status()["conditions"]}
    where = f"--namespace={lab.namespace}"
    kubectl(
        "patch", "wq", "wiped", "--subresource=status", "--type=merge", f"--patch={json.dumps(wipe)}", where
    )

    def written() -> bool:
        status = workqueue.status()
        return {one["type"]: one["reason"] for one in status.get("conditions", ())} == before and bool(
            status.get("queueName")
        )

    eventually(written, 30, "the operator says it again")
    workqueue.delete()


def test_reverted_change_ends_at_original_deployment(lab: Lab) -> None:
    """A -> B -> A during the rollout of B: the Deployment is that of A, and messages are handled."""
    workqueue = lab.workqueue("back", scaling={"minReplicas": 1}).apply()
    workqueue.wait_condition("WorkersAvailable", "True", "WorkersReady")

    def proven() -> bool:
        return workqueue.deployment()["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == "25%"

    eventually(proven, 30, "A replaces more than one pod at a time from now on")
    first = workqueue.deployment()["spec"]
    # B never becomes ready: its canary is still starting when A returns.
    workqueue.change(worker={"image": "workqueue-operator:no-such-tag", "imagePullPolicy": "Never"})
    eventually(lambda: workqueue.deployment()["spec"] != first, 30, "B is being rolled out")
    workqueue.change(worker={"image": "workqueue-operator:dev", "imagePullPolicy": "IfNotPresent"})
    eventually(lambda: workqueue.deployment()["spec"] == first, 30, "A is back, to the letter")
    workqueue.wait_condition("WorkersAvailable", "True", "WorkersReady")
    workqueue.publish([{"id": 1}])
    assert [result["id"] for result in workqueue.results(1)] == [1]
    eventually(lambda: len(workqueue.pods()) == 1, 60, "nothing of B is left")
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

    eventually(put_right, 30, "our field is restored")
    live = workqueue.deployment()
    assert live["metadata"]["labels"]["theirs"] == "kept"
    assert live["spec"]["replicas"] == 1
    kubectl("delete", "deployment", "edited-worker", where)
    eventually(
        lambda: any(p["status"].get("phase") == "Running" for p in workqueue.pods()), 60, "it is made again"
    )
    workqueue.delete()


def test_kubectl_scale_pins_count_and_merge_patch_releases_it(lab: Lab) -> None:
    workqueue = lab.workqueue("pinned").apply().wait_ready()
    where = f"--namespace={lab.namespace}"
    kubectl("scale", "wq/pinned", "--replicas=2", where)
    eventually(lambda: workqueue.status().get("readyReplicas") == 2, 60, "two workers are Ready")
    assert workqueue.condition("ScalingActive")["reason"] == "Pinned"
    kubectl("patch", "wq", "pinned", "--type=merge", '--patch={"spec":{"replicas":null}}', where)
    eventually(lambda: workqueue.replicas() == 0, 60, "no message is left, so no worker stays")
    workqueue.delete()


def test_suspended_workqueue_is_left_unchanged(lab: Lab) -> None:
    workqueue = lab.workqueue("suspended").apply().wait_ready()
    workqueue.change(suspend=True).wait_condition("ScalingActive", "False", "Suspended")
    workqueue.publish([{"id": 1}])
    eventually(lambda: lab.queues()["suspended"]["consumers"] == 0, 30, "no consumer is left")
    eventually(lambda: lab.queues()["suspended"]["messages"] == 1, 30, "it waits")
    assert workqueue.replicas() == 0
    workqueue.change(suspend=False)
    assert len(workqueue.results(1)) == 1
    workqueue.delete()


def test_changed_template_rolls_out_without_interrupting_handlers(lab: Lab) -> None:
    workqueue = lab.workqueue("rolling", scaling={"minReplicas": 2}).apply()
    eventually(lambda: workqueue.status().get("readyReplicas") == 2, 60, "two workers are Ready")
    before = {pod["metadata"]["name"] for pod in workqueue.pods()}
    workqueue.publish([{"id": number, "seconds": 4} for number in range(4)])
    eventually(lambda: workqueue.status().get("busyReplicas") == 2, 30, "both are busy")
    workqueue.change(worker={"podAnnotations": {"example.com/version": "2"}})
    results = workqueue.results(4)
    assert {result["event"] for result in results} == {"done"}
    assert all(result["attempt"] == 1 for result in results)

    def replaced() -> bool:
        names = {pod["metadata"]["name"] for pod in workqueue.pods()}
        return len(names) == 2 and not names & before

    eventually(replaced, 90, "both pods are of the new template")
    workqueue.delete()


def test_deleted_workqueue_keeps_its_queue_by_default(lab: Lab) -> None:
    workqueue = lab.workqueue("retained").apply().wait_ready()
    assert not workqueue.get()["metadata"].get("finalizers")
    workqueue.delete(seconds=20)
    assert {"retained", "retained.dead"} <= set(lab.queues())


def test_delete_policy_deletes_the_queues(lab: Lab) -> None:
    workqueue = (
        lab.workqueue("deleted", queue={"deletionPolicy": "Delete"}, suspend=False).apply().wait_ready()
    )
    eventually(lambda: workqueue.get()["metadata"].get("finalizers"), 20, "the finalizer is set")
    workqueue.delete()
    assert not {"deleted", "deleted.dead"} & set(lab.queues())


def test_delete_if_empty_waits_and_reports_why(lab: Lab) -> None:
    workqueue = (
        lab.workqueue("kept", queue={"deletionPolicy": "DeleteIfEmpty"}, replicas=0).apply().wait_ready()
    )
    eventually(lambda: workqueue.get()["metadata"].get("finalizers"), 20, "the finalizer is set")
    workqueue.publish([{"id": 1}])
    workqueue.delete(wait=False)
    condition = workqueue.wait_condition("Ready", "False", "QueueNotEmpty")
    assert "abandon-queue" in condition["message"]
    lab.channel.queue_purge("kept")
    eventually(lambda: not workqueue.exists(), 60, "it goes once the queue is empty")
    assert not {"kept", "kept.dead"} & set(lab.queues())


def test_annotation_releases_stuck_workqueue_and_keeps_queue(lab: Lab) -> None:
    workqueue = (
        lab.workqueue("stuck", queue={"deletionPolicy": "DeleteIfEmpty"}, replicas=0).apply().wait_ready()
    )
    eventually(lambda: workqueue.get()["metadata"].get("finalizers"), 20, "the finalizer is set")
    workqueue.publish([{"id": 1}])
    workqueue.delete(wait=False)
    workqueue.wait_condition("Ready", "False", "QueueNotEmpty")
    kubectl("annotate", "wq", "stuck", "workqueue.dev/abandon-queue=true", f"--namespace={lab.namespace}")
    eventually(lambda: not workqueue.exists(), 30, "it goes")
    eventually(lambda: lab.queues()["stuck"]["messages"] == 1, 30, "it still waits in the queue")


def test_foreign_deployment_with_same_name_is_untouched(lab: Lab) -> None:
    where = f"--namespace={lab.namespace}"
    image = "--image=workqueue-operator:dev"
    kubectl("create", "deployment", "taken-worker", image, "--replicas=0", where)
    workqueue = lab.workqueue("taken").apply()
    workqueue.wait_condition("WorkersAvailable", "False", "NameConflict")
    theirs = workqueue.deployment()
    assert "ownerReferences" not in theirs["metadata"]
    kubectl("delete", "deployment", "taken-worker", where)
    workqueue.wait_condition("WorkersAvailable", "True")
    workqueue.delete()


def test_foreign_workload_is_scaled_unless_an_autoscaler_does(lab: Lab) -> None:
    where = f"--namespace={lab.namespace}"
    kubectl("create", "--filename=-", where, input=json.dumps(sleepers("theirs")))
    workqueue = lab.workqueue("foreign", worker=None, workloadRef={"name": "theirs"}).apply().wait_ready()
    workqueue.publish([{"id": number} for number in range(6)])

    def replicas() -> int:
        return int(kubectl_json("get", "deployment", "theirs", where)["spec"]["replicas"])

    eventually(lambda: replicas() == 3, 30, "six messages, two for each replica")
    created = datetime.fromisoformat(workqueue.get()["metadata"]["creationTimestamp"])
    eventually(lambda: datetime.now(UTC) - created > timedelta(seconds=1), 5, "ages differ by whole seconds")
    second = lab.workqueue("contest", worker=None, workloadRef={"name": "theirs"}).apply()
    second.wait_condition("WorkersAvailable", "False", "WorkloadContested")
    second.delete()
    lab.channel.queue_purge("foreign")
    workqueue.wait_condition("ScalingActive", "False", "UnacknowledgedUnknown")
    assert replicas() == 3, "what these workers have in hand is not known"
    lab.rabbit.ctl("set_user_tags", lab.vhost, "monitoring")
    lab.secret("rabbitmq-management", management_uri=f"http://{lab.rabbit.host}:15672")
    workqueue.change(connectionSecretRef={"name": "rabbitmq-management"})
    eventually(lambda: replicas() == 0, 60, "nothing is waiting and nothing is unacknowledged")
    workqueue.delete()
    assert kubectl_json("get", "deployment", "theirs", where)["spec"]["replicas"] == 0, (
        "it is theirs and stays"
    )
    kubectl("delete", "deployment", "theirs", where)


def sleepers(name: str) -> Object:
    """A Deployment without replicas, whose pods the restricted standard admits; they consume nothing."""
    container = {
        "name": "sleep",
        "image": "workqueue-operator:dev",
        "command": ["sleep", "600"],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    template = {
        "metadata": {"labels": {"app": name}},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 0},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": name}}, "template": template},
    }


@pytest.mark.parametrize("by", ["hpa", "keda"])
def test_competing_autoscaler_is_reported_and_not_fought(by: str, lab: Lab) -> None:
    """KEDA creates a HorizontalPodAutoscaler, but sets 0 and 1 itself through the scale subresource."""
    where, name = f"--namespace={lab.namespace}", f"contested-by-{by}"
    kubectl("create", "deployment", name, "--image=workqueue-operator:dev", "--replicas=1", where)
    autoscaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": 3,
            "maxReplicas": 4,
        },
    }
    kubectl("create", "--filename=-", where, input=json.dumps(autoscaler))

    def replicas() -> int:
        return int(kubectl_json("get", "deployment", name, where)["spec"]["replicas"])

    eventually(lambda: replicas() == 3, 60, "the HorizontalPodAutoscaler has set its minimum")
    count = 3
    if by == "keda":
        count = 0
        to_zero = ("--subresource=scale", "--type=merge", '--patch={"spec":{"replicas":0}}')
        kubectl("patch", "deployment", name, *to_zero, "--field-manager=keda", where)
    workqueue = lab.workqueue(f"against-{by}", worker=None, workloadRef={"name": name}).apply()
    condition = workqueue.wait_condition("WorkersAvailable", "False", "WorkloadContested")
    assert f"the HorizontalPodAutoscaler '{name}'" in condition["message"]
    workqueue.publish([{"id": number} for number in range(8)])
    eventually(lambda: workqueue.status().get("messages") == 8, 30, "the messages are seen")
    assert replicas() == count
    kubectl("delete", "hpa", name, where)
    eventually(lambda: replicas() == 4, 60, "once it is gone the WorkQueue takes over")
    eventually(
        lambda: workqueue.condition("WorkersAvailable")["reason"] != "WorkloadContested", 30, "it says so"
    )
    workqueue.delete()
    kubectl("delete", "deployment", name, where)


def test_scheduled_minimum_is_kept(lab: Lab) -> None:
    always = {"start": "* * * * *", "end": "0 0 1 1 *", "timeZone": "Europe/Berlin", "minReplicas": 1}
    workqueue = lab.workqueue("scheduled", scaling={"schedules": [always]}).apply()
    eventually(lambda: workqueue.status().get("readyReplicas") == 1, 60, "the minimum of the schedule runs")
    workqueue.change(scaling={"schedules": []})
    eventually(lambda: workqueue.replicas() == 0, 60, "without it none does")
    never = {**always, "start": "0 0 30 2 *"}
    workqueue.change(scaling={"schedules": [never, always]})
    assert "0 0 30 2 *" in workqueue.wait_condition("Ready", "False", "ScheduleInvalid")["message"]
    eventually(lambda: workqueue.status().get("readyReplicas") == 1, 60, "the other schedule has its minimum")
    workqueue.change(scaling={"schedules": [never]})
    eventually(lambda: workqueue.replicas() == 0, 60, "without it none does")
    workqueue.publish([{"id": 1}])
    assert [result["id"] for result in workqueue.results(1)] == [1], "the queue is served all the same"
    workqueue.delete()


def test_single_active_consumer_gets_one_worker(lab: Lab) -> None:
    workqueue = lab.workqueue("ordered", queue={"singleActiveConsumer": True}).apply().wait_ready()
    with watching_replicas(workqueue) as replicas:
        workqueue.publish([{"id": number, "seconds": 1} for number in range(10)])
        workqueue.wait_condition("ScalingActive", "True", "SingleActiveConsumer")
        assert [result["id"] for result in workqueue.results(10)] == list(range(10)), "in order"
        eventually(lambda: replicas.counts[-1] == 0, 60, "the worker leaves")
    assert replicas.counts == [0, 1, 0]
    workqueue.delete()


def test_rotated_credentials_need_no_restart(lab: Lab) -> None:
    """The password changes at the broker and in the Secret while messages are handled."""
    user, old, new = "rotating", "the-old-password", "the-new-password"
    lab.rabbit.ctl("add_user", user, old)
    lab.rabbit.ctl("set_permissions", "--vhost", lab.vhost, user, ".*", ".*", ".*")
    lab.secret("rotating", username=user, password=old)
    workqueue = lab.workqueue(
        "rotated", connectionSecretRef={"name": "rotating"}, scaling={"minReplicas": 1}
    ).apply()
    workqueue.wait_condition("WorkersAvailable", "True", "WorkersReady")
    before = {pod["metadata"]["uid"] for pod in workqueue.pods()}
    lab.rabbit.ctl("change_password", user, new)
    change = {"stringData": {"password": new}}
    where = f"--namespace={lab.namespace}"
    kubectl("patch", "secret", "rotating", f"--patch={json.dumps(change)}", where)
    lab.rabbit.ctl("close_all_user_connections", user, "rotated")
    workqueue.publish([{"id": 1}])
    # The kubelet updates a changed Secret in a pod within about a minute.
    assert [result["id"] for result in workqueue.results(1, seconds=150)] == [1]
    workqueue.wait_condition("Ready", "True")
    assert {pod["metadata"]["uid"] for pod in workqueue.pods()} == before, "no pod was restarted"
    workqueue.delete()


def test_namespace_can_be_deleted_with_its_workqueues(lab: Lab) -> None:
    """The Secret is gone before the operator handles the finalizer. The operator is cluster-wide: rights in
    listed namespaces would be deleted with the namespace."""
    with (
        operator_of_the_whole_cluster(),
        temporary_namespace("e2e-gone", pod_security="restricted") as namespace,
        lab_in(namespace, lab.rabbit) as other,
    ):
        workqueue = other.workqueue("doomed", queue={"deletionPolicy": "Delete"}).apply().wait_ready()
        eventually(lambda: workqueue.get()["metadata"].get("finalizers"), 20, "the finalizer is set")
        kubectl("delete", "namespace", namespace, "--wait=false")
        gone = "--ignore-not-found"
        eventually(lambda: not kubectl("get", "namespace", namespace, gone), 150, "the namespace is gone")
        other.close()


def test_message_on_idle_queue_scales_out_in_one_step(lab: Lab) -> None:
    """Twenty wakes in a row: each message done, none dead-lettered, each scale-out a single write."""
    workqueue = lab.workqueue("sleeper", scaling={"scaleInDelaySeconds": 0}).apply().wait_ready()
    workqueue.publish([{"id": "canary"}])
    workqueue.results(1)
    with watching_replicas(workqueue) as watch:
        for number in range(20):
            eventually(lambda: watch.counts[-1] == 0, 60, "it sleeps")
            workqueue.publish([{"id": number}])
            assert [result["id"] for result in workqueue.results(1)] == [number]
    assert set(watch.counts) == {0, 1}
    assert lab.queues()["sleeper.dead"]["messages"] == 0
    workqueue.delete()
