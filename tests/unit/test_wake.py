"""When the first pass of a process sets nothing but the doorbell."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.support.objects import merged
from tests.support.passes import workqueue
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.kube.views import DeploymentView, PodView
from workqueue_operator.scaling.wake import slept

BROKER = "amqp://rabbitmq:5672/"
NOBODY = DeploymentView(
    name="jobs-worker",
    uid="d",
    generation=1,
    replicas=0,
    current=0,
    ready=0,
    rolled_out=True,
    template_hash="h",
    refusal=None,
    broker=BROKER,
)


def status(generation: int = 1, ready: str = "True", workers: str = "ScaledToZero") -> dict[str, Any]:
    reasons = {"Ready": (ready, "AsExpected"), "WorkersAvailable": ("True", workers)}
    conditions = [
        {
            "type": kind,
            "status": state,
            "reason": reason,
            "message": "…",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        for kind, (state, reason) in reasons.items()
    ]
    return {"observedGeneration": generation, "conditions": conditions}


def asks(
    change: dict[str, Any], shown: dict[str, Any], view: DeploymentView = NOBODY, *pods: PodView
) -> bool:
    body = merged({**workqueue(), "status": shown}, {"spec": change})
    return slept(WorkQueue.model_validate(body), view, pods, BROKER)


def test_workqueue_at_zero_whose_status_is_current_needs_only_its_doorbell() -> None:
    assert asks({}, status())


@pytest.mark.parametrize(
    "change",
    [
        {"queue": {"declare": False}},
        {"scaling": {"wake": "Poll"}},
        {"scaling": {"schedules": [{"start": "0 8 * * *", "end": "0 18 * * *", "minReplicas": 1}]}},
        {"replicas": 0},
        {"scaling": {"minReplicas": 1}},
        {"limits": {"concurrency": 2}},
        {"recurring": [{"name": "a", "cron": "0 8 * * *"}]},
    ],
    ids=["a queue of others", "wake Poll", "schedules", "a pin", "a minimum", "limits", "recurring messages"],
)
def test_spec_that_needs_more_than_a_message_gets_a_whole_pass(change: dict[str, Any]) -> None:
    assert not asks(change, status())


@pytest.mark.parametrize(
    "shown",
    [{}, status(generation=0), status(ready="False"), status(workers="WorkersStarting")],
    ids=["none", "of an earlier spec", "not Ready", "with workers"],
)
def test_other_status_gets_a_whole_pass(shown: dict[str, Any]) -> None:
    assert not asks({}, shown)


@pytest.mark.parametrize(
    "view",
    [
        replace(NOBODY, replicas=1),
        replace(NOBODY, current=1),
        replace(NOBODY, broker="amqp://other:5672/"),
    ],
    ids=["with a count", "with a pod", "of another broker"],
)
def test_other_deployment_gets_a_whole_pass(view: DeploymentView) -> None:
    assert not asks({}, status(), view)


def test_last_pod_gets_a_whole_pass() -> None:
    assert not asks({}, status(), NOBODY, PodView("p", "u", "", True, True, True, "h", True, None))
