"""Apply the objects that run the workers, repair drift, and scale them.

Server-side apply repairs the operator's own fields; additions of others stay. Only `scale` writes replicas, and it
tests the count that the decision was made from.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from workqueue_operator.api.reasons import Reason, Unknown
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.backoff import delay
from workqueue_operator.digest import digest
from workqueue_operator.errors import ClusterError, ReconcileError
from workqueue_operator.kube.client import Object, deployment_path, scale_path
from workqueue_operator.kube.refusal import as_refusal
from workqueue_operator.kube.views import deployment_view
from workqueue_operator.names import (
    ANNOTATION_TEMPLATE_HASH,
    REPLICAS_FIELD_MANAGER,
    retirement_secret_name,
    workload_name,
)
from workqueue_operator.ports import Clock, Kubernetes
from workqueue_operator.workers import render
from workqueue_operator.workers.retirement_key import RetirementKeys

logger = logging.getLogger(__name__)

TURNS_BEGIN_AFTER: Final = 10.0
"""Seconds after the first pass until the first turn: after a restart, doorbells go first."""

TURN_SECONDS: Final = 0.2
"""Seconds between two turns. Deployments are applied in turns as a check after a restart, and to note that their
template is proven. Nothing waits for either, and hundreds at once would delay the counts of queues that wake."""

REFUSED_AGAIN: Final = (1.0, 60.0)
"""Seconds: the first and the longest delay before the operator repeats a refused write."""

_CONFLICT: Final = 409


class _Inputs(NamedTuple):
    """What the rendered Deployment of one WorkQueue depends on. The API server counts changes of the spec.

    Attributes:
        generation: of the WorkQueue; 0 if it is not known.
    """

    generation: int
    broker: str
    proven_hash: str | None


@dataclass(slots=True)
class Applied:
    """What was last applied for one WorkQueue. It saves needless applies.

    Attributes:
        generation: of the Deployment after the operator's apply, or after its last scaling.
        digest: of the rendered Deployment.
        but_proof: the same without what a proven template changes.
        inputs: what it was rendered from. Rendering costs more than the rest of a pass.
        waiting: what would be rendered with nothing but the proof changed; None before a pass has seen that.
    """

    uid: str
    generation: int
    digest: bytes
    but_proof: bytes
    inputs: _Inputs
    waiting: _Inputs | None = None


@dataclass(frozen=True, slots=True)
class Ensured:
    """A Deployment that can be scaled.

    Attributes:
        deployment: its current body; the same object as in the store when nothing was applied.
        refusal: why it, or an object beside it, differs from what the WorkQueue asks for; None when all is applied.
    """

    deployment: Object
    refusal: Unknown | None = None


@dataclass(frozen=True, slots=True)
class _Refusal:
    """An apply that the API server refused.

    Attributes:
        digest: of the rendered Deployment.
        until: the monotonic time of the next attempt with the same digest.
        failures: refusals in a row.
    """

    digest: bytes
    why: Unknown
    until: float
    failures: int


class WorkloadApplier:
    """Applies and scales Deployments.

    Args:
        counts: has connections of its own, for writes of a count and what they depend on.
    """

    def __init__(
        self,
        kubernetes: Kubernetes,
        counts: Kubernetes,
        defaults: render.Defaults,
        wake: Callable[[tuple[str, str]], None],
        clock: Clock,
    ) -> None:
        self._kubernetes = kubernetes
        self._counts = counts
        self._clock = clock
        self._defaults = defaults
        self._wake = wake
        self._keys = RetirementKeys(kubernetes, clock)
        self._applied: dict[str, Applied] = {}
        self._refusals: dict[str, _Refusal] = {}
        self._turns: dict[str, float] = {}
        self._last_turn: float | None = None

    def forget(self, uid: str) -> None:
        """The WorkQueue is deleted. Kubernetes deletes what it owns."""
        self._applied.pop(uid, None)
        self._refusals.pop(uid, None)
        self._turns.pop(uid, None)
        self._keys.forget(uid)

    async def ensure(
        self,
        workqueue: WorkQueue,
        seen: Object | None,
        broker: str | None = None,
        proven_hash: str | None = None,
    ) -> Ensured:
        """Apply the Deployment and the objects beside it, if they differ from what the WorkQueue asks for.

        A refusal does not stop the scaling. The Deployment of the last admitted template still works, and so does a
        Deployment whose PodDisruptionBudget exceeds a quota.

        Args:
            seen: the Deployment in the store, or None.
            broker: the broker that has the queue (`Binding.display`); None when it is not known, which changes
                nothing.
            proven_hash: the hash of the last template of which a pod was Ready; None when it is not known, which
                changes nothing.

        Raises:
            ReconcileError: the name is taken, or the API server refuses to create the Deployment.
            ClusterError: it did not answer.
        """
        if seen is not None:
            require_ours(seen, workqueue)
        before = None if seen is None else deployment_view(seen)
        inputs = _Inputs(
            workqueue.metadata.generation,
            broker or (before.broker if before else ""),
            proven_hash or (before.proven_hash if before else None),
        )
        uid = workqueue.metadata.uid
        refusal = self._refusals.get(uid)
        if refusal is None and seen is not None and self._is_unchanged(workqueue, inputs, seen):
            return Ensured(seen)
        wanted = render.deployment(
            workqueue, self._defaults, broker=inputs.broker, proven_hash=inputs.proven_hash
        )
        if refusal is None and seen is not None and self._is_applied(workqueue, inputs, wanted, seen):
            return Ensured(seen)
        if (
            refusal is not None
            and refusal.digest == digest(wanted)
            and self._clock.monotonic() < refusal.until
        ):
            return _as_far_as_admitted(seen, refusal.why)
        if refusal is None and seen is not None and self._only_proof_differs(workqueue, wanted, seen):
            if not self._has_turn(workqueue):
                self._applied[uid].waiting = inputs
                return Ensured(seen)
            only_proof, no_key = True, None
        else:
            only_proof, no_key = False, await self._ensure_key(workqueue)
        try:
            live = await self._apply_deployment(workqueue, wanted, seen)
        except ReconcileError as problem:
            if problem.reason is Reason.NAME_CONFLICT:
                raise
            return _as_far_as_admitted(seen, self._refuse(workqueue, wanted, problem))
        why = None
        try:
            if no_key is not None:
                raise no_key
            if not only_proof:
                await self._apply_others(workqueue)
            self._refusals.pop(uid, None)
        except ReconcileError as problem:
            why = self._refuse(workqueue, wanted, problem)
        self._turns.pop(uid, None)
        metadata = live["metadata"]
        self._applied[uid] = Applied(
            metadata["uid"], metadata["generation"], digest(wanted), _but_proof(wanted), inputs
        )
        return Ensured(live, why)

    def next_attempt(self, workqueue: WorkQueue) -> float | None:
        """Return the monotonic time of the next attempt after a refusal; None without one."""
        refusal = self._refusals.get(workqueue.metadata.uid)
        return None if refusal is None else refusal.until

    def _is_unchanged(self, workqueue: WorkQueue, inputs: _Inputs, seen: Object) -> bool:
        """Whether the last apply was of the same inputs, and nothing has changed the Deployment since.

        Of inputs that differ by the proof, the turn decides.
        """
        applied = self._applied.get(workqueue.metadata.uid)
        return (
            applied is not None
            and inputs.generation > 0
            and (applied.inputs == inputs or (applied.waiting == inputs and not self._has_turn(workqueue)))
            and _is_untouched(applied, seen, render.metadata(workqueue))
        )

    def _is_applied(self, workqueue: WorkQueue, inputs: _Inputs, wanted: Object, seen: Object) -> bool:
        """Whether no apply is necessary now."""
        applied = self._applied.get(workqueue.metadata.uid)
        if applied is None:
            return _is_of(seen, wanted) and not self._has_turn(workqueue)
        if applied.digest != digest(wanted):
            return False
        # Such as after a change of spec.scaling. The next pass need not render it again.
        applied.inputs = inputs
        return _is_untouched(applied, seen, wanted["metadata"])

    def _only_proof_differs(self, workqueue: WorkQueue, wanted: Object, seen: Object) -> bool:
        """Whether the last apply differs from `wanted` only because a pod of the template has been Ready since."""
        applied = self._applied.get(workqueue.metadata.uid)
        return (
            applied is not None
            and applied.but_proof == _but_proof(wanted)
            and _is_untouched(applied, seen, wanted["metadata"])
        )

    def _refuse(self, workqueue: WorkQueue, wanted: Object, problem: ReconcileError) -> Unknown:
        """Remember a refusal, and when to try again."""
        uid = workqueue.metadata.uid
        before = self._refusals.get(uid)
        failures = before.failures + 1 if before is not None and before.digest == digest(wanted) else 1
        why = Unknown(problem.reason, problem.message)
        until = self._clock.monotonic() + delay(failures, *REFUSED_AGAIN)
        self._refusals[uid] = _Refusal(digest(wanted), why, until, failures)
        return why

    async def retirement_key(self, workqueue: WorkQueue) -> bytes | Unknown:
        """Return the key that signs calls to the workers, or why the operator has none.

        Raises:
            ClusterError: the API server did not answer.
        """
        try:
            return await self._keys.read(workqueue)
        except ReconcileError as problem:
            return Unknown(problem.reason, problem.message)
        except ClusterError as error:
            refused = _key_refused(error, workqueue)
            if isinstance(refused, ReconcileError):
                return Unknown(refused.reason, refused.message)
            raise

    async def scale(self, workqueue: WorkQueue, name: str, observed: int, replicas: int) -> Object | None:
        """Set replicas, if the count has not changed since the decision.

        The subresource takes the API server a third of the processor time of a write to the Deployment.

        Args:
            name: of the Deployment.
            observed: the count that the decision was made from.

        Returns:
            The Scale afterwards, whose count an admission webhook may have changed; None when another writer had
            changed the count.

        Raises:
            ClusterError: the API server refused the count (`denied`), or did not answer.
        """
        try:
            live = await self._counts.json_patch(
                scale_path(workqueue.metadata.namespace, name),
                [
                    # A count of 0 is left out of a Scale.
                    {"op": "test", "path": "/spec", "value": {"replicas": observed} if observed else {}},
                    {"op": "replace", "path": "/spec", "value": {"replicas": replicas}},
                ],
            )
        except ClusterError as error:
            if error.conflict or error.not_found:
                return None
            # A failed `test` operation and an admission policy both answer 422. The object shows which it was.
            if error.invalid and await self._count_changed(workqueue, name, observed):
                return None
            raise
        applied = self._applied.get(workqueue.metadata.uid)
        if applied is not None and count_of(live) != observed:
            # With another writer's change as well, the Deployment has a higher generation.
            applied.generation += 1
        return live

    async def read(self, workqueue: WorkQueue, name: str) -> Object | None:
        """Return the Deployment from the API server; None when it does not exist."""
        try:
            return await self._counts.get(deployment_path(workqueue.metadata.namespace, name))
        except ClusterError as error:
            if error.not_found:
                return None
            raise

    async def _count_changed(self, workqueue: WorkQueue, name: str, observed: int) -> bool:
        live = await self.read(workqueue, name)
        return live is None or live["spec"].get("replicas", 1) != observed

    def _has_turn(self, workqueue: WorkQueue) -> bool:
        """Whether this Deployment may be applied now. Otherwise a timer adds its WorkQueue later.

        After a restart all Deployments look correct, and very likely are, so urgent work goes first.
        """
        # The timer keeps the key only. After a restart, 1,000 WorkQueues would take 10 MiB until their turn.
        uid, key, now = workqueue.metadata.uid, workqueue.key, self._clock.monotonic()
        turn = self._turns.get(uid)
        if turn is None:
            last = now + TURNS_BEGIN_AFTER if self._last_turn is None else max(self._last_turn, now)
            turn = self._turns[uid] = self._last_turn = last + TURN_SECONDS
            self._clock.call_later(turn - now, lambda: self._wake(key))
        return now >= turn

    async def _ensure_key(self, workqueue: WorkQueue) -> Exception | None:
        """Create the Secret that the pods mount. Returns why it cannot be created: workers run without it too."""
        try:
            await self._keys.ensure(workqueue)
        except ClusterError as error:
            return _key_refused(error, workqueue)
        return None

    async def _apply_deployment(self, workqueue: WorkQueue, wanted: Object, seen: Object | None) -> Object:
        name = workload_name(workqueue.metadata.name)
        path = deployment_path(workqueue.metadata.namespace, name)
        try:
            if seen is None:
                return await self._create_deployment(path, workqueue, wanted)
            if not seen["spec"].get("replicas"):
                await self._hand_over_replicas(path, wanted, seen)
            return await self._kubernetes.apply(path, wanted)
        except ClusterError as error:
            raise as_refusal(error, f"Deployment {name!r}") from error

    async def _create_deployment(self, path: str, workqueue: WorkQueue, wanted: Object) -> Object:
        """Create the Deployment with 0 replicas: without the field it would have 1 for a moment.

        The apply has no force, because the store may lag: the Deployment of another owner has another selector, which
        is a conflict.
        """
        with_none = {**wanted, "spec": {**wanted["spec"], "replicas": 0}}
        try:
            live = await self._kubernetes.apply(path, with_none, force=False)
        except ClusterError as error:
            if error.status != _CONFLICT:
                raise
            live = await self._kubernetes.get(path)
            require_ours(live, workqueue)
            return await self._apply_deployment(workqueue, wanted, live)
        require_ours(live, workqueue)
        return live

    async def _hand_over_replicas(self, path: str, wanted: Object, seen: Object) -> None:
        """Give the count of the creation to another field manager before the second apply, or it would become 1.

        A field that its manager no longer applies returns to its default. A count that was scaled already has another
        manager; that is a conflict here, and the manager keeps it.
        """
        try:
            await self._kubernetes.apply(
                path, _only_replicas(wanted, seen), REPLICAS_FIELD_MANAGER, force=False
            )
        except ClusterError as error:
            if error.status != _CONFLICT:
                raise

    async def _apply_others(self, workqueue: WorkQueue) -> None:
        namespace, name = workqueue.metadata.namespace, workload_name(workqueue.metadata.name)
        objects = {
            f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets/{name}": render.disruption_budget(
                workqueue
            )
        }
        if self._defaults.network_policy:
            path = f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies/{name}"
            objects[path] = render.network_policy(workqueue, self._defaults)
        for path, body in objects.items():
            try:
                await self._kubernetes.apply(path, body)
            except ClusterError as error:
                raise as_refusal(error, f"{body['kind']} {name!r}") from error


def count_of(scale: Object) -> int:
    """Return the count of a Scale."""
    return int(scale["spec"].get("replicas", 0))


def _only_replicas(wanted: Object, live: Object) -> Object:
    return {
        "apiVersion": wanted["apiVersion"],
        "kind": wanted["kind"],
        "metadata": {
            "name": wanted["metadata"]["name"],
            "namespace": wanted["metadata"]["namespace"],
            "uid": live["metadata"]["uid"],
        },
        "spec": {"replicas": live["spec"].get("replicas", 0)},
    }


def _is_of(live: Object, wanted: Object) -> bool:
    """Whether the last apply was of this template, according to its hash."""
    annotations = [
        body["spec"]["template"].get("metadata", {}).get("annotations", {}) for body in (live, wanted)
    ]
    return bool(annotations[0].get(ANNOTATION_TEMPLATE_HASH) == annotations[1][ANNOTATION_TEMPLATE_HASH])


def _but_proof(wanted: Object) -> bytes:
    return digest({**wanted, "spec": {**wanted["spec"], "strategy": None}})


def _is_untouched(applied: Applied, seen: Object, metadata: Object) -> bool:
    """Whether the Deployment is as the operator has left it, as far as that can be seen.

    Args:
        metadata: as rendered.
    """
    return (
        applied.uid == seen["metadata"]["uid"]
        and applied.generation >= seen["metadata"]["generation"]
        and _contains(seen["metadata"], metadata)
    )


def _as_far_as_admitted(seen: Object | None, why: Unknown) -> Ensured:
    """Return the existing Deployment with the refusal.

    Raises:
        ReconcileError: it does not exist.
    """
    if seen is None:
        raise ReconcileError(why.reason, why.message)
    return Ensured(seen, why)


def is_owned_by(seen: Object, workqueue: WorkQueue) -> bool:
    """Return whether an object belongs to a WorkQueue."""
    owners = seen["metadata"].get("ownerReferences") or []
    return any(owner["uid"] == workqueue.metadata.uid for owner in owners)


def require_ours(seen: Object, workqueue: WorkQueue) -> None:
    """Check that a Deployment belongs to a WorkQueue.

    Raises:
        ReconcileError: the name is taken.
    """
    if is_owned_by(seen, workqueue):
        return
    raise ReconcileError(
        Reason.NAME_CONFLICT,
        f"The Deployment {seen['metadata']['name']!r} exists and does not belong to this WorkQueue; it is not "
        "touched. Delete or rename it, or choose another name for the WorkQueue.",
    )


def _key_refused(error: ClusterError, workqueue: WorkQueue) -> Exception:
    return as_refusal(error, f"Secret {retirement_secret_name(workqueue.metadata.name)!r}")


def _contains(live: Any, wanted: Any) -> bool:
    """Whether `live` contains everything in `wanted`. Additions of others do not matter."""
    if live == wanted:
        return True
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(
            _contains(live.get(key), value) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(live, list) and all(
            any(_contains(item, value) for item in live) for value in wanted
        )
    return False
