"""Deletion: what each policy keeps, and how a stuck WorkQueue is released."""

from __future__ import annotations

import pytest

from tests.support.kubernetes import kubectl, temporary_namespace
from tests.support.operators import operator_of_the_whole_cluster
from tests.support.wait import eventually
from tests.support.workqueues import Lab, lab_in


@pytest.mark.slow
def test_deleted_workqueue_keeps_its_queue_by_default(lab: Lab) -> None:
    workqueue = lab.workqueue("retained").apply().wait_ready()
    assert not workqueue.get()["metadata"].get("finalizers")
    workqueue.delete()
    assert {"retained", "retained.dead"} <= set(lab.queues())


def test_delete_policy_deletes_the_queues(lab: Lab) -> None:
    workqueue = (
        lab.workqueue("deleted", queue={"deletionPolicy": "Delete"}, suspend=False).apply().wait_ready()
    )
    eventually(lambda: workqueue.get()["metadata"].get("finalizers"), 60, "the finalizer is set")
    workqueue.delete()
    assert not {"deleted", "deleted.dead"} & set(lab.queues())


@pytest.mark.slow
def test_delete_if_empty_waits_and_reports_why(lab: Lab) -> None:
    workqueue = (
        lab.workqueue("kept", queue={"deletionPolicy": "DeleteIfEmpty"}, replicas=0).apply().wait_ready()
    )
    eventually(lambda: workqueue.get()["metadata"].get("finalizers"), 60, "the finalizer is set")
    workqueue.publish([{"id": 1}])
    workqueue.delete(wait=False)
    condition = workqueue.wait_condition("Ready", "False", "QueueNotEmpty")
    assert "abandon-queue" in condition["message"]
    lab.channel.queue_purge("kept")
    eventually(lambda: not workqueue.exists(), 120, "it goes once the queue is empty")
    assert not {"kept", "kept.dead"} & set(lab.queues())


def test_annotation_releases_stuck_workqueue_and_keeps_queue(lab: Lab) -> None:
    workqueue = (
        lab.workqueue("stuck", queue={"deletionPolicy": "DeleteIfEmpty"}, replicas=0).apply().wait_ready()
    )
    eventually(lambda: workqueue.get()["metadata"].get("finalizers"), 60, "the finalizer is set")
    workqueue.publish([{"id": 1}])
    workqueue.delete(wait=False)
    workqueue.wait_condition("Ready", "False", "QueueNotEmpty")
    kubectl("annotate", "wq", "stuck", "workqueue.dev/abandon-queue=true", f"--namespace={lab.namespace}")
    eventually(lambda: not workqueue.exists(), 60, "it goes")
    eventually(lambda: lab.ready("stuck") == 1, 60, "it still waits in the queue")


@pytest.mark.slow
def test_namespace_can_be_deleted_with_its_workqueues(lab: Lab) -> None:
    """The Secret is gone before the operator handles the finalizer. The operator is cluster-wide: rights in
    listed namespaces would be deleted with the namespace."""
    with (
        operator_of_the_whole_cluster(),
        temporary_namespace("e2e-gone", pod_security="restricted") as namespace,
        lab_in(namespace, lab.rabbit) as other,
    ):
        workqueue = other.workqueue("doomed", queue={"deletionPolicy": "Delete"}).apply().wait_ready()
        eventually(lambda: workqueue.get()["metadata"].get("finalizers"), 60, "the finalizer is set")
        kubectl("delete", "namespace", namespace, "--wait=false")
        gone = "--ignore-not-found"
        eventually(lambda: not kubectl("get", "namespace", namespace, gone), 300, "the namespace is gone")
        other.close()
