"""Sequences of changes of one WorkQueue, and what must hold after them.

The comparison is Acto's: the result of a sequence must not differ from a fresh WorkQueue with the same spec.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import reduce
from typing import Any, Final

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.generated.changes import changes
from tests.generated.stage import BASE, NAME, NO_DELAY, Place, RefusedError, Stage, conditions
from tests.support import stubkubelet
from tests.support.objects import Object, merged
from tests.support.wait import eventually
from workqueue_operator.api.reasons import ConditionType, Reason
from workqueue_operator.names import ANNOTATION_BINDINGS, ANNOTATION_BROKER, workload_name

EQUAL_SECONDS: Final = 120.0
MOST_STEPS: Final = 8

NEVER_SHOWN: Final = frozenset({Reason.INTERNAL_ERROR, Reason.SPEC_INVALID, Reason.AWAITING_OPERATOR})
"""What the API server admits, the operator can read."""


class How(Enum):
    """How a WorkQueue gets its next spec."""

    PATCH = "patch"
    """The changed spec."""
    BACK = "back"
    """The spec before the last change."""
    RECREATE = "recreate"
    """The WorkQueue is deleted, and created again with the changed spec."""
    RESTART = "restart"
    """The changed spec, while no operator runs."""


@dataclass(frozen=True)
class Step:
    """One change.

    Attributes:
        change: a merge patch of the spec; without a meaning for BACK.
        waits: whether the operator reports about it before the next step.
    """

    change: Object
    how: How = How.PATCH
    waits: bool = True

    def __repr__(self) -> str:
        rest = [] if self.how is How.PATCH else [str(self.how)]
        rest += [] if self.waits else ["waits=False"]
        return f"Step({', '.join([repr(self.change), *rest])})"


def sequences() -> SearchStrategy[list[Step]]:
    """Sequences of at most `MOST_STEPS` changes, most of one field."""
    how = st.sampled_from([*[How.PATCH] * 12, *[How.BACK] * 3, How.RECREATE, How.RESTART])
    some = st.lists(changes(), min_size=1, max_size=3).map(lambda patches: reduce(_patched, patches))
    waits = st.booleans().map(lambda hurries: not hurries)
    step = how.flatmap(
        lambda one: st.builds(Step, st.just({}) if one is How.BACK else some, st.just(one), waits)
    )
    # Without a number drawn first, most sequences would have one step.
    return st.integers(1, MOST_STEPS).flatmap(lambda number: st.lists(step, min_size=number, max_size=number))


def _patched(first: Object, other: Object) -> Object:
    """One patch of two. As in each patch, null removes a field."""
    both = dict(first)
    for key, value in other.items():
        deeper = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = _patched(both[key], value) if deeper else value
    return both


@dataclass
class Outcome:
    """What a sequence did.

    Attributes:
        refused: the answers of the API server to the changes that it refused.
        ready: the reason of Ready at the end.
    """

    refused: list[str] = field(default_factory=list)
    ready: str = ""


def check(stage: Stage, steps: Sequence[Step]) -> Outcome:
    """Apply a sequence and compare its result with a fresh WorkQueue.

    Raises:
        AssertionError: something does not hold.
    """
    with stage.place() as evolved, stage.place() as fresh:
        trial = _Trial(stage, evolved)
        for number, step in enumerate(steps, 1):
            try:
                trial.take(step)
            except AssertionError as error:
                raise AssertionError(f"after step {number}: {error}") from None
        trial.end_as(fresh)
    complaints = stage.complaints()
    assert not complaints, f"the operator raised an unexpected error: {complaints}"
    return trial.outcome


class _Trial:
    """A WorkQueue on its way through a sequence."""

    def __init__(self, stage: Stage, place: Place) -> None:
        self.outcome = Outcome()
        self._stage = stage
        self._place = place
        self._place.create(_framed({}, BASE))
        self._specs = [place.spec()]
        self._seen = _looked_at(place)
        """The last state; empty if it is no longer known."""
        self._recreated = False
        self._is_recorded = True
        """Whether the operator has seen the WorkQueue since it was created, so that it has recorded its bindings."""
        self._forgot = False
        """Whether bindings of a WorkQueue of before may be in no record."""
        self._may_conflict = False
        """Whether RabbitMQ may have a queue or an exchange with arguments of an earlier spec."""

    def take(self, step: Step) -> None:
        """Take one step."""
        before = self._specs[-1]
        change = self._change(step)
        self._forgot |= not self._is_recorded
        try:
            match step.how:
                case How.PATCH | How.BACK:
                    self._place.change(change)
                case How.RECREATE:
                    self._recreate(merged(before, change))
                case How.RESTART:
                    self._stage.stop_operator()
                    try:
                        self._place.change(change)
                    finally:
                        self._stage.start_operator()
        except RefusedError as error:
            self.outcome.refused.append(str(error))
            return
        now = self._place.spec()
        self._specs.append(now)
        exchanges = [spec["queue"].get("exchange") for spec in (before, now)]
        self._may_conflict |= not now["queue"]["declare"] or exchanges[0] != exchanges[1]
        if step.waits:
            self._look()
        else:
            self._seen = {}

    def end_as(self, fresh: Place) -> None:
        """Require that everything is as for a fresh WorkQueue with the last spec."""
        if self._specs[-1].get("suspend"):
            self._place.change({"suspend": False})
        self._look()
        spec = self._place.spec()
        self.outcome.ready = _condition(self._seen, ConditionType.READY)["reason"]
        conflicts = self._may_conflict and _conflicts(self._seen)
        if conflicts or not spec["queue"]["declare"]:
            fresh.adopt(self._place)
        try:
            fresh.create(spec)
        except RefusedError as error:
            raise AssertionError(f"a new WorkQueue cannot have what an update could get: {error}") from None
        _looked_at(fresh)
        moved = len({one["connectionSecretRef"]["name"] for one in self._specs}) > 1
        forgot = self._forgot or (moved and self._recreated)
        kept = self._recreated or not all(one["queue"]["declare"] for one in self._specs)
        _require_equal(self._place, fresh, _Past(moved, forgot, kept, conflicts))

    def _change(self, step: Step) -> Object:
        spec = self._specs[-1]
        if step.how is not How.BACK:
            return _framed(spec, step.change)
        return difference(spec, self._specs[-2]) if len(self._specs) > 1 else {}

    def _recreate(self, spec: Object) -> None:
        self._place.delete()
        self._seen, self._may_conflict, self._recreated, self._is_recorded = {}, True, True, False
        try:
            self._place.create(spec)
        except RefusedError:
            self._place.create(self._specs[-1])
            raise

    def _look(self) -> None:
        now = _looked_at(self._place)
        _require_kept(self._seen, now)
        self._seen, self._is_recorded = now, True


def difference(before: Object, after: Object) -> Object:
    """Return the merge patch that leads from one object to another."""
    patch: Object = {key: None for key in before if key not in after}
    for key, value in after.items():
        inside = isinstance(value, dict) and isinstance(before.get(key), dict)
        if inside:
            patch[key] = difference(before[key], value)
        elif before.get(key) != value:
            patch[key] = value
    return patch


def _framed(spec: Object, change: Object) -> Object:
    """Add what each WorkQueue has: a scale-in without delay, and pods that the stub kubelet serves."""
    framed = dict(change)
    scaling = change.get("scaling", {})
    if scaling is None:
        framed["scaling"] = {**dict.fromkeys(spec["scaling"]), **NO_DELAY}
    elif isinstance(scaling, dict):
        framed["scaling"] = {**NO_DELAY, **scaling}
    worker = change.get("worker", {} if "worker" in spec else None)
    if isinstance(worker, dict) and isinstance(worker.get("nodeSelector", {}), dict):
        selector = {**worker.get("nodeSelector", {}), stubkubelet.BEHAVIOUR: stubkubelet.APART}
        framed["worker"] = {**worker, "nodeSelector": selector}
    return framed


def _looked_at(place: Place) -> Object:
    """Wait until the operator has reported, and return the state."""
    workqueue = place.settled()
    found = conditions(workqueue)
    missing = set(ConditionType) - set(found)
    assert not missing, f"conditions are missing: {missing}"
    for one in found.values():
        assert one["reason"] not in NEVER_SHOWN, f"{one['type']} shows {one['reason']}: {one['message']}"
        assert one["observedGeneration"] == workqueue["metadata"]["generation"], f"{one} is old"
    if found["Ready"]["status"] == "False":
        causes = {
            one["reason"] for one in found.values() if one["type"] != "Ready" and one["status"] != "True"
        }
        assert found["Ready"]["reason"] in causes, (
            f"Ready names another reason than {causes}: {found['Ready']}"
        )
    return place.state()


def _condition(state: Object, kind: ConditionType) -> Object:
    found: Object = next(one for one in state["workqueue"]["status"]["conditions"] if one["type"] == kind)
    return found


def _conflicts(state: Object) -> bool:
    return bool(_condition(state, ConditionType.QUEUE_DECLARED)["reason"] == Reason.QUEUE_CONFLICT)


def _require_kept(before: Object, after: Object) -> None:
    """What works, works on: a change that cannot be carried out changes nothing else."""
    if not before:
        return
    specs = [one["workqueue"]["spec"] for one in (before, after)]
    if specs[0]["connectionSecretRef"] == specs[1]["connectionSecretRef"]:
        for name, queue in before["broker"].get("queues", {}).items():
            now = after["broker"]["queues"].get(name)
            assert now == queue, f"the queue {name} was {queue} and is now {now}"
    applied = _condition(after, ConditionType.WORKLOAD_APPLIED)
    if (
        applied["status"] == "False"
        and "Deployment" in applied["message"]
        and all("worker" in one for one in specs)
    ):
        name = f"Deployment/{workload_name(NAME)}"
        if (deployment := before["objects"].get(name)) is not None:
            # It is still scaled.
            now = after["objects"].get(name, {}).get("spec", {}).get("template")
            changed = list(_differences(now, deployment["spec"]["template"], name))
            assert not changed, f"refused, and yet changed: {changed}"


@dataclass(frozen=True)
class _Past:
    """What a sequence may have left behind in RabbitMQ.

    Attributes:
        moved: whether the WorkQueue was on another virtual host. The record of its bindings there stays.
        forgot: whether it was also deleted there, and that record with it; or deleted, and changed before the
            operator had seen the new one.
        kept: whether the queue may be of before. RabbitMQ accepts its declaration with another x-consumer-timeout.
        conflicts: whether RabbitMQ refuses the declaration. Until it accepts one, bindings of before stay.
    """

    moved: bool
    forgot: bool
    kept: bool
    conflicts: bool


def _require_equal(evolved: Place, fresh: Place, past: _Past) -> None:
    found: list[str] = []

    def equal() -> bool:
        nonlocal found
        found = list(_unlike(evolved.state(), fresh.state(), past))
        return not found

    try:
        eventually(equal, EQUAL_SECONDS)
    except TimeoutError:
        raise AssertionError("differs from a fresh WorkQueue:\n" + "\n".join(found)) from None


def _unlike(one: Object, other: Object, past: _Past) -> Iterator[str]:
    """Differences that neither a condition explains, nor what the sequence left behind in RabbitMQ."""
    _forget_the_past(one, other, past)
    applied = _condition(other, ConditionType.WORKLOAD_APPLIED)["status"] == "True"
    start = _condition(other, ConditionType.WORKERS_AVAILABLE)["status"] != "False"
    # Without a depth the count of before is held, unless it is pinned.
    has_depth = _condition(other, ConditionType.DEPTH_KNOWN)["status"] == "True"
    start = start and (has_depth or one["workqueue"]["spec"].get("replicas") is not None)
    # Without the number of unacknowledged messages, nothing is scaled in.
    stays = _condition(one, ConditionType.SCALING_ACTIVE)["reason"] == Reason.UNACKNOWLEDGED_UNKNOWN.value
    start = start and not stays
    if applied and one["workqueue"]["spec"].get("workloadRef"):
        if not stays:
            yield from _differences(one["replicas"], other["replicas"], "replicas of the user's Deployment")
        # The operator may not delete what ran the workers before.
        left = one["objects"].get(f"Deployment/{workload_name(NAME)}")
        if left is not None and left["spec"]["replicas"]:
            yield f"{left['spec']['replicas']} workers of an earlier spec.worker run"
    elif applied:
        yield from _differences(*(_objects(state, start) for state in (one, other)), "objects")
    declared, wanted = one["broker"], other["broker"]
    for kind in ("queues", "exchanges") if wanted else ():
        found = {name: declared[kind].get(name) for name in wanted[kind]}
        yield from _differences(found, wanted[kind], kind)
    bindings = declared.get("bindings", [])
    if past.forgot:
        bindings = [binding for binding in bindings if binding in wanted.get("bindings", [])]
    yield from _differences(bindings, wanted.get("bindings", []), "bindings")
    if applied and start:
        yield from _differences(one["consumers"], other["consumers"], "consumers")
        yield from _differences(one["workqueue"], other["workqueue"], "workqueue")
        return
    # A Deployment that was applied before keeps its pods.
    for kind in (ConditionType.QUEUE_DECLARED, ConditionType.WORKLOAD_APPLIED):
        for part in ("status", "reason"):
            yield from _differences(_condition(one, kind)[part], _condition(other, kind)[part], kind)


def _forget_the_past(one: Object, other: Object, past: _Past) -> None:
    """Drop from the states what no condition can name."""
    if past.kept:
        for state in (one, other):
            for queue in state["broker"].get("queues", {}).values():
                queue["arguments"].pop("x-consumer-timeout", None)
    if past.moved:
        _forget_left_brokers(one["workqueue"], other["workqueue"])
    if past.conflicts:
        for state in (one, other):
            _forget_bindings(state["workqueue"]["metadata"])


def _forget_left_brokers(moved: Object, fresh: Object) -> None:
    """Drop the recorded bindings on brokers that only one of the WorkQueues has used."""
    known = {entry["broker"] for entry in _record(fresh)}
    record = [entry for entry in _record(moved) if entry["broker"] in known]
    _forget_bindings(moved["metadata"])
    if record:
        moved["metadata"].setdefault("annotations", {})[ANNOTATION_BINDINGS] = json.dumps(record)


def _forget_bindings(metadata: Object) -> None:
    """Drop the record of bindings."""
    annotations = metadata.pop("annotations", {})
    annotations.pop(ANNOTATION_BINDINGS, None)
    if annotations:
        metadata["annotations"] = annotations


def _record(workqueue: Object) -> list[Object]:
    annotations = workqueue["metadata"].get("annotations", {})
    record: list[Object] = json.loads(annotations.get(ANNOTATION_BINDINGS, "[]"))
    return record


def _objects(state: Object, start: bool) -> Object:
    """The objects that run the workers. If new pods cannot start, the replicas depend on the old ones."""
    found: Object = state["objects"]
    for body in found.values():
        if body["kind"] == "Deployment" and not start:
            body["spec"].pop("replicas")
        if (
            body["kind"] == "Deployment"
            and _condition(state, ConditionType.QUEUE_DECLARED)["status"] != "True"
        ):
            # Only a declared queue has a known broker.
            body["spec"]["template"]["metadata"]["annotations"].pop(ANNOTATION_BROKER)
    return found


def _differences(one: Any, other: Any, path: str) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            yield from _differences(one.get(key), other.get(key), f"{path}.{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (first, second) in enumerate(zip(one, other, strict=True)):
            yield from _differences(first, second, f"{path}[{number}]")
    elif one != other:
        yield f"{path}: {_short(one)} instead of {_short(other)}"


def _short(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)[:500]
