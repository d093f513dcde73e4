"""The record of bindings: its text, and an API server that does not take it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.fakecluster import FakeCluster, Request
from tests.support.workqueue import workqueue
from workqueue_operator.api.reasons import Reason
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.broker.bindings import BROKERS_KEPT, Bindings, recorded, wanted
from workqueue_operator.errors import ClusterError, ReconcileError
from workqueue_operator.kube.store import Store
from workqueue_operator.names import ANNOTATION_BINDINGS

IMAGES = workqueue(queue={"exchange": {"name": "images", "type": "Topic", "routingKeys": ["small"]}})
POLICY = "ValidatingAdmissionPolicy 'no-annotations' denied request"
BROKER, OTHER = "amqp://rabbitmq:5672/", "amqp://other:5672/"
RIGHTS = 'workqueues.workqueue.dev "jobs" is forbidden: User "operator" cannot patch'


@pytest.mark.parametrize(
    ("words", "reason"),
    [(POLICY, Reason.WORKLOAD_REFUSED), (RIGHTS, Reason.API_FORBIDDEN)],
    ids=["policy", "missing-rights"],
)
async def test_denied_record_is_a_problem_in_the_words_of_the_api_server(words: str, reason: Reason) -> None:
    cluster = FakeCluster()
    cluster.answer("PATCH", "/workqueues/jobs", ClusterError(403, words))

    with pytest.raises(ReconcileError) as raised:
        await Bindings(cluster, Store(lambda _: None)).announce(IMAGES, BROKER)

    assert raised.value.reason is reason
    assert words in raised.value.message
    assert "'workqueue.dev/bindings'" in raised.value.message


class Api:
    """An API server that keeps the record of one WorkQueue."""

    def __init__(self, text: str | None = None) -> None:
        self.text = text
        self.cluster = FakeCluster()
        self.cluster.answer("PATCH", "/workqueues/jobs", self._patch)

    def workqueue(self, **queue: Any) -> WorkQueue:
        annotations = {} if self.text is None else {ANNOTATION_BINDINGS: self.text}
        return workqueue(metadata={"annotations": annotations}, queue=queue)

    async def announce(self, broker: str, *keys: str) -> None:
        exchange = {"name": "images", "type": "Topic", "routingKeys": [*keys]}
        await Bindings(self.cluster, Store(lambda _: None)).announce(
            self.workqueue(exchange=exchange), broker
        )

    def _patch(self, request: Request) -> dict[str, Any]:
        self.text = request.body["metadata"]["annotations"][ANNOTATION_BINDINGS]
        metadata = {"namespace": "team", "name": "jobs", "resourceVersion": "2"}
        return workqueue().to_wire() | {"metadata": metadata}


async def test_record_keeps_arguments_and_reads_its_own_text() -> None:
    api = Api()
    bindings = [
        {"exchange": "amq.topic", "routingKey": "a.#"},
        {"exchange": "amq.headers", "arguments": {"format": "pdf", "x-match": "any"}},
    ]
    made = api.workqueue(bindings=bindings)

    await Bindings(api.cluster, Store(lambda _: None)).announce(made, BROKER)

    again = api.workqueue(bindings=bindings)
    (found,) = recorded(again, BROKER).values()
    assert found == wanted(again)
    assert {binding.exchange for binding in found} == {"amq.topic", "amq.headers"}


async def test_record_without_a_broker_is_of_the_present_one_and_gets_its_name() -> None:
    api = Api('{"images": ["small"]}')

    await api.announce(BROKER, "small")

    assert json.loads(api.text or "") == [{"broker": BROKER, "bindings": {"images": ["small"]}}]


async def test_record_names_each_broker_with_the_latest_ones_kept() -> None:
    api = Api()
    await api.announce(BROKER, "small")

    await api.announce(OTHER, "large")

    bindings = {one["broker"]: one["bindings"]["images"] for one in json.loads(api.text or "")}
    assert bindings == {BROKER: ["small"], OTHER: ["large"]}
    others = [f"amqp://rabbitmq-{number}:5672/" for number in range(BROKERS_KEPT)]
    for other in others:
        await api.announce(other, "large")
    assert [one["broker"] for one in json.loads(api.text or "")] == others


async def test_unreachable_api_server_refuses_no_record() -> None:
    cluster = FakeCluster()
    cluster.answer("PATCH", "/workqueues/jobs", ClusterError(0, "no answer"))

    with pytest.raises(ClusterError):
        await Bindings(cluster, Store(lambda _: None)).announce(IMAGES, BROKER)
