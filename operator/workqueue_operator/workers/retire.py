"""Scale-in asks first: no worker is removed unless it agrees to leave.

This module carries out a Retire decision. The order of the steps prevents the loss of messages:

1. Ask idle workers to stop consuming (POST /retire). A busy worker refuses and is not touched.
2. Before the step to zero, install the doorbell, so that a new message is noticed, and check that the queue is empty.
3. Mark exactly the workers that agreed. Not while a pod that must stay is not Ready: Kubernetes removes such a pod
   first, whatever the marks say, and it may already be busy.
4. Wait until the ReplicaSet's own count shows that its controller has seen the marks, and with them everything that
   happened to the pods before. The step to zero needs no such wait: Kubernetes removes all pods and has no choice.
5. Lower the count by their number, in one patch that tests the observed count.

If a step fails, the workers consume again, at the latest when their lease ends. There is one exception: the result
of the patch is unknown, or another writer came first. Then the leases stay.

Marks are cleared by a later pass: after Kubernetes has carried out the last count, because without marks it would
choose which pods to remove, and after it has seen the marks. Marks that were cleared unseen would be mistaken for the
next ones.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from workqueue_operator.api.reasons import Reason, Unknown
from workqueue_operator.errors import ClusterError
from workqueue_operator.kube.client import Object, pod_path, replicaset_path
from workqueue_operator.kube.store import Store
from workqueue_operator.kube.views import DeploymentView, PodView, is_observed
from workqueue_operator.names import ANNOTATION_DELETION_COST, LABEL_RETIRING, RETIRED_DELETION_COST
from workqueue_operator.ports import Clock, Kubernetes, Workers
from workqueue_operator.workers.client import Address, Answer, SigningKeys, WorkerStatus

logger = logging.getLogger(__name__)


CONFLICT: Final = Unknown(
    Reason.CONFLICTING_WRITE,
    "Another writer changed the count at the same time. The next pass decides again.",
)
UNSEEN: Final = Unknown(
    Reason.PODS_SETTLING,
    "The ReplicaSet has not counted these pods yet, or not the workers that agreed to leave. Until it does, "
    "Kubernetes might remove others. If this persists, look at kube-controller-manager, and for a policy that "
    "changes labels which pods have from their template.",
)
TOO_SLOW: Final = Unknown(
    Reason.RETIREMENT_TOO_SLOW,
    "The API server was so slow that the workers that agreed to leave may soon take messages again. They stay, and "
    "the operator asks again.",
)
_MESSAGE_CAME: Final = Unknown(Reason.MESSAGES_WAITING, "A message arrived; the last workers stay.")
NO_DOORBELL: Final = Unknown(
    Reason.DOORBELL_UNAVAILABLE, "The doorbell cannot be installed now; the last workers stay until it can."
)
_BUSY: Final = Unknown(Reason.WORKERS_BUSY, "Surplus workers are busy and stay until they are idle.")


@dataclass(frozen=True, slots=True)
class RetireOutcome:
    """The result of a scale-in.

    Attributes:
        removed: how many replicas were removed.
        deployment: the Deployment afterwards; None when the count was not lowered.
        answers: each worker's answer, by pod name.
        obstacle: why the count was not lowered.
    """

    removed: int
    deployment: DeploymentView | None
    answers: Mapping[str, Answer]
    obstacle: Unknown | None = None

    @property
    def unreachable(self) -> list[str]:
        """The pods that did not answer, or refused the signature."""
        return [pod for pod, answer in self.answers.items() if answer in {Answer.UNREACHABLE, Answer.REFUSED}]


@dataclass(frozen=True, slots=True)
class RetirePlan:
    """Which workers to ask. Pods whose worker surely does not run are removed first, without a question."""

    dead: tuple[PodView, ...]
    ask: tuple[PodView, ...]


@dataclass(frozen=True, slots=True)
class RetireSteps:
    """What a scale-in asks of its caller.

    Attributes:
        pods: returns the pods as the store knows them then. Asking takes seconds when a worker does not answer.
        lower: lowers the count by a number, in one guarded write; returns None when the guard failed.
        confirm_empty: before the step to zero, installs the doorbell and reads the queue. Returns True when the queue
            is empty, False when a message waits, None when the doorbell cannot be installed. None instead of a
            function: the queue need not be empty.
    """

    pods: Callable[[], Sequence[PodView]]
    lower: Callable[[int], Awaitable[DeploymentView | None]]
    confirm_empty: Callable[[], Awaitable[bool | None]] | None


SEEN_WITHIN: Final = 5.0
"""Seconds within which Kubernetes must see the marks."""

LOWER_WITHIN: Final = 18.0
"""Seconds from the first request to a worker within which the count may be lowered. A worker that agreed consumes
again after 30 s, and the request that lowers the count may take 8 s (`kube.client.REQUEST_TIMEOUT`)."""

FIRST_LOOK: Final = 0.02
"""Seconds from a write to the first look: about as long as an idle Kubernetes takes to see it."""

START_SECONDS: Final = 60.0
"""Seconds from its creation within which a pod may have a running worker that the kubelet has not reported yet."""

ENDED_FOR: Final = 30.0
"""Seconds for which the kubelet must not start a crashed worker, so that its pod may be removed without a question:
LOWER_WITHIN, the request that lowers the count, and some seconds for clocks that differ."""


async def comes_true(look: Callable[[], Awaitable[bool]], within: float, clock: Clock) -> bool:
    """Whether what a controller of Kubernetes has to do is done in time. The pauses between two looks double.

    Args:
        within: seconds; the last look may come later by as much again.
    """
    deadline, pause = clock.monotonic() + within, FIRST_LOOK
    while clock.monotonic() < deadline:
        await clock.sleep(pause)
        if await look():
            return True
        pause *= 2
    return False


def cordoned_first(pods: Sequence[PodView], cordoned: AbstractSet[str]) -> list[PodView]:
    """Return the pods with those on cordoned nodes first. Otherwise their order stays. Pure."""
    return sorted(pods, key=lambda pod: pod.node not in cordoned)


def plan(
    pods: Sequence[PodView], statuses: Mapping[str, WorkerStatus], surplus: int, now: float
) -> RetirePlan:
    """Choose which workers to ask: first workers that do not run, then idle ones, then those in an unknown state.

    Pure. Busy workers are not asked, and a pod whose worker may run unreported stays. Lower ranks come first, because
    Kubernetes removes them first, whatever the marks say. Of equal workers, the first ones in `pods` are asked.

    Args:
        now: Unix seconds.
    """
    alive = [pod for pod in pods if not pod.terminating]
    dead = sorted(
        (pod for pod in alive if not pod.running and not _may_start(pod, now)),
        key=lambda pod: pod.rank,
    )[:surplus]
    idle = sorted(
        (pod for pod in alive if pod.running and not _busy(pod, statuses)),
        key=lambda pod: (pod.rank, pod.name not in statuses),
    )
    return RetirePlan(tuple(dead), tuple(idle[: surplus - len(dead)]))


def _may_start(pod: PodView, now: float) -> bool:
    """Whether the kubelet may have started its worker, or may do so before the count is lowered.

    Also a new pod without a node: it gets one within moments, and a slow watch shows that late.
    """
    if pod.restarts_at is not None:
        return pod.restarts_at < now + ENDED_FOR
    return pod.failure is None and now - pod.created < START_SECONDS


def _busy(pod: PodView, statuses: Mapping[str, WorkerStatus]) -> bool:
    return pod.name in statuses and statuses[pod.name].busy > 0


class Retirer:
    """Carries out scale-ins."""

    def __init__(self, kubernetes: Kubernetes, workers: Workers, store: Store, clock: Clock) -> None:
        self._kubernetes = kubernetes
        self._store = store
        self._workers = workers
        self._clock = clock

    async def retire(
        self, namespace: str, chosen: RetirePlan, keys: SigningKeys, steps: RetireSteps
    ) -> RetireOutcome:
        """Ask workers, mark the pods of workers that agree, wait until Kubernetes sees the marks, lower the count.

        Args:
            keys: sign the calls to the workers.
        """
        deadline = self._clock.monotonic() + LOWER_WITHIN
        answers = await self._workers.retire(map(_address, chosen.ask), keys)
        agreed = [pod for pod in chosen.ask if answers[pod.name] is Answer.RETIRED]
        leaving = [*chosen.dead, *agreed]
        going = {pod.uid for pod in leaving}
        staying = _staying(steps, going)
        outranked = _outranked(staying, leaving)
        if not leaving or outranked:
            await self._resume(agreed, keys)
            return RetireOutcome(0, None, answers, outranked or _none_leaves(staying))
        pods = [*leaving, *staying]
        try:
            before = await self._counted(namespace, pods)
        except ClusterError:
            await self._resume(agreed, keys)
            raise
        # A ReplicaSet that has not seen yet that earlier marks were cleared would take them for these.
        if before is None or before != _relabelled(pods):
            await self._resume(agreed, keys)
            return RetireOutcome(0, None, answers, UNSEEN)
        if not staying and steps.confirm_empty is not None:
            empty = await steps.confirm_empty()
            if not empty:
                await self._resume(agreed, keys)
                return RetireOutcome(0, None, answers, NO_DOORBELL if empty is None else _MESSAGE_CAME)
        try:
            marked = await self._mark(namespace, leaving, RETIRED_DELETION_COST)
            # A pod that has vanished gets a successor, and the count would be lowered by one too many.
            seen = marked == len(leaving) and (
                await self._come_to(before + marked, namespace, pods)
                if staying
                else all(pod.uid in going or pod.terminating for pod in steps.pods())
            )
            obstacle = UNSEEN if not seen else TOO_SLOW if self._clock.monotonic() >= deadline else None
            # A pod that stays may have lost its readiness, or have got a successor, since the marks.
            obstacle = obstacle or _outranked(_staying(steps, going), leaving)
            # The answer to its mark shows what the watch has not shown yet.
            obstacle = obstacle or _started(steps, chosen.dead)
            if obstacle is not None:
                await self._resume(agreed, keys)
                return RetireOutcome(0, None, answers, obstacle)
        except ClusterError:
            await self._resume(agreed, keys)
            raise
        try:
            lowered = await steps.lower(len(leaving))
        except ClusterError as error:
            if error.refused:
                await self._resume(agreed, keys)
            raise
        if lowered is None:
            # The other writer may have lowered the count. The marks stay until Kubernetes has carried that out.
            return RetireOutcome(0, None, answers, CONFLICT)
        return RetireOutcome(len(leaving), lowered, answers)

    async def renew(self, pods: Sequence[PodView], keys: SigningKeys) -> None:
        """Renew the leases of workers that agreed to leave and that Kubernetes has not removed yet."""
        await self._workers.retire(map(_address, pods), keys)

    async def clear_left_over(self, namespace: str, pods: Sequence[PodView], keys: SigningKeys) -> None:
        """Clear the marks of an earlier scale-in, after the ReplicaSet has seen them and carried out its last count.

        Before that, Kubernetes may still remove the marked pods, and would remove others without the marks.
        """
        alive = [pod for pod in pods if not pod.terminating]
        marked = [pod for pod in alive if pod.marked]
        counted = await self._counted(namespace, alive)
        # Others may have changed further labels, so that the ReplicaSet counts more.
        if counted is None or counted < _relabelled(alive):
            return
        await self._resume(marked, keys)
        try:
            await self._mark(namespace, marked, None)
        except ClusterError as error:
            # The next pass clears it.
            logger.warning(
                "A mark could not be cleared.", extra={"namespace": namespace, "detail": error.message}
            )

    async def _resume(self, agreed: Sequence[PodView], keys: SigningKeys) -> None:
        await self._workers.resume(map(_address, agreed), keys)

    async def _come_to(self, marked: int, namespace: str, pods: Sequence[PodView]) -> bool:
        """Whether the ReplicaSet counts this number of marked pods within SEEN_WITHIN."""

        async def counts_them() -> bool:
            return await self._counted(namespace, pods) == marked

        return await comes_true(counts_them, SEEN_WITHIN, self._clock)

    async def _counted(self, namespace: str, pods: Sequence[PodView]) -> int | None:
        """Return how many of these pods their ReplicaSet counts as marked: without a label of its template.

        Its controller counts from the same cache from which it chooses which pods to remove. Changes of pods reach
        that cache in order, so a controller that has seen a mark has seen everything before it.

        Returns:
            None when the ReplicaSet does not count exactly these pods, or is about to change their number.
        """
        replicasets = {pod.replicaset for pod in pods}
        if len(replicasets) != 1:
            return None
        live = await self._kubernetes.get(replicaset_path(namespace, *replicasets))
        status = live["status"]
        if not is_observed(live) or not live["spec"]["replicas"] == status["replicas"] == len(pods):
            return None
        return len(pods) - int(status.get("fullyLabeledReplicas", 0))

    async def _mark(self, namespace: str, pods: Sequence[PodView], cost: str | None) -> int:
        """Set or clear the marks.

        Returns:
            The number of pods that were changed. Pods that are deleted or terminating do not count.

        Raises:
            ClusterError: one request failed. All other requests have ended by then.
        """
        body: Object = {
            "metadata": {
                "annotations": {ANNOTATION_DELETION_COST: cost},
                "labels": {LABEL_RETIRING: "false" if cost is None else "true"},
            }
        }

        async def mark(pod: PodView) -> bool:
            try:
                live = await self._kubernetes.merge(pod_path(namespace, pod.name), body)
            except ClusterError as error:
                if not error.not_found:
                    raise
                return False
            # The store learns it immediately: a marked pod must not be asked again before it is removed.
            self._store.put_pod(live, our_mark=True)
            return not live["metadata"].get("deletionTimestamp")

        results = await asyncio.gather(*(mark(pod) for pod in pods), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return sum(result is True for result in results)


def _relabelled(pods: Sequence[PodView]) -> int:
    """How many of these pods their ReplicaSet must count as marked."""
    return sum(pod.relabelled for pod in pods)


def _staying(steps: RetireSteps, going: AbstractSet[str]) -> list[PodView]:
    return [pod for pod in steps.pods() if not pod.terminating and pod.uid not in going]


def _none_leaves(staying: Sequence[PodView]) -> Unknown:
    """Why no worker leaves."""
    first = next((pod.name for pod in staying if not pod.running), None)
    if first is None:
        return _BUSY
    return Unknown(
        Reason.POD_NOT_READY,
        f"The worker of pod {first} starts or has crashed, and may take a message before the kubelet reports that it "
        "runs. The pod stays until the worker answers, or the kubelet waits for long before the next start.",
    )


def _started(steps: RetireSteps, dead: Sequence[PodView]) -> Unknown | None:
    """Whether a pod that was not asked has a running worker."""
    not_asked = {pod.uid for pod in dead}
    first = next((pod.name for pod in steps.pods() if pod.uid in not_asked and pod.running), None)
    if first is None:
        return None
    return Unknown(
        Reason.POD_NOT_READY,
        f"The worker of pod {first} has just started and was not asked. It stays until it agrees to leave.",
    )


def _outranked(staying: Sequence[PodView], leaving: Sequence[PodView]) -> Unknown | None:
    """Whether Kubernetes would remove a pod that must stay before one that should leave."""
    last = max(map(_rank_at_removal, leaving), default=(False, False, False))
    first = next((pod.name for pod in staying if pod.rank < last), None)
    if first is None:
        return None
    return Unknown(
        Reason.POD_NOT_READY,
        f"Pod {first} must stay and is not Ready. Kubernetes would remove it before the idle workers, so no worker "
        "is removed until it is Ready.",
    )


def _rank_at_removal(pod: PodView) -> tuple[bool, bool, bool]:
    """The rank when Kubernetes removes pods. A running worker may become Ready until then."""
    return (True, True, True) if pod.running else pod.rank


def _address(pod: PodView) -> Address:
    return Address(pod.name, pod.uid, pod.ip)
