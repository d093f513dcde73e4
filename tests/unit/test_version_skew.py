"""Operator and worker images of different releases work together: the contract only grows."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support import contract
from workqueue.contract.signing import Purpose, SignatureCheck, verify
from workqueue.worker import config
from workqueue_operator.kube.views import PodView
from workqueue_operator.reconcile import protection
from workqueue_operator.workers import client, retire

NOW = 1_800_000_000.0

VALUES: dict[str, Any] = {
    "queue": "jobs",
    "slots": 2,
    "busy": 1,
    "consuming": True,
    "queueAnswers": True,
    "retired": False,
    "handled": 7,
    "meanHandlerSeconds": 2.0,
    "recentHandlerSeconds": 1.5,
    "arrivalPerSecond": 0.5,
    "connected": True,
    "lastError": None,
    "retryDelaysSeconds": [60],
    "delayQueues": ["jobs.retry.high.8s"],
    "uptimeSeconds": 90.0,
    "version": "0.1.0",
    "busySeconds": 300.0,
    "received": 8,
    "handlerTimes": {"4": 7},
}
"""What a worker answers to GET /status."""

POD = PodView("a", "uid-a", "10.0.0.1", True, True, False, "h", False, None, created=NOW - 600)

earlier_releases = pytest.mark.parametrize("file", contract.EARLIER, ids=lambda file: file.stem)


def recorded(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


@pytest.fixture
def binding(tmp_path: Path) -> Path:
    """The mounted connection Secret."""
    for key, value in {"host": "rabbitmq", "username": "jobs", "password": "s3cret"}.items():
        (tmp_path / key).write_text(value)
    return tmp_path


def grows(earlier: Any, now: Any) -> bool:
    """Whether nothing that was there is missing or different."""
    if isinstance(earlier, Mapping):
        return all(name in now and grows(value, now[name]) for name, value in earlier.items())
    if isinstance(earlier, list) and all(isinstance(one, str) for one in earlier):
        return set(earlier) <= set(now)
    return bool(earlier == now)


@earlier_releases
def test_contract_has_everything_of_an_earlier_release(file: Path) -> None:
    earlier, now = recorded(file), contract.shape()
    del earlier["example"]
    assert {name: grows(part, now[name]) for name, part in earlier.items()} == dict.fromkeys(earlier, True)


@earlier_releases
@pytest.mark.parametrize(("busy", "asked"), [(0, ["a"]), (1, [])], ids=["idle", "busy"])
def test_operator_works_with_a_worker_of_an_earlier_release(file: Path, busy: int, asked: list[str]) -> None:
    answer = {name: VALUES[name] for name in recorded(file)["status"]} | {"busy": busy}

    status = client._parse(answer)

    assert (status.slots, status.busy, status.handler_seconds, status.queue_answers) == (2, busy, 1.5, True)
    assert [pod.name for pod in retire.plan([POD], {"a": status}, 1, NOW).ask] == asked
    assert protection.plan([POD], {"a": status}) == protection.ProtectionPlan(), (
        "what is unknown changes nothing"
    )


@earlier_releases
def test_worker_works_with_an_operator_of_an_earlier_release(file: Path, binding: Path) -> None:
    earlier = recorded(file)
    environment = {
        **earlier["example"]["environment"],
        "WORKQUEUE_BINDING": str(binding),
        "WORKQUEUE_POD_UID": "uid",
    }

    made = config.parse(Namespace(), environment)

    assert (made.queue, made.pod_uid, made.port) == ("jobs", "uid", earlier["port"])
    signature = earlier["signature"]
    for purpose, header in ((Purpose.RETIRE, signature["toRetire"]), (Purpose.RESUME, signature["toResume"])):
        assert verify(header, purpose, "uid", b"key", NOW) is SignatureCheck.GOOD


def test_worker_ignores_variables_of_a_later_release(binding: Path) -> None:
    environment = {**contract.shape()["example"]["environment"], "WORKQUEUE_BINDING": str(binding)}
    assert config.parse(Namespace(), environment) == config.parse(
        Namespace(), {**environment, "WORKQUEUE_OF_A_LATER_RELEASE": "1"}
    )


def test_operator_ignores_status_fields_of_a_later_release() -> None:
    assert client._parse(VALUES) == client._parse({**VALUES, "ofALaterRelease": {"x": 1}})
