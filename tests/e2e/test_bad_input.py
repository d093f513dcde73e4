"""User mistakes: each has its own reason, a message that says what to do, and automatic recovery."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.support.kubernetes import kubectl
from tests.support.operators import OperatorRelease
from tests.support.tiers import some_slow
from tests.support.wait import eventually
from tests.support.workqueues import Lab, WorkQueueUnderTest, refusal

Object = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One mistake.

    Attributes:
        spec: laid over the usual spec.
        secret: the keys that make the connection Secret wrong; None: the Secret does not exist.
        condition: which one says so.
        says: what the message must contain.
        correct: undoes the mistake.
    """

    condition: str
    reason: str
    says: str
    correct: Callable[[Lab, WorkQueueUnderTest, str], object]
    spec: Object | None = None
    secret: dict[str, str] | None = None
    before: Callable[[Lab, str], object] = lambda lab, name: None


def correct_secret(lab: Lab, _: WorkQueueUnderTest, name: str) -> None:
    lab.secret(f"{name}-secret")


def correct_spec(_: Lab, workqueue: WorkQueueUnderTest, __: str) -> None:
    workqueue.change(worker={"image": "workqueue-operator:dev", "handler": {"python": "jobs:record"}})


def declare_otherwise(lab: Lab, name: str) -> None:
    lab.channel.queue_declare(name, durable=True, arguments={"x-queue-type": "quorum", "x-max-length": 7})


def delete_queue(lab: Lab, _: WorkQueueUnderTest, name: str) -> None:
    lab.channel.queue_delete(name)


CASES = {
    "the Secret is missing": Case(
        "QueueDeclared", "SecretNotFound", "does not exist", correct_secret, secret=None
    ),
    "the Secret has no host": Case(
        "QueueDeclared",
        "SecretInvalid",
        "neither the key uri nor the key host",
        correct_secret,
        secret={"host": ""},
    ),
    "the password is wrong": Case(
        "QueueDeclared", "AuthenticationFailed", "password", correct_secret, secret={"password": "wrong"}
    ),
    "the virtual host does not exist": Case(
        "QueueDeclared", "VirtualHostNotFound", "no-such", correct_secret, secret={"virtual_host": "no-such"}
    ),
    "no listener at the port": Case(
        "QueueDeclared",
        "BrokerUnreachable",
        "cannot connect to the broker",
        correct_secret,
        secret={"port": "5999"},
    ),
    "the handler cannot be imported": Case(
        "WorkersAvailable",
        "HandlerFailed",
        "no_such_module",
        correct_spec,
        spec={"worker": {"handler": {"python": "no_such_module:handle"}}, "scaling": {"minReplicas": 1}},
        secret={},
    ),
    "the image cannot be pulled": Case(
        "WorkersAvailable",
        "ImagePullFailed",
        "workqueue-operator:no-such-tag",
        correct_spec,
        spec={
            "worker": {"image": "workqueue-operator:no-such-tag", "imagePullPolicy": "Never"},
            "scaling": {"minReplicas": 1},
        },
        secret={},
    ),
    "the queue exists with other arguments": Case(
        "QueueDeclared",
        "QueueConflict",
        "inequivalent arg",
        delete_queue,
        secret={},
        before=declare_otherwise,
    ),
}


SLOW = {
    "the Secret is missing",
    "the Secret has no host",
    "the virtual host does not exist",
    "no listener at the port",
    "the queue exists with other arguments",
    "the image cannot be pulled",
}
"""The rows of the wrong password and of the handler take the same paths. Faster tests in tests/operator show the
conflict."""


@pytest.mark.parametrize("title", some_slow(CASES, SLOW))
def test_user_mistake_is_named_and_recovered_from(title: str, lab: Lab) -> None:
    case = CASES[title]
    name = f"bad-{list(CASES).index(title)}"
    case.before(lab, name)
    if case.secret is not None:
        lab.secret(f"{name}-secret", **case.secret)
    workqueue = lab.workqueue(
        name, connectionSecretRef={"name": f"{name}-secret"}, **(case.spec or {})
    ).apply()
    condition = workqueue.wait_condition(case.condition, "False", case.reason)
    assert case.says in condition["message"]
    assert workqueue.condition("Ready")["reason"] == case.reason
    assert lab.password not in str(workqueue.get()["status"])
    eventually(lambda: case.reason in workqueue.event_reasons(), 60, f"an Event says {case.reason}")
    if case.reason == "QueueConflict":
        assert {"x-max-length": 7}.items() <= arguments_of(lab, name).items(), "it was not touched"
        assert f"{name}.dead" not in lab.queues(), "and nothing was made beside it"
    case.correct(lab, workqueue, name)
    workqueue.wait_ready()
    workqueue.wait_condition("WorkersAvailable", "True")
    workqueue.publish([{"id": title}])
    assert [result["id"] for result in workqueue.results(1)] == [title]
    workqueue.delete()


def arguments_of(lab: Lab, queue: str) -> Object:
    """The arguments of a queue, in either notation of rabbitmqctl."""
    arguments = lab.queues()[queue]["arguments"]
    if isinstance(arguments, dict):
        return arguments
    return {argument[0]: argument[-1] for argument in arguments}


REFUSED = {
    "no handler": ({"worker": {"handler": {"python": None}}}, "exactly one of"),
    "two targets": ({"scaling": {"targetDrainSeconds": 30}}, "give only one of"),
    "minimum above maximum": (
        {"scaling": {"minReplicas": 9}},
        "scaling.minReplicas is above scaling.maxReplicas",
    ),
    "unknown queue type": ({"queue": {"type": "Stream"}}, "Quorum"),
    "a host path": (
        {"worker": {"volumes": [{"name": "x", "hostPath": {"path": "/"}}]}},
        "hostPath",
    ),
}


@pytest.mark.parametrize("title", REFUSED)
def test_kubectl_apply_refuses_invalid_workqueue_with_advice(title: str, lab: Lab) -> None:
    change, sentence = REFUSED[title]
    assert sentence in refusal(lab.workqueue("refused", **change).body)


@pytest.mark.slow
@pytest.mark.parametrize("user", ["same", "another", "address"])
def test_older_of_two_workqueues_owns_the_queue(user: str, lab: Lab, operator: OperatorRelease) -> None:
    """Also after a restart, when the younger may be listed first. Two users or addresses mean two connections."""
    name = f"claimed-{user}"
    if user == "another":
        lab.rabbit.ctl("add_user", name, "their-password")
        lab.rabbit.ctl("set_permissions", "--vhost", lab.vhost, name, ".*", ".*", ".*")
        lab.secret(name, username=name, password="their-password")
    if user == "address":
        lab.secret(name, host=lab.rabbit.host.removesuffix(".svc"))
    secret = "rabbitmq" if user == "same" else name
    older = lab.workqueue(f"{name}-b", queue={"name": name}).apply().wait_ready()
    eventually(lambda: older.get()["metadata"]["creationTimestamp"] < now(), 60, "a second has passed")
    younger = lab.workqueue(f"{name}-a", queue={"name": name}, connectionSecretRef={"name": secret}).apply()
    condition = younger.wait_condition("QueueDeclared", "False", "QueueClaimed")
    assert f"'{name}-b'" in condition["message"]
    leader = operator.wait_leader()
    kubectl("delete", "pod", leader, "--wait=false", f"--namespace={operator.namespace}")
    operator.wait_leader(other_than=leader)
    # The next leader reports about changed specs only after a pass over each.
    younger.change(scaling={"maxReplicas": 4}).wait_condition("QueueDeclared", "False", "QueueClaimed")
    older.change(scaling={"maxReplicas": 4}).wait_ready()
    eventually(lambda: lab.consumers(name) == 1, 60, "one doorbell is installed, the older's")
    lab.rabbit.publish(lab.channel, name, [{"id": 1}])
    assert len(older.results(1)) == 1
    older.delete()
    younger.wait_ready()
    younger.delete()


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
