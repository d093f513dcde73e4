"""A stolen token of the operator: what it cannot change, by the admission policies of the chart.

RBAC allows each of these requests. The real objects of an installation are imitated; nothing runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from kubernetes import client, config

from tests.support import helm
from tests.support.kubernetes import apply, kubectl, kubectl_json, temporary_namespace
from tests.support.objects import Object, merged
from tests.support.stolen import kubeconfig_of, policies_for
from workqueue_operator.names import ANNOTATION_PROTECTED, PROTECTION

CONTAINER = {"name": "worker", "image": "good:1"}
PDB = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget"}


@dataclass(frozen=True)
class Thief:
    """A thief of the operator's token, in a namespace with a WorkQueue, its objects, and foreign ones."""

    namespace: str
    owner: Object
    apps: Any
    core: Any
    policy: Any
    objects: Any

    def deployment(self, name: str, *owners: Object, **template: Any) -> Object:
        labels = {"app": name}
        pod = merged({"containers": [CONTAINER]}, template)
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "ownerReferences": list(owners)},
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        }

    def change_deployment(self, name: str, patch: Object) -> None:
        self.apps.patch_namespaced_deployment(name, self.namespace, patch)

    def create_deployment(self, body: Object) -> None:
        self.apps.create_namespaced_deployment(self.namespace, body)

    def change_pod(self, name: str, patch: Object) -> None:
        self.core.patch_namespaced_pod(name, self.namespace, patch)

    def change_workqueue(self, patch: Object) -> None:
        where = "workqueue.dev", "v1alpha1", self.namespace, "workqueues", "jobs"
        self.objects.patch_namespaced_custom_object(*where, patch)

    def create_secret(self, kind: str, *owners: Object, name: str = "jobs-retirement-key") -> None:
        metadata = {
            "name": name,
            "ownerReferences": list(owners),
            "annotations": {"kubernetes.io/service-account.name": "default"},
        }
        self.core.create_namespaced_secret(
            self.namespace, {"metadata": metadata, "type": kind, "stringData": {"key": "k"}}
        )

    def create_budget(self, name: str, *owners: Object) -> None:
        metadata = {"name": name, "ownerReferences": list(owners)}
        spec = {"maxUnavailable": 0, "selector": {}}
        self.policy.create_namespaced_pod_disruption_budget(
            self.namespace, {**PDB, "metadata": metadata, "spec": spec}
        )


@pytest.fixture(scope="module")
def thief(crd: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Thief]:
    roles = {
        one["metadata"]["name"]: one
        for one in helm.template({"fullnameOverride": "operator"})
        if "rules" in one
    }
    with temporary_namespace("security-stolen") as namespace:
        group = {"apiVersion": "rbac.authorization.k8s.io/v1"}
        ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operator"}
        subject = {"kind": "ServiceAccount", "name": "operator", "namespace": namespace}
        apply(
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "operator"}},
            {**group, "kind": "Role", "metadata": {"name": "operator"}, "rules": roles["operator"]["rules"]},
            {
                **group,
                "kind": "RoleBinding",
                "metadata": {"name": "operator"},
                "roleRef": ref,
                "subjects": [subject],
            },
            {
                "apiVersion": "workqueue.dev/v1alpha1",
                "kind": "WorkQueue",
                "metadata": {"name": "jobs"},
                "spec": {
                    "connectionSecretRef": {"name": "none"},
                    "worker": {"image": "good:1", "handler": {"python": "a:b"}},
                },
            },
            namespace=namespace,
        )
        live = kubectl_json("get", "wq", "jobs", f"--namespace={namespace}")
        owner = {
            "apiVersion": live["apiVersion"],
            "kind": "WorkQueue",
            "name": "jobs",
            "uid": live["metadata"]["uid"],
            "controller": True,
        }
        file = kubeconfig_of("operator", namespace, tmp_path_factory.mktemp("stolen") / "kubeconfig")
        with (
            policies_for("operator", namespace),
            config.new_client_from_config(str(file)) as api,
        ):
            made = Thief(
                namespace,
                owner,
                client.AppsV1Api(api),
                client.CoreV1Api(api),
                client.PolicyV1Api(api),
                client.CustomObjectsApi(api),
            )
            unscheduled = {"containers": [CONTAINER], "nodeSelector": {"no-node": "has-this"}}
            pod = {"apiVersion": "v1", "kind": "Pod", "spec": unscheduled}
            labels = {"workqueue.dev/workqueue": "jobs", "workqueue.dev/retiring": "false"}
            apply(
                made.deployment("jobs-worker", owner),
                made.deployment("shop"),
                {**pod, "metadata": {"name": "jobs-worker-1", "labels": labels}},
                {**pod, "metadata": {"name": "shop-1", "labels": {"app": "shop"}}},
                namespace=namespace,
            )
            yield made


def image(name: str) -> Object:
    return {"spec": {"containers": [{"name": "worker", "image": name}]}}


def template_image(name: str) -> Object:
    return {"spec": {"template": image(name)}}


def marks(cost: str | None) -> Object:
    return {"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": cost}}}


def protection(value: str | None) -> Object:
    return {"metadata": {"annotations": dict.fromkeys([*PROTECTION, ANNOTATION_PROTECTED], value)}}


FORBIDDEN: dict[str, Callable[[Thief], None]] = {
    "image of a worker's pod": lambda thief: thief.change_pod("jobs-worker-1", image("evil:1")),
    "another label of a worker's pod": lambda thief: thief.change_pod(
        "jobs-worker-1", {"metadata": {"labels": {"app": "shop"}}}
    ),
    "a worker's pod without its label": lambda thief: thief.change_pod(
        "jobs-worker-1", {"metadata": {"labels": {"workqueue.dev/workqueue": None}}}
    ),
    "another annotation of a worker's pod": lambda thief: thief.change_pod(
        "jobs-worker-1", {"metadata": {"annotations": {"example.com/x": "y"}}}
    ),
    "protection of another pod": lambda thief: thief.change_pod("shop-1", protection("true")),
    "owner of a worker's pod": lambda thief: thief.change_pod(
        "jobs-worker-1", {"metadata": {"ownerReferences": [thief.owner]}}
    ),
    "image of another pod": lambda thief: thief.change_pod("shop-1", image("evil:1")),
    "mark on another pod": lambda thief: thief.change_pod("shop-1", marks("-1000")),
    "image of another Deployment": lambda thief: thief.change_deployment("shop", template_image("evil:1")),
    "label of another Deployment": lambda thief: thief.change_deployment(
        "shop", {"metadata": {"labels": {"a": "b"}}}
    ),
    "pause of another Deployment": lambda thief: thief.change_deployment("shop", {"spec": {"paused": True}}),
    "adoption of another Deployment": lambda thief: thief.change_deployment(
        "shop", {"metadata": {"ownerReferences": [thief.owner]}}
    ),
    "a worker's Deployment without its owner": lambda thief: thief.change_deployment(
        "jobs-worker", {"metadata": {"ownerReferences": None}}
    ),
    "new Deployment": lambda thief: thief.create_deployment(thief.deployment("evil")),
    "new Deployment of a WorkQueue under another name": lambda thief: thief.create_deployment(
        thief.deployment("evil", thief.owner)
    ),
    "worker with the node's files": lambda thief: thief.change_deployment(
        "jobs-worker",
        {"spec": {"template": {"spec": {"volumes": [{"name": "node", "hostPath": {"path": "/"}}]}}}},
    ),
    "worker in the node's network": lambda thief: thief.change_deployment(
        "jobs-worker", {"spec": {"template": {"spec": {"hostNetwork": True}}}}
    ),
    "privileged worker": lambda thief: thief.change_deployment(
        "jobs-worker",
        {
            "spec": {
                "template": {"spec": {"containers": [{**CONTAINER, "securityContext": {"privileged": True}}]}}
            }
        },
    ),
    "token of a ServiceAccount": lambda thief: thief.create_secret(
        "kubernetes.io/service-account-token", thief.owner
    ),
    "any Secret": lambda thief: thief.create_secret("Opaque", name="evil"),
    "budget that blocks drains": lambda thief: thief.create_budget("evil"),
    "image of a WorkQueue": lambda thief: thief.change_workqueue({"spec": {"worker": {"image": "evil:1"}}}),
    "annotation of a WorkQueue": lambda thief: thief.change_workqueue(
        {"metadata": {"annotations": {"workqueue.dev/abandon-queue": "true"}}}
    ),
    "another finalizer of a WorkQueue": lambda thief: thief.change_workqueue(
        {"metadata": {"finalizers": ["example.com/x"]}}
    ),
}

ALLOWED: dict[str, Callable[[Thief], None]] = {
    "mark on a worker's pod": lambda thief: thief.change_pod(
        "jobs-worker-1", merged(marks("-1000"), {"metadata": {"labels": {"workqueue.dev/retiring": "true"}}})
    ),
    "no mark on a worker's pod": lambda thief: thief.change_pod(
        "jobs-worker-1", merged(marks(None), {"metadata": {"labels": {"workqueue.dev/retiring": "false"}}})
    ),
    "protection of a worker's pod": lambda thief: thief.change_pod("jobs-worker-1", protection("true")),
    "no protection of a worker's pod": lambda thief: thief.change_pod("jobs-worker-1", protection(None)),
    "replicas of another Deployment": lambda thief: thief.change_deployment(
        "shop", {"spec": {"replicas": 1}}
    ),
    "image of a worker's Deployment": lambda thief: thief.change_deployment(
        "jobs-worker", template_image("good:2")
    ),
    "retirement key": lambda thief: thief.create_secret("workqueue.dev/retirement-key", thief.owner),
    "budget of a worker": lambda thief: thief.create_budget("jobs-worker", thief.owner),
    "note of bindings": lambda thief: thief.change_workqueue(
        {"metadata": {"annotations": {"workqueue.dev/bindings": '{"jobs": ["a"]}'}}}
    ),
    "finalizer of the operator": lambda thief: thief.change_workqueue(
        {"metadata": {"finalizers": ["workqueue.dev/queue"]}}
    ),
}


@pytest.mark.parametrize("change", FORBIDDEN.values(), ids=FORBIDDEN)
def test_stolen_token_cannot_change_foreign_objects(thief: Thief, change: Callable[[Thief], None]) -> None:
    with pytest.raises(client.ApiException) as caught:
        change(thief)
    assert "ValidatingAdmissionPolicy" in caught.value.body, caught.value.body


@pytest.mark.parametrize("change", ALLOWED.values(), ids=ALLOWED)
def test_operator_may_change_its_objects(thief: Thief, change: Callable[[Thief], None]) -> None:
    change(thief)


def test_policies_do_not_restrict_other_users(thief: Thief) -> None:
    where = f"--namespace={thief.namespace}"
    kubectl("set", "image", "deployment/shop", "worker=other:1", where)
    kubectl("label", "pod", "shop-1", "a=b", where)
