"""Dead letters that the page must not read."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fakecluster import FakeCluster
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.kube.secrets import Secrets
from workqueue_web.dead_letters import DeadLetters


def workqueue(secret: str = "rabbitmq", **queue: Any) -> WorkQueue:
    return WorkQueue.model_validate(
        {
            "apiVersion": "workqueue.dev/v1alpha1",
            "kind": "WorkQueue",
            "metadata": {
                "name": "jobs",
                "namespace": "shop",
                "uid": "u",
                "generation": 1,
                "resourceVersion": "1",
                "creationTimestamp": "2026-11-24T00:00:00Z",
            },
            "spec": {
                "connectionSecretRef": {"name": secret},
                "queue": queue,
                "worker": {"image": "x:1", "handler": {"python": "a:b"}},
            },
        }
    )


@pytest.mark.parametrize(
    ("of", "advice"),
    [
        (workqueue("private"), 'may not read the Secret "private"'),
        (workqueue(declare=False, name="jobs"), "does not declare this queue"),
        (workqueue(deadLetterQueue="failed"), "does not declare this dead-letter queue"),
    ],
    ids=["secret-not-listed", "queue-not-declared", "dead-letter-queue-not-declared"],
)
async def test_page_reads_no_secret_without_permission(of: WorkQueue, advice: str) -> None:
    cluster = FakeCluster()
    reasons = await DeadLetters(Secrets(cluster), ("rabbitmq",)).reasons(of)
    assert advice in reasons.problem
    assert cluster.asked == []


async def test_missing_secret_is_reported() -> None:
    dead_letters = DeadLetters(Secrets(FakeCluster()), ("rabbitmq",))
    reasons = await dead_letters.reasons(workqueue())
    assert 'The Secret "rabbitmq" does not exist in namespace "shop".' in reasons.problem
