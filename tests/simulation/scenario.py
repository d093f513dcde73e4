"""What happens in one run: WorkQueues, messages, faults and users, all drawn from the seed.

A scenario is data. So a failing one can be run again without some of its steps.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any, Final

MINUTES: Final = 10
FIRST: Final = 25.0
"""Seconds until the first fault."""

LAST: Final = 330.0
"""Seconds after which nothing new begins. Every fault has ended by `LAST` + its longest duration."""

END: Final = 60.0 * MINUTES


@dataclass(frozen=True)
class WorkQueueSpec:
    """One WorkQueue of a scenario."""

    namespace: str
    name: str
    host: str
    spec: dict[str, Any]

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.namespace, self.name

    @property
    def queue(self) -> str:
        """Its queue."""
        return str(self.spec.get("queue", {}).get("name") or self.name)


@dataclass(frozen=True)
class Step:
    """One thing that happens.

    Attributes:
        what: the name of a method of `Stage`, with spaces.
        seconds: for how long; 0 for a moment.
    """

    at: float
    what: str
    arguments: tuple[Any, ...] = ()
    seconds: float = 0.0

    def __str__(self) -> str:
        about = ", ".join(map(str, self.arguments))
        during = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.what}{f' ({about})' if about else ''}{during}"


@dataclass(frozen=True)
class Scenario:
    """One run."""

    seed: int
    brokers: int
    nodes: int
    standby: bool
    workqueues: tuple[WorkQueueSpec, ...]
    steps: tuple[Step, ...] = field(default=())

    def without(self, left_out: set[int]) -> Scenario:
        """The same without some steps."""
        return replace(self, steps=tuple(s for n, s in enumerate(self.steps) if n not in left_out))


def host(number: int) -> str:
    """The address of a broker."""
    return f"10.1.0.{number + 1}"


def draw(seed: int) -> Scenario:
    """Draw a scenario."""
    chance = random.Random(f"scenario {seed}")
    brokers = chance.choice([1, 1, 2, 2, 3])
    workqueues = tuple(_workqueue(chance, number, brokers) for number in range(chance.choice([1, 2, 2, 3])))
    if chance.random() < 0.15:
        workqueues += (_twin(chance, workqueues[0]),)
    steps = [*_load(chance, workqueues), *_faults(chance, workqueues, brokers)]
    return Scenario(
        seed,
        brokers,
        chance.choice([2, 3]),
        chance.random() < 0.3,
        workqueues,
        tuple(sorted(steps, key=lambda step: step.at)),
    )


def _workqueue(chance: random.Random, number: int, brokers: int) -> WorkQueueSpec:
    scaling: dict[str, Any] = {
        "scaleInDelaySeconds": chance.choice([0, 2, 5, 10, 20]),
        "minReplicas": chance.choice([0, 0, 0, 0, 1, 2]),
        "maxReplicas": chance.choice([2, 3, 4, 6]),
    }
    if chance.random() < 0.25:
        scaling[chance.choice(["targetDrainSeconds", "maxWaitSeconds"])] = 10
    else:
        scaling["messagesPerReplica"] = chance.choice([1, 1, 2, 5])
    if chance.random() < 0.15:
        scaling["wake"] = "Poll"
    spec: dict[str, Any] = {
        "connectionSecretRef": {"name": f"rabbitmq-{number}"},
        "worker": {
            "image": "jobs:1",
            "handler": {"python": "jobs:handle"},
            "concurrency": chance.choice([1, 1, 1, 2, 3]),
            "timeoutSeconds": 120,
        },
        "retry": {"maxAttempts": 3, "delaysSeconds": chance.choice([[1], [1, 5], [2, 10]])},
        "scaling": scaling,
        "queue": {
            "type": chance.choice(["Quorum", "Quorum", "Quorum", "Classic"]),
            "deletionPolicy": chance.choice(["Retain", "Retain", "DeleteIfEmpty"]),
        },
    }
    return WorkQueueSpec(
        chance.choice(["team", "team", "other"]), f"q{number}", host(chance.randrange(brokers)), spec
    )


def _twin(chance: random.Random, one: WorkQueueSpec) -> WorkQueueSpec:
    """A second WorkQueue on the same queue, through another address of its broker."""
    queue = {**one.spec["queue"], "name": one.queue, "deletionPolicy": chance.choice(["Delete", "Retain"])}
    spec = {**one.spec, "connectionSecretRef": {"name": "rabbitmq-twin"}, "queue": queue}
    return WorkQueueSpec("twins", "twin", one.host.replace("10.1.0.", "10.1.1."), spec)


def _load(chance: random.Random, workqueues: tuple[WorkQueueSpec, ...]) -> list[Step]:
    steps = []
    for workqueue in workqueues:
        if workqueue.name == "twin":
            continue
        for _ in range(chance.choice([2, 3, 4, 5])):
            at = chance.uniform(8.0, LAST + 20.0)
            for _ in range(chance.choice([1, 1, 2, 4])):
                count = chance.choice([1, 1, 2, 3, 6, 12])
                seconds = chance.choice([0.05, 0.3, 1.0, 3.0, 8.0, 20.0])
                kind = chance.choice(["ok"] * 8 + ["fails", "fails once", "crashes"])
                if seconds >= 8.0:
                    # So that the workers can handle everything before the end.
                    count, kind = min(count, 3), "ok"
                if kind == "crashes":
                    count = min(count, 3)
                steps.append(Step(at, "publish", (*workqueue.key, count, seconds, kind)))
                at += chance.uniform(0.5, 20.0)
    return [step for step in steps if step.at < LAST + 40.0]


_BROKER: Final = {
    "broker restarts": (1.0, 30.0),
    "broker hangs": (3.0, 40.0),
    "connections are lost": (0.0, 0.0),
    "queue loses its majority": (5.0, 60.0),
    "queue elects a leader": (0.3, 4.0),
    "broker has a memory alarm": (5.0, 60.0),
    "broker is slow": (5.0, 40.0),
    "broker is cut from the operator": (5.0, 40.0),
    "password is rotated": (0.0, 0.0),
}
_API: Final = {
    "API server is down": (1.0, 30.0),
    "API server is slow": (5.0, 60.0),
    "API server refuses requests": (5.0, 40.0),
    "API server loses answers": (5.0, 40.0),
    "all watches lag": (5.0, 60.0),
    "watch lags": (5.0, 60.0),
    "watch breaks": (0.5, 20.0),
    "ReplicaSet controller sees pods late": (5.0, 60.0),
    "ReplicaSet controller sees sets late": (5.0, 60.0),
    "Deployment controller stands still": (3.0, 50.0),
    "ReplicaSet controller stands still": (3.0, 50.0),
}
_PODS: Final = {
    "pods start slowly": (20.0, 90.0),
    "node is lost": (5.0, 60.0),
    "pod is evicted": (0.0, 0.0),
    "worker crashes": (0.0, 0.0),
    "pod is deleted": (0.0, 0.0),
    "pods are unreachable": (10.0, 90.0),
    "confirms are late": (10.0, 60.0),
}
_POLICY: Final = {
    "quota limits pods": (20.0, 120.0),
    "policy limits replicas": (20.0, 120.0),
    "webhook refuses new templates": (20.0, 120.0),
}
_OPERATOR: Final = {
    "operator is killed": (0.5, 6.0),
    "operator is restarted": (0.5, 3.0),
    "operator is frozen": (1.0, 25.0),
}
_USERS: Final = {
    "user changes the image": (0.0, 0.0),
    "user sets a bad image": (10.0, 40.0),
    "user pins the count": (10.0, 60.0),
    "user suspends": (10.0, 40.0),
    "user changes the maximum": (0.0, 0.0),
    "user scales the Deployment": (0.0, 0.0),
    "user moves to another broker": (0.0, 0.0),
    "user deletes the WorkQueue": (5.0, 20.0),
    "user deletes the queue": (0.0, 0.0),
}
_KINDS: Final = (_BROKER, _API, _API, _PODS, _PODS, _POLICY, _OPERATOR, _USERS, _USERS)


def _faults(chance: random.Random, workqueues: tuple[WorkQueueSpec, ...], brokers: int) -> list[Step]:
    steps = []
    for _ in range(chance.choice([1, 2, 3, 4, 5, 6, 8])):
        kind = chance.choice(_KINDS)
        what = chance.choice(list(kind))
        least, most = kind[what]
        seconds = round(chance.uniform(least, most), 1)
        at = round(chance.uniform(FIRST, LAST), 1)
        steps.append(Step(at, what, _arguments(chance, what, workqueues, brokers), seconds))
        steps += _companions(chance, steps[-1], workqueues)
    return steps


def _companions(chance: random.Random, step: Step, workqueues: tuple[WorkQueueSpec, ...]) -> list[Step]:
    """What makes a fault matter: a change that a webhook refuses, a backlog that a quota limits."""
    near = [one for one in workqueues if one.namespace in step.arguments and one.name != "twin"]
    if not near or chance.random() < 0.4:
        return []
    one = chance.choice(near)
    backlog = Step(step.at + chance.uniform(1.0, 3.0), "publish", (*one.key, 8, 5.0, "ok"))
    late = Step(step.at + chance.uniform(60.0, 80.0), "publish", (*one.key, 1, 1.0, "ok"))
    match step.what:
        case "webhook refuses new templates":
            return [Step(step.at + 1.0, "user changes the image", one.key), late]
        case "quota limits pods" | "policy limits replicas" | "pods are unreachable":
            return [backlog]
        case "queue loses its majority" | "queue elects a leader":
            return [Step(step.at + chance.uniform(0.0, 4.0), "publish", (*one.key, 3, 3.0, "ok"))]
    return []


def _arguments(  # noqa: C901, PLR0911, PLR0912 - one case for each step
    chance: random.Random, what: str, workqueues: tuple[WorkQueueSpec, ...], brokers: int
) -> tuple[Any, ...]:
    workqueue = chance.choice(workqueues)
    number = chance.randrange(1000)
    match what:
        case (
            "broker restarts"
            | "broker hangs"
            | "connections are lost"
            | "broker has a memory alarm"
            | "broker is slow"
        ):
            return (host(chance.randrange(brokers)),)
        case "broker is cut from the operator" | "password is rotated":
            return (host(chance.randrange(brokers)),)
        case "watch lags" | "watch breaks":
            return (chance.choice(["workqueues", "deployments", "pods"]), chance.choice([0.5, 2.0, 6.0]))
        case "ReplicaSet controller sees pods late" | "ReplicaSet controller sees sets late":
            return (chance.choice([0.3, 1.0, 3.0, 8.0]),)
        case "API server is slow":
            return (chance.choice([0.2, 1.0, 3.0, 6.0]),)
        case "node is lost" | "pod is evicted" | "worker crashes" | "pod is deleted":
            return (number,)
        case "quota limits pods" | "policy limits replicas":
            return (workqueue.namespace, chance.choice([1, 2, 3]))
        case "pods are unreachable" | "webhook refuses new templates":
            return (workqueue.namespace,)
        case "user pins the count":
            return (*workqueue.key, chance.choice([0, 1, 2, 3]))
        case "user changes the maximum":
            return (*workqueue.key, chance.choice([2, 3, 5]))
        case "user scales the Deployment":
            return (*workqueue.key, chance.choice([0, 1, 2, 4]))
        case "user moves to another broker":
            return (*workqueue.key, host(chance.randrange(brokers)))
        case "operator is killed" | "operator is restarted" | "operator is frozen":
            return ()
    if what.startswith(("user", "queue")):
        return workqueue.key
    return ()
