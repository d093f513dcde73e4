"""What happens in one run: WorkQueues, messages, faults and users, all drawn from the seed.

A scenario is data. So a failing one can be run again without some of its steps.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
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

    @cached_property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.namespace, self.name

    @cached_property
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
    """One run.

    Attributes:
        standby: whether a second operator waits for the Lease. It does nothing else, and only a fault of the first
            operator or of the API server ends the Lease.
    """

    seed: int
    brokers: int
    nodes: int
    standby: bool
    workqueues: tuple[WorkQueueSpec, ...]
    steps: tuple[Step, ...] = field(default=())

    def without(self, left_out: set[int]) -> Scenario:
        """The same without some steps."""
        return replace(self, steps=tuple(s for n, s in enumerate(self.steps) if n not in left_out))


@dataclass(frozen=True)
class _Size:
    """How much happens in a run: numbers to choose from."""

    workqueues: tuple[int, ...]
    bursts: tuple[int, ...]
    faults: tuple[int, ...]


_SMALL: Final = _Size((1, 1, 2), (1, 2, 3), (1, 2, 2, 3))
_LARGE: Final = _Size((2, 2, 3), (3, 4, 5), (3, 4, 5, 6, 8))


def host(number: int) -> str:
    """The address of a broker."""
    return f"10.1.0.{number + 1}"


def draw(seed: int) -> Scenario:
    """Draw a scenario."""
    chance = random.Random(f"scenario {seed}")
    brokers = chance.choice([1, 1, 2, 2, 3])
    # Most runs are small. A small one costs half of a large one.
    size = _SMALL if chance.random() < 0.9 else _LARGE
    workqueues = tuple(
        _workqueue(chance, number, brokers) for number in range(chance.choice(size.workqueues))
    )
    if chance.random() < 0.15:
        workqueues += (_twin(chance, workqueues[0]),)
    workqueues = tuple(
        _with_features(random.Random(f"features {seed} {one.name}"), one) for one in workqueues
    )
    workqueues = tuple(_with_rate(random.Random(f"rate {seed}"), one) for one in workqueues)
    steps = [
        *_load(chance, workqueues, size),
        *_faults(chance, workqueues, brokers, size),
        *_delayed(random.Random(f"delays {seed}"), workqueues),
        *_cancelled(random.Random(f"cancels {seed}"), workqueues),
        *_beside_a_lost_majority(random.Random(f"majority {seed}"), workqueues),
    ]
    steps = _with_rare_moment(random.Random(f"moment {seed}"), workqueues[0], steps)
    return Scenario(
        seed,
        brokers,
        chance.choice([2, 3]),
        chance.random() < 0.3 and any(step.what.startswith(("operator", "API server")) for step in steps),
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


def _with_features(chance: random.Random, one: WorkQueueSpec) -> WorkQueueSpec:
    """Some WorkQueues have a limit, or recurring messages."""
    if one.name == "twin":
        return one
    added: dict[str, Any] = {}
    if chance.random() < 0.2:
        added["limits"] = {"concurrency": chance.choice([2, 3])}
        if chance.random() < 0.5:
            added["limits"]["group"] = "shared"
    if chance.random() < 0.15:
        every = chance.choice([20, 30, 60])
        added["recurring"] = [{"name": "tick", "everySeconds": every, "body": "0.3 ok", "missed": "Skip"}]
    return replace(one, spec={**one.spec, **added})


def _with_rate(chance: random.Random, one: WorkQueueSpec) -> WorkQueueSpec:
    """Some WorkQueues limit the starts of handlers. Those of one seed have the same numbers, as a group must."""
    per_second, burst = chance.choice([0.5, 1, 2, 5]), chance.choice([1, 2, 4])
    if one.name not in chance.choice([(), (), (), (), (), (), (), (), ("q0",), ("q0", "q1")]):
        return one
    limits = {**one.spec.get("limits", {}), "ratePerSecond": per_second, "burst": burst}
    return replace(one, spec={**one.spec, "limits": limits})


def _twin(chance: random.Random, one: WorkQueueSpec) -> WorkQueueSpec:
    """A second WorkQueue on the same queue, through another address of its broker."""
    queue = {**one.spec["queue"], "name": one.queue, "deletionPolicy": chance.choice(["Delete", "Retain"])}
    spec = {**one.spec, "connectionSecretRef": {"name": "rabbitmq-twin"}, "queue": queue}
    return WorkQueueSpec("twins", "twin", one.host.replace("10.1.0.", "10.1.1."), spec)


def _load(chance: random.Random, workqueues: tuple[WorkQueueSpec, ...], size: _Size) -> list[Step]:
    steps = []
    for workqueue in workqueues:
        if workqueue.name == "twin":
            continue
        for _ in range(chance.choice(size.bursts)):
            at = chance.uniform(8.0, LAST + 20.0)
            for _ in range(chance.choice([1, 1, 2, 4])):
                count = chance.choice([1, 1, 2, 3, 6, 12])
                seconds = chance.choice([0.05, 0.3, 1.0, 3.0, 8.0, 20.0])
                kind = chance.choice(["ok"] * 8 + ["fails", "fails once", "crashes"])
                if "limits" in workqueue.spec:
                    seconds = min(seconds, 1.0)
                if seconds >= 8.0:
                    # So that the workers can handle everything before the end.
                    count, kind = min(count, 3), "ok"
                if kind == "crashes":
                    count = min(count, 3)
                steps.append(Step(at, "publish", (*workqueue.key, count, seconds, kind)))
                at += chance.uniform(0.5, 20.0)
    return [step for step in steps if step.at < LAST + 40.0]


def _delayed(chance: random.Random, workqueues: tuple[WorkQueueSpec, ...]) -> list[Step]:
    """Messages that are due later."""
    return [
        Step(
            chance.uniform(10.0, LAST),
            "publish later",
            (
                *one.key,
                chance.choice([1, 2]),
                chance.choice([0.05, 1.0]),
                chance.choice([1.0, 4.5, 13.0, 40.0]),
            ),
        )
        for one in workqueues
        if one.name != "twin" and chance.random() < 0.25
        for _ in range(chance.choice([1, 2]))
    ]


def _cancelled(chance: random.Random, workqueues: tuple[WorkQueueSpec, ...]) -> list[Step]:
    """Messages that a user cancels: before, while and after a handler runs, and before other workers start."""
    steps = []
    for one in workqueues:
        if one.name == "twin" or chance.random() > 0.1:
            continue
        for _ in range(chance.choice([1, 2])):
            at = chance.uniform(10.0, LAST)
            seconds, later = chance.choice([0.3, 1.0, 3.0]), chance.choice([0.0, 4.5, 13.0])
            what = ("publish later", later) if later else ("publish", "ok")
            steps.append(Step(at, what[0], (*one.key, chance.choice([2, 4, 6]), seconds, what[1])))
            steps += [
                Step(
                    at + chance.uniform(0.01, 8.0),
                    "user cancels a message",
                    (*one.key, chance.randrange(1000), chance.random() < 0.5),
                )
                for _ in range(chance.choice([1, 2, 3]))
            ]
    return steps


def _beside_a_lost_majority(chance: random.Random, workqueues: tuple[WorkQueueSpec, ...]) -> list[Step]:
    """The neighbour of a queue without a majority gets a message. Both have their doorbells on one connection."""
    pairs = [
        (one, other)
        for one in workqueues
        for other in workqueues
        if one is not other and one.host == other.host and one.spec["queue"]["type"] == "Quorum"
    ]
    if not pairs or chance.random() > 0.15:
        return []
    (one, other), at = chance.choice(pairs), round(chance.uniform(FIRST, LAST), 1)
    lost = Step(at, "queue loses its majority", one.key, round(chance.uniform(30.0, 110.0), 1))
    return [lost, *_doorbell_goes_without_majority(chance, lost, one, [one, other])]


def _with_rare_moment(chance: random.Random, one: WorkQueueSpec, steps: list[Step]) -> list[Step]:
    """A fault that lasts, or meets a short moment. Until it is over, this WorkQueue gets no other messages.

    Without that, a thousand seeds hardly meet these moments.
    """
    if chance.random() > 0.08:
        return steps
    at, begin = round(chance.uniform(FIRST + 10.0, 80.0), 1), chance.choice(_RARE_MOMENTS)
    story = begin(chance, at, one)
    ends = max(step.at + step.seconds for step in story)
    first = min(step.at for step in story) - 30.0
    quiet = [
        step
        for step in steps
        if not (step.what.startswith("publish") and step.arguments[:2] == one.key and first < step.at < ends)
    ]
    return [*quiet, *story]


def _quota_outlasts_a_backlog(chance: random.Random, at: float, one: WorkQueueSpec) -> list[Step]:
    limit = Step(at, "quota limits pods", (one.namespace, chance.choice([1, 2])), 220.0)
    return [limit, _publish(limit, 2.0, one, 8, 1.0)]


def _counts_are_refused(_: Any, at: float, one: WorkQueueSpec) -> list[Step]:
    refused = Step(at, "API server refuses counts", (), 25.0)
    return [refused, _publish(refused, 1.0, one, 2, 1.0)]


def _new_pods_are_seen_late(chance: random.Random, at: float, one: WorkQueueSpec) -> list[Step]:
    """Their workers have messages while the operator does not know their node."""
    late = Step(at, "watch lags", ("pods", chance.choice([4.0, 8.0, 15.0])), 45.0)
    # The first message proves the template.
    return [
        _publish(late, -15.0, one, 1, 1.0),
        late,
        _publish(late, 1.0, one, 6, 0.05),
        *(_publish(late, after, one, 1, 6.0) for after in (3.0, 4.0, 5.0, 6.0)),
    ]


def _pod_goes_while_the_watch_is_broken(chance: random.Random, _: float, one: WorkQueueSpec) -> list[Step]:
    """The next worker could not leave if the operator still had that pod in mind."""
    # The operators have just listed everything, and the next time comes after the end of the run.
    at = round(chance.uniform(312.0, LAST), 1)
    broken = Step(at, "watch breaks", ("pods", 0.0), 12.0)
    delay = one.spec["scaling"]["scaleInDelaySeconds"]
    before = _publish(broken, -(delay + chance.uniform(1.0, 3.0)), one, 1, 1.0)
    return [before, broken, _publish(broken, 15.0, one, 1, 1.0)]


_RARE_MOMENTS: Final = (
    _quota_outlasts_a_backlog,
    _counts_are_refused,
    _new_pods_are_seen_late,
    _pod_goes_while_the_watch_is_broken,
)

_BROKER: Final = {
    "broker restarts": (1.0, 70.0),
    "broker hangs": (3.0, 70.0),
    "connections are lost": (0.0, 0.0),
    "queue loses its majority": (5.0, 110.0),
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
    "API server refuses statuses": (3.0, 10.0),
    "API server refuses one count": (0.0, 0.0),
    "all watches lag": (5.0, 60.0),
    "watch lags": (5.0, 60.0),
    "watch breaks": (0.5, 20.0),
    "ReplicaSet controller sees pods late": (5.0, 60.0),
    "ReplicaSet controller sees sets late": (5.0, 60.0),
    "Deployment controller stands still": (3.0, 70.0),
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
    "quota limits pods": (60.0, 180.0),
    "policy limits replicas": (20.0, 120.0),
    "webhook refuses new templates": (20.0, 120.0),
}
_OPERATOR: Final = {
    "operator is killed": (0.5, 6.0),
    "operator is restarted": (0.5, 3.0),
    "operator is frozen": (1.0, 25.0),
}
_SCALE_IN: Final = {
    "operator is killed in a scale-in": (30.0, 60.0),
    "operator is frozen in a scale-in": (30.0, 60.0),
    "API server queues requests in a scale-in": (30.0, 60.0),
}
"""The fault comes at the next scale-in within this time."""

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
_KINDS: Final = (_BROKER, _API, _API, _PODS, _PODS, _POLICY, _OPERATOR, _SCALE_IN, _USERS, _USERS)


def _faults(
    chance: random.Random, workqueues: tuple[WorkQueueSpec, ...], brokers: int, size: _Size
) -> list[Step]:
    steps = []
    for _ in range(chance.choice(size.faults)):
        kind = chance.choice(_KINDS)
        what = chance.choice(list(kind))
        least, most = kind[what]
        seconds = round(chance.uniform(least, most), 1)
        at = round(chance.uniform(FIRST, LAST), 1)
        steps.append(Step(at, what, _arguments(chance, what, workqueues, brokers), seconds))
        steps += _story(chance, steps[-1], workqueues)
    return steps


def _story(chance: random.Random, step: Step, workqueues: tuple[WorkQueueSpec, ...]) -> list[Step]:
    """What makes a fault matter: messages and other faults at the right moment.

    A fault at a random moment mostly meets a cluster at rest.
    """
    make = _STORIES.get(step.what)
    own = [one for one in workqueues if one.name != "twin"]
    named = [one for one in own if one.key == step.arguments[:2]]
    touched = named or [one for one in own if {one.namespace, one.host} & set(step.arguments)]
    if make is None or chance.random() < 0.4:
        return []
    return make(chance, step, chance.choice(touched or own), own)


def _publish(
    step: Step, after: float, one: WorkQueueSpec, count: int, seconds: float, kind: str = "ok"
) -> Step:
    return Step(step.at + after, "publish", (*one.key, count, seconds, kind))


def _workers_come_and_go(chance: random.Random, step: Step, one: WorkQueueSpec, _: Any) -> list[Step]:
    moments = [chance.uniform(0.0, max(step.seconds, 20.0)) for _ in range(6)]
    return [_publish(step, after, one, 1, chance.choice([0.05, 1.0])) for after in moments]


def _change_is_refused(chance: random.Random, step: Step, one: WorkQueueSpec, _: Any) -> list[Step]:
    later = _publish(step, chance.uniform(60.0, 80.0), one, 1, 1.0)
    return [Step(step.at + 1.0, "user changes the image", one.key), later]


def _backlog(chance: random.Random, step: Step, one: WorkQueueSpec, _: Any) -> list[Step]:
    return [_publish(step, chance.uniform(1.0, 3.0), one, 8, 5.0)]


def _election_meets_messages(chance: random.Random, step: Step, one: WorkQueueSpec, _: Any) -> list[Step]:
    return [_publish(step, chance.uniform(0.0, 4.0), one, 3, 3.0)]


def _doorbell_goes_without_majority(
    chance: random.Random, step: Step, one: WorkQueueSpec, own: list[WorkQueueSpec]
) -> list[Step]:
    """The operator has to cancel a doorbell that RabbitMQ does not answer for. A neighbour's must still ring."""
    beside = [other for other in own if other is not one and other.host == one.host]
    if not beside:
        return _election_meets_messages(chance, step, one, own)
    pinned = Step(step.at + 2.0, "user pins the count", (*one.key, 1), 15.0)
    return [pinned, _publish(step, chance.uniform(8.0, 25.0), chance.choice(beside), 1, 1.0)]


def _copies_meet_an_outage(_: Any, step: Step, one: WorkQueueSpec, __: Any) -> list[Step]:
    return [_publish(step, -3.0, one, 4, 3.0, "fails"), _publish(step, -2.0, one, 2, 3.0, "fails once")]


def _scale_in_waits_for_a_controller(
    chance: random.Random, step: Step, one: WorkQueueSpec, _: Any
) -> list[Step]:
    """It stands still again, for longer than the leases of the workers last. Then messages come."""
    again = replace(step, at=step.at + step.seconds + 10.0, seconds=50.0)
    first = 1.0 - one.spec["scaling"]["scaleInDelaySeconds"]
    later = [_publish(again, after, one, 1, 5.0) for after in range(32, 50, 3)]
    suspended = [Step(again.at + 12.0, "user suspends", one.key, 45.0)] if chance.random() < 0.3 else []
    return [again, _publish(again, first, one, 6, 0.3), *later, *suspended]


def _scale_in(chance: random.Random, step: Step, one: WorkQueueSpec, _: Any) -> list[Step]:
    return [
        _publish(step, -chance.uniform(6.0, 15.0), one, 6, 1.0),
        _publish(step, -chance.uniform(2.0, 5.0), one, 3, 3.0),
    ]


def _new_leader_meets_a_sick_server(chance: random.Random, step: Step, *_: Any) -> list[Step]:
    fault = chance.choice(["API server refuses requests", "API server is down"])
    return [Step(step.at + step.seconds - 0.2, fault, (), round(chance.uniform(2.0, 10.0), 1))]


def _write_is_seen_late(_: Any, step: Step, one: WorkQueueSpec, __: Any) -> list[Step]:
    lags = Step(step.at - 1.0, "watch lags", ("deployments", 6.0), 10.0)
    return [lags, _publish(step, 0.3, one, 3, 1.0)]


_STORIES: Final[dict[str, Callable[..., list[Step]]]] = {
    "API server is slow": _workers_come_and_go,
    "API server refuses requests": _workers_come_and_go,
    "API server loses answers": _workers_come_and_go,
    "API server refuses statuses": lambda _, step, one, __: [_publish(step, 0.1, one, 1, 0.05)],
    "API server refuses one count": lambda _, step, one, __: [_publish(step, 0.0, one, 1, 1.0)],
    "Deployment controller stands still": _scale_in_waits_for_a_controller,
    "webhook refuses new templates": _change_is_refused,
    "quota limits pods": _backlog,
    "policy limits replicas": _backlog,
    "pods are unreachable": _backlog,
    "queue elects a leader": _election_meets_messages,
    "queue loses its majority": _doorbell_goes_without_majority,
    "broker restarts": _copies_meet_an_outage,
    "connections are lost": _copies_meet_an_outage,
    "operator is killed": _new_leader_meets_a_sick_server,
    "operator is restarted": _new_leader_meets_a_sick_server,
    "operator is killed in a scale-in": _scale_in,
    "operator is frozen in a scale-in": _scale_in,
    "API server queues requests in a scale-in": _scale_in,
    "user scales the Deployment": _write_is_seen_late,
}


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
    if what.startswith(("user", "queue")):
        return workqueue.key
    return ()
