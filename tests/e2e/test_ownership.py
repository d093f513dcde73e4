"""Two releases of the operator, one for the whole cluster and one for a namespace: exactly one serves it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from tests.support import helm
from tests.support.inside import Rabbit
from tests.support.kubernetes import kubectl, kubectl_json, temporary_namespace
from tests.support.operators import OperatorRelease, operator_of_the_whole_cluster
from tests.support.wait import eventually
from tests.support.workqueues import Lab, lab_in

LABEL = "workqueue.dev/operator"


@pytest.fixture(scope="module")
def wide(crd: None) -> Iterator[OperatorRelease]:
    with operator_of_the_whole_cluster() as release:
        yield release


@pytest.fixture(scope="module")
def place(rabbit: Rabbit, wide: OperatorRelease) -> Iterator[Lab]:
    """A namespace that no release lists yet."""
    with (
        temporary_namespace("e2e-owned", pod_security="restricted") as namespace,
        lab_in(namespace, rabbit) as made,
    ):
        yield made


def says(lab: Lab, release: OperatorRelease, other: OperatorRelease) -> bool:
    """Whether an Event of this release names another release that serves the namespace.

    A release that lists its namespaces knows the other one from the label alone, which is its name.
    """
    events = kubectl_json("get", "events", f"--namespace={lab.namespace}")["items"]
    words = f"{other.name} serves the WorkQueues"
    own = f"{release.namespace}/{release.name} leaves"
    return any(
        event["reason"] == "ServedElsewhere" and words in event["message"] and own in event["message"]
        for event in events
    )


def stands_aside(lab: Lab, release: OperatorRelease, other: OperatorRelease) -> None:
    """Wait until a release has left the namespace to another one and reports it by Event, log and metric."""
    eventually(lambda: says(lab, release, other), 120, f"{release.name} says that it stands aside")
    eventually(lambda: f"{other.name} serves the WorkQueues" in release.logs(), 60, "its log says so")
    shown = f'workqueue_namespaces_served_elsewhere{{namespace="{lab.namespace}",operator='
    eventually(lambda: shown in release.metrics(), 60, "its metrics say so")


@pytest.mark.slow
def test_exactly_one_of_two_releases_serves_a_workqueue(place: Lab, wide: OperatorRelease) -> None:
    workqueue = place.workqueue("owned").apply().wait_ready()
    eventually(lambda: place.consumers("owned") == 1, 60, "the cluster-wide release serves it")
    with temporary_namespace("e2e-owner", pod_security="restricted") as system:
        narrow = OperatorRelease(f"narrow-{secrets.token_hex(3)}", system, helm.run)
        narrow.install(watchNamespaces=[place.namespace], replicaCount=1)

        stands_aside(place, wide, narrow)
        eventually(lambda: place.consumers("owned") == 1, 120, "one doorbell")
        workqueue.publish([{"id": 1}])
        assert [result["id"] for result in workqueue.results(1)] == [1]

        kubectl("label", "namespace", place.namespace, f"{LABEL}={wide.name}")
        stands_aside(place, narrow, wide)
        eventually(lambda: workqueue.replicas() == 0, 120, "the workers have gone")
        eventually(lambda: place.consumers("owned") == 1, 120, "one doorbell")
        workqueue.publish([{"id": 2}])
        assert [result["id"] for result in workqueue.results(1)] == [2]

        kubectl("label", "namespace", place.namespace, f"{LABEL}-")
        narrow.uninstall()
    eventually(lambda: workqueue.replicas() == 0, 120, "the workers have gone")
    eventually(lambda: place.consumers("owned") == 1, 120, "the cluster-wide release serves it again")
    workqueue.publish([{"id": 3}])
    assert [result["id"] for result in workqueue.results(1)] == [3]
    workqueue.delete()


@pytest.mark.slow
def test_helm_refuses_second_release_for_a_namespace(place: Lab) -> None:
    with temporary_namespace("e2e-owner", pod_security="restricted") as system:
        first, second = (OperatorRelease(f"{name}-{secrets.token_hex(3)}", system, helm.run) for name in "ab")
        first.install(watchNamespaces=[place.namespace], replicaCount=1)
        try:
            with pytest.raises(helm.HelmError, match=r"workqueue\.dev"):
                second.install(watchNamespaces=[place.namespace], replicaCount=1)
        finally:
            first.uninstall()
