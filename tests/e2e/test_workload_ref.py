"""Workloads of others: a name that is taken, `workloadRef`, and competing autoscalers."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.kubernetes import kubectl, kubectl_json
from tests.support.objects import Object
from tests.support.wait import eventually
from tests.support.workqueues import Lab


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

    eventually(lambda: replicas() == 3, 120, "six messages, two for each replica")
    created = datetime.fromisoformat(workqueue.get()["metadata"]["creationTimestamp"])
    eventually(lambda: datetime.now(UTC) - created > timedelta(seconds=1), 60, "ages differ by whole seconds")
    second = lab.workqueue("contest", worker=None, workloadRef={"name": "theirs"}).apply()
    second.wait_condition("WorkersAvailable", "False", "WorkloadContested")
    second.delete()
    lab.channel.queue_purge("foreign")
    workqueue.wait_condition("ScalingActive", "False", "UnacknowledgedUnknown")
    assert replicas() == 3, "what these workers have in hand is not known"
    lab.rabbit.ctl("set_user_tags", lab.vhost, "monitoring")
    lab.secret("rabbitmq-management", management_uri=f"http://{lab.rabbit.host}:15672")
    workqueue.change(connectionSecretRef={"name": "rabbitmq-management"})
    eventually(lambda: replicas() == 0, 120, "nothing is waiting and nothing is unacknowledged")
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


@pytest.mark.slow
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

    eventually(lambda: replicas() == 3, 120, "the HorizontalPodAutoscaler has set its minimum")
    count = 3
    if by == "keda":
        count = 0
        to_zero = ("--subresource=scale", "--type=merge", '--patch={"spec":{"replicas":0}}')
        kubectl("patch", "deployment", name, *to_zero, "--field-manager=keda", where)
    workqueue = lab.workqueue(f"against-{by}", worker=None, workloadRef={"name": name}).apply()
    condition = workqueue.wait_condition("WorkersAvailable", "False", "WorkloadContested")
    assert f"the HorizontalPodAutoscaler '{name}'" in condition["message"]
    workqueue.publish([{"id": number} for number in range(8)])
    eventually(lambda: workqueue.status().get("messages") == 8, 120, "the messages are seen")
    assert replicas() == count
    kubectl("delete", "hpa", name, where)
    eventually(lambda: replicas() == 4, 120, "once it is gone the WorkQueue takes over")
    eventually(
        lambda: workqueue.condition("WorkersAvailable")["reason"] != "WorkloadContested", 60, "it says so"
    )
    workqueue.delete()
    kubectl("delete", "deployment", name, where)
