"""Any sequence of changes ends where the last spec says, and nowhere else.

Hypothesis makes the sequences. Each WorkQueue gets one, many of them side by side; people also delete what is
theirs in between. In the end each must be as a new WorkQueue with the same spec would be: that one is made, too,
and the two are compared.
"""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.faults.objects import Objects, RefusedError, condition, objects_in
from tests.faults.site import NOWHERE, Site
from tests.support.objects import merged
from tests.support.rabbitmq import BrokerError
from tests.support.wait import eventually

Object = dict[str, Any]

CHANGES = 5
TOGETHER = 20
"""WorkQueues side by side."""

FIRST: Object = {
    "connectionSecretRef": {"name": "rabbitmq"},
    "worker": {"image": "nothing:1", "handler": {"python": "a:b"}, "nodeSelector": NOWHERE},
    "scaling": {"scaleInDelaySeconds": 0},
}


@dataclass(frozen=True)
class Change:
    """One step: a change of the spec, or something that a person does around it."""

    title: str
    spec: Object | None = None

    def __repr__(self) -> str:
        return self.title


def spec(title: str, **change: Any) -> Change:
    return Change(title, change)


STEPS = [
    spec("minReplicas 2", scaling={"minReplicas": 2}),
    spec("minReplicas 0", scaling={"minReplicas": 0}),
    spec("maxReplicas 3", scaling={"maxReplicas": 3}),
    spec("a pin of 1", replicas=1),
    spec("a pin of 3", replicas=3),
    spec("a pin of 0", replicas=0),
    spec("no pin", replicas=None),
    spec("suspend", suspend=True),
    spec("go on", suspend=False),
    spec("another image", worker={"image": "nothing:2"}),
    spec("an exec handler", worker={"handler": {"python": None, "exec": {"command": ["x"]}}}),
    spec("a python handler", worker={"handler": {"exec": None, "python": "c:d"}}),
    spec("another timeout", worker={"timeoutSeconds": 30}),
    spec("two at once", worker={"concurrency": 2}),
    spec("an environment", worker={"env": [{"name": "A", "value": "1"}]}),
    spec("no environment", worker={"env": None}),
    spec("other delays", retry={"delaysSeconds": [2, 20], "maxAttempts": 3}),
    spec("delete the queue with it", queue={"deletionPolicy": "Delete"}),
    spec("delete it if empty", queue={"deletionPolicy": "DeleteIfEmpty"}),
    spec("retain the queue", queue={"deletionPolicy": "Retain"}),
    spec("poll", scaling={"wake": "Poll"}),
    spec("push", scaling={"wake": "Push"}),
    spec("a Secret that is not there", connectionSecretRef={"name": "nowhere"}),
    spec("the right Secret", connectionSecretRef={"name": "rabbitmq"}),
    spec(
        "a schedule for ever",
        scaling={"schedules": [{"start": "* * * * *", "end": "0 0 1 1 *", "minReplicas": 1}]},
    ),
    spec("no schedule", scaling={"schedules": None}),
    spec("an exchange", queue={"exchange": {"name": "all", "routingKeys": ["a", "b"]}}),
    spec("no exchange", queue={"exchange": None}),
    spec("somebody else's Deployment", worker=None, workloadRef={"name": "theirs"}),
    spec("a Deployment of ours", workloadRef=None, worker=FIRST["worker"]),
    spec("a longer queue", queue={"maxLength": 1000}),
    Change("the queue is deleted"),
    Change("the dead-letter queue is deleted"),
    Change("the Deployment is deleted"),
    Change("the Deployment is scaled by hand"),
    Change("it is deleted and made again"),
]


@dataclass
class Walk:
    """One WorkQueue on its way through a sequence of changes."""

    name: str
    steps: list[Change]
    spec: Object = field(default_factory=lambda: dict(FIRST))
    refused: list[Change] = field(default_factory=list)

    def take(self, site: Site, objects: Objects, step: Change) -> None:
        """One step; what the API server refuses is not taken."""
        if step.spec is None:
            self._do(site, objects, step.title)
            return
        wanted = merged(self.spec, step.spec)
        try:
            objects.replace_spec(self.name, wanted)
        except RefusedError:
            self.refused.append(step)
        else:
            self.spec = wanted

    def _do(self, site: Site, objects: Objects, what: str) -> None:
        match what:
            case "the queue is deleted":
                self._delete_queue(site)
            case "the dead-letter queue is deleted":
                site.lab.channel.queue_delete(f"{self.name}.dead")
            case "the Deployment is deleted":
                objects.delete_deployment(f"{self.name}-worker")
            case "the Deployment is scaled by hand":
                objects.scale_deployment(f"{self.name}-worker", 2)
            case "it is deleted and made again":
                if self.has_secret:  # else the deletion waits a minute for it
                    objects.delete(self.name)
                    eventually(lambda: self.name not in objects.workqueues(), 60, f"{self.name} is gone")
                    objects.create(self.name, self.spec)

    def _delete_queue(self, site: Site) -> None:
        """Not while it is being made: RabbitMQ 4.0 may then answer 541 to everything from there on.

        Source: its log, and https://github.com/rabbitmq/rabbitmq-server/issues/16652.
        """

        def has_leader() -> bool:
            return site.broker.leader(self.name, site.lab.vhost) != "none"

        try:
            eventually(has_leader, 30, f"{self.name} has a leader")
        except BrokerError:
            return  # there is no such queue
        site.lab.channel.queue_delete(self.name)

    @property
    def has_secret(self) -> bool:
        """Whether the Secret that it names exists."""
        return bool(self.spec["connectionSecretRef"]["name"] == "rabbitmq")

    @property
    def suspended(self) -> bool:
        return bool(self.spec.get("suspend"))

    @property
    def wanted(self) -> int | None:
        """The count that the spec asks for while there is no message; None: any, since it holds."""
        scaling = self.spec["scaling"]
        if self.suspended or not self.has_secret or "workloadRef" in self.spec:
            return None
        pinned = self.spec.get("replicas")
        scheduled = [schedule["minReplicas"] for schedule in scaling.get("schedules") or ()]
        return max(scaling.get("minReplicas", 0), *scheduled, 0) if pinned is None else int(pinned)


def test_some_change_sequences_converge(place: Site) -> None:
    run(place, examples=2, together=3)


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_two_hundred_change_sequences_converge(place: Site) -> None:
    run(place, examples=11, together=TOGETHER)  # the first example is the simplest: all steps the same


def run(site: Site, examples: int, together: int) -> None:
    site.operator.start(resync_seconds=300).wait_serving()
    batches = itertools.count()  # a failure is played again
    sequence = st.lists(st.sampled_from(STEPS), min_size=CHANGES, max_size=CHANGES)

    @settings(
        max_examples=examples,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(sequence, min_size=together, max_size=together))
    def check(sequences: list[list[Change]]) -> None:
        batch = next(batches)
        walks = [Walk(f"t{batch}-{at}", steps) for at, steps in enumerate(sequences)]
        with objects_in(site.namespace) as objects:
            converge(site, objects, walks)

    check()


def converge(site: Site, objects: Objects, walks: list[Walk]) -> None:
    """Walk all of them, side by side, and see where that leads."""
    for walk in walks:
        objects.create(walk.name, walk.spec)
    for number in range(CHANGES):
        for walk in walks:
            walk.take(site, objects, walk.steps[number])
    begun = time.monotonic()
    for walk in walks:
        objects.create(f"{walk.name}-new", walk.spec)
    differences: list[str] = []

    def same() -> bool:
        bodies, deployments = objects.workqueues(), objects.deployments()
        differences[:] = [
            f"{walk.steps}: {difference}"
            for walk in walks
            for difference in compare(site, walk, bodies, deployments)
        ]
        return not differences

    try:
        seconds = site.wait_converged(same, begun)
    except AssertionError as error:
        raise AssertionError("\n".join([*differences, str(error)])) from None
    for _ in walks:
        site.report.row("sequence of five changes of a spec", "", 0, 0, 0, 0, seconds)
    for walk in walks:
        for name in (walk.name, f"{walk.name}-new"):
            if not walk.has_secret:
                objects.replace_spec(name, merged(walk.spec, {"connectionSecretRef": {"name": "rabbitmq"}}))
            objects.delete(name)
    eventually(lambda: not objects.workqueues(), 60, "all are gone")


def compare(site: Site, walk: Walk, bodies: dict[str, Object], deployments: dict[str, Any]) -> list[str]:
    """What distinguishes a WorkQueue from a new one with the same spec, or from what its spec asks for."""
    old, new = (
        looks(site, walk, bodies[name], deployments.get(f"{name}-worker"))
        for name in (walk.name, f"{walk.name}-new")
    )
    found = [
        f"{key} is {old.get(key)!r}, for a new one {new.get(key)!r}"
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]
    if walk.wanted is not None and old["replicas"] != walk.wanted:
        found.append(f"{old['replicas']} replicas instead of {walk.wanted}")
    return found


def looks(site: Site, walk: Walk, body: Object, deployment: Any) -> Object:
    """How a WorkQueue is, as far as its spec alone determines it."""
    name = body["metadata"]["name"]
    seen: Object = {
        "generation": body.get("status", {}).get("observedGeneration") == body["metadata"]["generation"],
        "Ready": condition(body, "Ready").get("status"),
        "finalizers": body["metadata"].get("finalizers"),
    }
    if walk.suspended:
        return seen  # and all else stays as it was
    if walk.has_secret:
        seen["reason"] = condition(body, "Ready").get("reason")
        seen["consumers"] = site.consumers(name)
        seen["dead-letter queue"] = site.consumers(f"{name}.dead") == 0
    if deployment is not None and "worker" in walk.spec:
        template = json.dumps(deployment.spec.template.spec.to_dict(), default=str)
        seen["template"] = template.replace(f"{name}-worker", "NAME-worker").replace(f'"{name}"', '"NAME"')
        seen["template"] = seen["template"].replace(f"{name}-retirement-key", "NAME-retirement-key")
    if walk.wanted is not None:
        seen["replicas"] = deployment and deployment.spec.replicas
    return seen
