"""Keep autoscalers away from workers whose handler runs for long, by annotations of their pods.

A pass hands over what its workers answered and ends. The annotations are written later, over the reporter's
connections, so that they delay no count. Without an operator they stay. The next leader removes them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from workqueue_operator.errors import ClusterError, LeadershipLostError
from workqueue_operator.kube.client import pod_path
from workqueue_operator.kube.store import Store
from workqueue_operator.kube.views import PodView, Protection
from workqueue_operator.names import ANNOTATION_PROTECTED, PROTECTION
from workqueue_operator.ports import Clock, Kubernetes
from workqueue_operator.reconcile.outbox import Outboxes, Rate
from workqueue_operator.workers.client import WorkerStatus

logger = logging.getLogger(__name__)

LONG_SECONDS: Final = 30.0
"""A handler that has run for this long, or longer, protects its pod. So short handlers cost no write, and long ones
at most two."""

RATE: Final = Rate(per_second=20.0, burst=100, together=2)
"""Limits for each namespace."""

REFUSED_AGAIN: Final = 60.0
"""Seconds after a failed write in which the operator changes no annotation in that namespace."""

_SET: Final[dict[str, str | None]] = {**PROTECTION, ANNOTATION_PROTECTED: "long-handler"}
_CLEAR: Final[dict[str, str | None]] = dict.fromkeys(_SET)


@dataclass(frozen=True, slots=True)
class ProtectionPlan:
    """The pods whose annotations must change."""

    protect: tuple[PodView, ...] = ()
    release: tuple[PodView, ...] = ()


def plan(pods: Sequence[PodView], statuses: Mapping[str, WorkerStatus]) -> ProtectionPlan:
    """Choose the pods to protect, and the protected ones without a long handler. Pure.

    The pod of a worker that does not answer, or does not report for how long its handler has run, does not change.
    Neither does a pod for which the user has decided.
    """
    known = [(pod, statuses[pod.name]) for pod in pods if not pod.terminating and pod.name in statuses]
    return ProtectionPlan(
        protect=tuple(
            pod for pod, status in known if pod.protection is Protection.NONE and _is_long(status) is True
        ),
        release=tuple(
            pod
            for pod, status in known
            if pod.protection is Protection.OPERATOR and _is_long(status) is False
        ),
    )


def _is_long(status: WorkerStatus) -> bool | None:
    """Whether a handler has run for long; None when the worker does not say."""
    if status.busy == 0:
        return False
    return None if status.busy_seconds is None else status.busy_seconds >= LONG_SECONDS


class Protector:
    """Writes the annotations.

    Args:
        kubernetes: has connections of its own, which no pass uses.
    """

    def __init__(self, kubernetes: Kubernetes, store: Store, clock: Clock) -> None:
        self._kubernetes = kubernetes
        self._store = store
        self._clock = clock
        self._outboxes = Outboxes(clock, RATE)
        self._not_before: dict[str, float] = {}

    def update(self, namespace: str, pods: Sequence[PodView], statuses: Mapping[str, WorkerStatus]) -> None:
        """Change the annotations of these pods soon, as far as their workers' answers require it."""
        if self._clock.monotonic() < self._not_before.get(namespace, 0.0):
            return
        self._not_before.pop(namespace, None)
        chosen = plan(pods, statuses)
        for change, some in ((_SET, chosen.protect), (_CLEAR, chosen.release)):
            for pod in some:
                self._outboxes.of(namespace).put(pod.uid, partial(self._write, namespace, pod, change))

    def stop(self) -> None:
        """Write nothing more. The next leader continues."""
        for outbox in self._outboxes:
            outbox.clear()

    async def _write(self, namespace: str, pod: PodView, change: Mapping[str, str | None]) -> None:
        # With the uid, the API server refuses the write if another pod has this name now.
        body: dict[str, Any] = {"metadata": {"uid": pod.uid, "annotations": dict(change)}}
        try:
            live = await self._kubernetes.merge(pod_path(namespace, pod.name), body)
        except LeadershipLostError:
            self.stop()
        except ClusterError as error:
            if not (error.not_found or error.conflict):
                self._on_failure(namespace, pod, error)
        else:
            self._store.put_pod(live, our_mark=True)

    def _on_failure(self, namespace: str, pod: PodView, error: ClusterError) -> None:
        self._not_before[namespace] = self._clock.monotonic() + max(error.retry_after or 0.0, REFUSED_AGAIN)
        self._outboxes.of(namespace).clear()
        logger.warning(
            "The annotations that protect a pod from autoscalers could not be changed.",
            extra={
                "namespace": namespace,
                "pod": pod.name,
                "status": error.status,
                "detail": error.message,
                "again_in_seconds": REFUSED_AGAIN,
            },
        )
