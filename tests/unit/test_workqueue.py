"""The model parses stored objects and guarantees what the code relies on."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from pydantic import ValidationError

from workqueue.contract import topology
from workqueue.contract.topology import ExchangeType, QueueType
from workqueue_operator import names
from workqueue_operator.api.workqueue import (
    ConditionStatus,
    DeletionPolicy,
    Scaling,
    Wake,
    WorkQueue,
    WorkQueueSpec,
    WorkQueueStatus,
)

Body = dict[str, Any]

SHORTEST: Body = {
    "metadata": {"name": "thumbs", "namespace": "shop"},
    "spec": {
        "connectionSecretRef": {"name": "rabbitmq"},
        "worker": {"image": "thumbs:1", "handler": {"python": "thumbs:resize"}},
    },
}
WORKLOAD: Body = {"connectionSecretRef": {"name": "rabbitmq"}, "workloadRef": {"name": "celery"}}


def parsed(**spec: Any) -> WorkQueue:
    return WorkQueue.model_validate({**SHORTEST, "spec": {**SHORTEST["spec"], **spec}})


def test_omitted_field_has_its_default() -> None:
    workqueue = parsed()
    spec = workqueue.spec
    assert workqueue.key == ("shop", "thumbs")
    assert workqueue.queue_name == "thumbs"
    assert workqueue.queue_settings == topology.QueueSettings("thumbs")
    assert (spec.suspend, spec.replicas) == (False, None)
    assert (spec.queue.type, spec.queue.declare) == (QueueType.QUORUM, True)
    assert spec.queue.deletion_policy is DeletionPolicy.RETAIN
    assert (spec.retry.max_attempts, spec.retry.delays) == (5, (1, 10, 60))
    assert spec.worker is not None
    assert (spec.worker.concurrency, spec.worker.timeout_seconds) == (1, 300)
    assert (spec.scaling.min_replicas, spec.scaling.max_replicas) == (0, 10)
    assert workqueue.status.conditions == ()
    assert not workqueue.deleting


def test_all_queue_fields_reach_the_topology() -> None:
    workqueue = parsed(
        queue={
            "name": "images/thumbs",
            "type": "Classic",
            "exchange": {"name": "images", "type": "Topic", "routingKeys": ["a", "b"]},
            "maxLength": 1,
            "maxLengthBytes": 2,
            "messageTTLSeconds": 3,
            "deliveryLimit": 4,
            "singleActiveConsumer": True,
            "consumerTimeoutSeconds": 60,
        }
    )
    assert workqueue.queue_settings == topology.QueueSettings(
        name="images/thumbs",
        type=QueueType.CLASSIC,
        exchange=topology.Exchange("images", ExchangeType.TOPIC, ("a", "b")),
        max_length=1,
        max_length_bytes=2,
        message_ttl_seconds=3,
        delivery_limit=4,
        single_active_consumer=True,
        consumer_timeout_seconds=60,
    )


@pytest.mark.parametrize(
    ("given", "targets"),
    [
        pytest.param({}, (10, None, None), id="no target given means ten messages"),
        pytest.param({"messagesPerReplica": 3}, (3, None, None), id="messages given"),
        pytest.param({"targetDrainSeconds": 60}, (None, 60, None), id="a drain time leaves messages unset"),
        pytest.param({"maxWaitSeconds": 30}, (None, None, 30), id="a waiting time leaves messages unset"),
        pytest.param({"targetDrainSeconds": None}, (10, None, None), id="null is as good as nothing"),
    ],
)
def test_scaling_always_has_exactly_one_target(given: Body, targets: tuple[int | None, ...]) -> None:
    scaling = parsed(scaling=given).spec.scaling
    assert (scaling.messages_per_replica, scaling.target_drain_seconds, scaling.max_wait_seconds) == targets


def test_scaling_constructed_in_code_has_a_target() -> None:
    assert Scaling().messages_per_replica == 10
    assert Scaling(target_drain_seconds=5).messages_per_replica is None
    assert Scaling(max_wait_seconds=5).messages_per_replica is None


@pytest.mark.parametrize(
    ("spec", "wake"),
    [
        pytest.param(SHORTEST["spec"], Wake.PUSH, id="our own workers are woken at once"),
        pytest.param(WORKLOAD, Wake.POLL, id="a Deployment of the user's is polled for"),
        pytest.param({**WORKLOAD, "scaling": {"wake": "Push"}}, Wake.PUSH, id="unless it is asked for"),
        pytest.param({**SHORTEST["spec"], "scaling": {"wake": "Poll"}}, Wake.POLL, id="or asked not to"),
    ],
)
def test_idle_queue_detection_follows_the_spec(spec: Body, wake: Wake) -> None:
    assert WorkQueue.model_validate({**SHORTEST, "spec": spec}).wake is wake


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        pytest.param(
            {**SHORTEST["spec"], **WORKLOAD},
            "exactly one of worker and workloadRef",
            id="worker and workloadRef",
        ),
        pytest.param(
            {"connectionSecretRef": {"name": "r"}},
            "exactly one of worker and workloadRef",
            id="nothing that works",
        ),
        pytest.param(
            {**SHORTEST["spec"], "worker": {"image": "x", "handler": {}}},
            "exactly one of python, exec and http",
            id="no handler",
        ),
        pytest.param(
            {**SHORTEST["spec"], "scaling": {"minReplicas": 11}},
            "minReplicas 11 is above maxReplicas 10",
            id="bounds",
        ),
        pytest.param(
            {**SHORTEST["spec"], "scaling": {"messagesPerReplica": 1, "targetDrainSeconds": 1}},
            "only one of messagesPerReplica, targetDrainSeconds and maxWaitSeconds",
            id="two targets",
        ),
        pytest.param(
            {**SHORTEST["spec"], "queue": {"type": "Stream"}}, "'Quorum' or 'Classic'", id="a stream"
        ),
    ],
)
def test_model_refuses_what_an_older_crd_admitted(spec: Body, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        WorkQueueSpec.model_validate(spec)


def test_fields_of_a_newer_crd_are_ignored() -> None:
    body = json.loads(json.dumps(SHORTEST))
    body["spec"]["fromTheFuture"] = body["spec"]["worker"]["handler"]["wasm"] = {"a": 1}
    body["status"] = {"messages": 3, "fromTheFuture": True}
    assert WorkQueue.model_validate(body).status.messages == 3


def test_pod_fields_keep_kubernetes_spelling() -> None:
    toleration = {"key": "gpu", "operator": "Exists", "tolerationSeconds": 3}
    affinity = {"nodeAffinity": {"fromTheFuture": [1]}}
    given = {**SHORTEST["spec"]["worker"], "tolerations": [toleration], "affinity": affinity}
    worker = parsed(worker=given).spec.worker
    assert worker is not None
    assert (worker.tolerations, worker.affinity) == ((toleration,), affinity)


def test_model_is_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        parsed().spec.replicas = 3  # type: ignore[misc]


def test_status_survives_round_trip() -> None:
    wire = {
        "observedGeneration": 3,
        "readyReplicas": 2,
        "messages": 0,
        "lastScaleTime": "2026-11-24T08:00:00Z",
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "AsExpected",
                "message": "Everything works.",
                "lastTransitionTime": "2026-11-24T08:00:00Z",
                "observedGeneration": 3,
            }
        ],
    }
    status = WorkQueueStatus.model_validate(wire)
    ready = status.condition("Ready")
    assert ready is not None
    assert ready.status is ConditionStatus.TRUE
    assert status.condition("DepthKnown") is None
    assert status.to_wire() == wire


def test_empty_status_is_none() -> None:
    assert WorkQueue.model_validate({**SHORTEST, "status": None}).status == WorkQueueStatus()


def test_foreign_annotations_are_not_kept() -> None:
    annotations = {
        names.ANNOTATION_ABANDON: "true",
        "kubectl.kubernetes.io/last-applied-configuration": "x" * 9999,
    }
    body = {**SHORTEST, "metadata": {**SHORTEST["metadata"], "annotations": annotations}}
    assert WorkQueue.model_validate(body).metadata.annotations == {names.ANNOTATION_ABANDON: "true"}


def test_thousand_workqueues_fit_into_ten_mebibytes() -> None:
    text = json.dumps(SHORTEST)
    tracemalloc.start()
    held = [WorkQueue.model_validate(json.loads(text)) for _ in range(1000)]
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(held) == 1000
    assert size < 10 * 2**20
