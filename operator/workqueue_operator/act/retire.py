"""Scale-in asks first: no worker is removed that has not agreed to go.

Place in the flow: what is done about a Retire decision. The order is what matters:

1. idle workers are asked to stop consuming (POST /retire); a busy one says no and is left alone;
2. to zero: the bell is hung, so that a message that comes now is noticed, and the queue must be seen empty;
3. exactly the workers that agreed are marked, and the count is lowered by their number, in one patch that
   tests the count that was observed. Not while a pod that is to stay is not Ready: Kubernetes removes it first,
   whatever the marks say, and it may be busy already.

Whatever fails on the way, the marks go and the workers consume again, at the latest when their lease ends. The
one exception: a patch of which nobody knows whether it was carried out. Then marks and leases stay, since without
them Kubernetes would choose whom to remove; the next pass sees what became of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ..cluster import Cluster, Object, pod_path
from ..errors import ClusterError
from ..names import ANNOTATION_DELETION_COST, RETIRED_DELETION_COST
from ..observe.store import Store
from ..observe.workers import Address, Answer, Workers, WorkerStatus
from ..views import PodView

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a scale-in.

    Attributes:
        removed: by how many the count was lowered.
        deployment: the Deployment after it, None when nothing was lowered.
        answers: what each asked worker said.
        awaited: the queue was not empty after all, so that the last workers stay.
        doorbell_failed: the bell could not be hung, so that the last workers stay.
        conflict: pods or count changed under way, so that nothing was lowered.
        outranked: the pod that was to stay and that Kubernetes would have removed first, so that nothing was lowered.
    """

    removed: int
    deployment: Object | None
    answers: Mapping[str, Answer]
    awaited: bool = False
    doorbell_failed: bool = False
    conflict: bool = False
    outranked: str | None = None

    @property
    def unreachable(self) -> list[str]:
        """The pods that did not answer, or refused the signature."""
        return [pod for pod, answer in self.answers.items() if answer in {Answer.UNREACHABLE, Answer.REFUSED}]


@dataclass(frozen=True, slots=True)
class Plan:
    """Whom to ask. Pods whose worker does not run need not be asked and go first."""

    dead: tuple[PodView, ...]
    ask: tuple[PodView, ...]


START_SECONDS: Final = 60.0
"""For so long a pod that a node has may have a running worker that the kubelet has not told of yet."""


def plan(pods: Sequence[PodView], statuses: Mapping[str, WorkerStatus], surplus: int, now: float) -> Plan:
    """Choose whom to ask: workers that do not run, then idle ones, then those whose state is not known.

    Pure. Busy workers are not asked at all. Lower ranks come first, since Kubernetes removes them first whatever
    the marks say.

    Args:
        now: Unix seconds.
    """
    alive = [pod for pod in pods if not pod.terminating]
    dead = sorted(
        (pod for pod in alive if not pod.running and not _may_be_starting(pod, now)),
        key=lambda pod: (pod.rank, pod.name),
    )[:surplus]
    idle = sorted(
        (pod for pod in alive if pod.running and not _busy(pod, statuses)),
        key=lambda pod: (pod.rank, pod.name not in statuses, pod.name),
    )
    return Plan(tuple(dead), tuple(idle[: surplus - len(dead)]))


def _may_be_starting(pod: PodView, now: float) -> bool:
    return pod.scheduled and pod.failure is None and now - pod.created < START_SECONDS


def _busy(pod: PodView, statuses: Mapping[str, WorkerStatus]) -> bool:
    return pod.name in statuses and statuses[pod.name].busy > 0


class Retirement:
    """Carries out scale-ins."""

    def __init__(self, cluster: Cluster, workers: Workers, store: Store) -> None:
        self._cluster = cluster
        self._store = store
        self._workers = workers

    async def carry_out(
        self,
        namespace: str,
        chosen: Plan,
        settled: Sequence[PodView],
        look: Callable[[], Sequence[PodView]],
        key: bytes,
        lower: Callable[[int], Awaitable[Object | None]],
        confirm_empty: Callable[[], Awaitable[bool | None]] | None,
    ) -> Outcome:
        """Ask, mark, lower.

        Args:
            settled: the pods as they were when the Deployment's count was found to agree with them.
            look: the pods as they are known at that moment; asking takes seconds when one does not answer.
            key: what the calls are signed with.
            lower: lowers the count by a number in one guarded write; None when the guard failed.
            confirm_empty: for the step to zero: hangs the bell and looks; True when the queue is empty, None
                when the bell does not hang. None instead of a function: this step is not to zero.
        """
        answers = await self._workers.retire(map(_address, chosen.ask), key)
        agreed = [pod for pod in chosen.ask if answers[pod.name] is Answer.RETIRED]
        leaving = [*chosen.dead, *agreed]
        going = {pod.uid for pod in leaving}
        staying = [pod for pod in look() if not pod.terminating and pod.uid not in going]
        outranked = _outranked(staying, leaving, settled)
        if not leaving or outranked:
            await self._call_off(agreed, [], namespace, key)
            return Outcome(0, None, answers, outranked=outranked)
        if not staying and confirm_empty is not None:
            empty = await confirm_empty()
            if not empty:
                await self._call_off(agreed, [], namespace, key)
                return Outcome(0, None, answers, awaited=empty is False, doorbell_failed=empty is None)
        try:
            marked = await self._mark(namespace, leaving, RETIRED_DELETION_COST)
        except ClusterError:
            await self._call_off(agreed, leaving, namespace, key)
            raise
        try:
            # A pod that vanished meanwhile gets a successor, and the count would be lowered by one too many.
            lowered = await lower(len(leaving)) if marked == len(leaving) else None
        except ClusterError as error:
            if error.refused:
                await self._call_off(agreed, leaving, namespace, key)
            raise
        if lowered is None:
            await self._call_off(agreed, leaving, namespace, key)
            return Outcome(0, None, answers, conflict=True)
        return Outcome(len(leaving), lowered, answers)

    async def clear_marks(self, namespace: str, pods: Sequence[PodView]) -> None:
        """Take the marks off pods that are to stay."""
        await self._mark(namespace, pods, None)

    async def _call_off(
        self, agreed: Sequence[PodView], marked: Sequence[PodView], namespace: str, key: bytes
    ) -> None:
        await self._workers.resume(map(_address, agreed), key)
        try:
            await self._mark(namespace, marked, None)
        except ClusterError as error:
            # A pass that finds a mark on a pod that stays clears it.
            logger.warning(
                "A mark could not be cleared.", extra={"namespace": namespace, "detail": error.message}
            )

    async def _mark(self, namespace: str, pods: Sequence[PodView], cost: str | None) -> int:
        """Set or clear the marks.

        Returns:
            On how many pods; one that is gone or about to go is passed over.

        Raises:
            ClusterError: one of them failed; by then every other request has ended, too.
        """
        body: Object = {"metadata": {"annotations": {ANNOTATION_DELETION_COST: cost}}}

        async def mark(pod: PodView) -> bool:
            try:
                live = await self._cluster.merge(pod_path(namespace, pod.name), body)
            except ClusterError as error:
                if not error.not_found:
                    raise
                return False
            # Told to the store at once: a marked pod must not be asked again before it goes.
            self._store.put_pod(live)
            return not live["metadata"].get("deletionTimestamp")

        results = await asyncio.gather(*(mark(pod) for pod in pods), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return sum(result is True for result in results)


_LOWEST: Final = (False, False, False)
"""The rank of a pod that was not there yet."""


def _outranked(
    staying: Sequence[PodView], leaving: Sequence[PodView], settled: Sequence[PodView]
) -> str | None:
    """The pod that is to stay though Kubernetes might remove it before one that is to leave, if there is one.

    Kubernetes may not have seen yet what became of a pod meanwhile, so the lower of its two ranks is what counts.
    """
    before = {pod.uid: pod.rank for pod in settled}
    last = max((_rank_at_removal(pod) for pod in leaving), default=_LOWEST)
    return next((pod.name for pod in staying if min(pod.rank, before.get(pod.uid, _LOWEST)) < last), None)


def _rank_at_removal(pod: PodView) -> tuple[bool, bool, bool]:
    """A worker that runs may become Ready between being chosen and being removed."""
    return (True, True, True) if pod.running else pod.rank


def _address(pod: PodView) -> Address:
    return Address(pod.name, pod.uid, pod.ip)
