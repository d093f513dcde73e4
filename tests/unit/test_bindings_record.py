"""The record of bindings when the API server does not take it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fakecluster import FakeCluster, Request
from tests.support.workqueue import workqueue
from workqueue_operator.api.reasons import Reason
from workqueue_operator.broker.bindings import Bindings, noted, wanted
from workqueue_operator.errors import ClusterError, ReconcileError
from workqueue_operator.kube.store import Store

IMAGES = workqueue(queue={"exchange": {"name": "images", "type": "Topic", "routingKeys": ["small"]}})
POLICY = "ValidatingAdmissionPolicy 'no-annotations' denied request"
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
        await Bindings(cluster, Store(lambda _: None)).announce(IMAGES)

    assert raised.value.reason is reason
    assert words in raised.value.message
    assert "'workqueue.dev/bindings'" in raised.value.message


async def test_record_keeps_arguments_and_reads_its_own_text() -> None:
    cluster = FakeCluster()
    written: list[str] = []

    def answer(request: Request) -> dict[str, Any]:
        written.append(request.body["metadata"]["annotations"]["workqueue.dev/bindings"])
        return workqueue().to_wire() | {
            "metadata": {"namespace": "team", "name": "jobs", "resourceVersion": "2"}
        }

    cluster.answer("PATCH", "/workqueues/jobs", answer)
    bindings = [
        {"exchange": "amq.topic", "routingKey": "a.#"},
        {"exchange": "amq.headers", "arguments": {"format": "pdf", "x-match": "any"}},
    ]
    made = workqueue(queue={"bindings": bindings})

    await Bindings(cluster, Store(lambda _: None)).announce(made)

    (text,) = written
    again = workqueue(
        metadata={"annotations": {"workqueue.dev/bindings": text}}, queue={"bindings": bindings}
    )
    assert noted(again) == wanted(again)
    assert {binding.exchange for binding in noted(again)} == {"amq.topic", "amq.headers"}


async def test_unreachable_api_server_refuses_no_record() -> None:
    cluster = FakeCluster()
    cluster.answer("PATCH", "/workqueues/jobs", ClusterError(0, "no answer"))

    with pytest.raises(ClusterError):
        await Bindings(cluster, Store(lambda _: None)).announce(IMAGES)
