"""Write the status and the Events of a WorkQueue, and show its numbers and conditions as metrics.

This is the end of a pass. The status is applied server-side under a field manager of its own, so that conditions of
others survive. It is written only after a change, and at most once in five seconds when only numbers changed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from workqueue_operator.api.reasons import ConditionType, Finding, Reason
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.digest import digest
from workqueue_operator.errors import ClusterError
from workqueue_operator.kube.client import workqueue_path
from workqueue_operator.kube.store import Store
from workqueue_operator.kube.views import DeploymentView
from workqueue_operator.metrics import Metrics
from workqueue_operator.names import API_VERSION, EVENT_REPORTER, KIND, STATUS_FIELD_MANAGER
from workqueue_operator.ports import Clock, Kubernetes
from workqueue_operator.reconcile.status import Outcome
from workqueue_operator.scaling.decide import Depth

logger = logging.getLogger(__name__)

NUMBERS_EVERY: Final = 5.0
"""Seconds between two writes of the status when only its numbers changed, or only another writer changed it.

Dead letters are not among these numbers: a new one is written immediately. Above 100 they are rounded.
"""

EVENT_AGAIN_AFTER: Final = 600.0
"""Seconds within which the same Event about the same WorkQueue is not sent twice."""

_NUMBERS: Final = frozenset(
    {
        "messages",
        "retrying",
        "columns",
        "consumers",
        "busyReplicas",
        "readyReplicas",
        "replicas",
        "workers",
    }
)


@dataclass(frozen=True, slots=True)
class Written:
    """What was last written for one WorkQueue: digests of its status, with and without numbers, and the time."""

    whole: bytes
    without_numbers: bytes
    at: float


@dataclass(frozen=True, slots=True)
class Event:
    """What an Event and its log line say."""

    reason: Reason
    message: str
    action: str
    warning: bool = False


class Reporter:
    """Writes status and Events.

    Args:
        store: shows the present status of each WorkQueue.
        instance: this operator's pod name, for the Events.
    """

    def __init__(
        self,
        kubernetes: Kubernetes,
        store: Store,
        instance: str,
        metrics: Metrics,
        *,
        clock: Clock,
    ) -> None:
        self._kubernetes = kubernetes
        self._clock = clock
        self._store = store
        self._metrics = metrics
        self._instance = instance
        self._written: dict[str, Written] = {}
        self._told: dict[str, dict[str, tuple[str, str]]] = {}
        self._sent: dict[str, dict[tuple[str, str], float]] = {}

    def forget(self, uid: str) -> None:
        """Forget a WorkQueue that was deleted."""
        self._written.pop(uid, None)
        self._told.pop(uid, None)
        self._sent.pop(uid, None)

    def measure(self, workqueue: WorkQueue, outcome: Outcome) -> None:
        """Show the known numbers as metrics. An unknown one keeps its last value."""
        shown = self._metrics.workqueues.of(*workqueue.key)
        shown.pinned = workqueue.spec.replicas
        if isinstance(outcome.depth, Depth):
            shown.messages_ready, shown.consumers = outcome.depth.ready, outcome.depth.consumers
            shown.in_handlers, shown.most_in_handlers = (
                outcome.depth.in_handlers,
                outcome.depth.most_in_handlers,
            )
        if outcome.retrying is not None:
            shown.messages_retrying = outcome.retrying
        if outcome.dead_letters is not None:
            shown.dead_letters = outcome.dead_letters
        if isinstance(outcome.deployment, DeploymentView):
            view = outcome.deployment
            shown.desired, shown.current, shown.ready = view.replicas, view.current, view.ready
            shown.maximum = workqueue.spec.most_replicas
        if outcome.busy is not None:
            shown.busy = outcome.busy

    async def status(self, workqueue: WorkQueue, status: Mapping[str, Any], now: float) -> float | None:
        """Write a status, unless the WorkQueue shows it already.

        Args:
            now: seconds on the monotonic clock.

        Returns:
            The seconds until the next attempt if the write was postponed; None otherwise.
        """
        uid = workqueue.metadata.uid
        written, shown = self._written.get(uid), self._shown(workqueue)
        self._metrics.workqueues.of(*workqueue.key).conditions = [
            (one["type"], one["status"], one["reason"]) for one in status["conditions"]
        ]
        wanted = Written(digest(status), digest(_without_numbers(status)), now)
        if written is None and shown == status:
            # An earlier process wrote it.
            self._written[uid] = wanted
            return None
        if written is not None:
            if written.whole == wanted.whole and _says_all_of(shown, status):
                return None
            if written.without_numbers == wanted.without_numbers and now - written.at < NUMBERS_EVERY:
                return NUMBERS_EVERY - (now - written.at)
        namespace, name = workqueue.key
        answer = await self._kubernetes.apply(
            f"{workqueue_path(namespace, name)}/status",
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                # With the uid, the API server refuses the write if another object of this name has replaced it.
                "metadata": {"name": name, "namespace": namespace, "uid": uid},
                "status": dict(status),
            },
            manager=STATUS_FIELD_MANAGER,
        )
        self._store.put_workqueue(answer, our_status=True)
        self._written[uid] = wanted
        return None

    def _shown(self, workqueue: WorkQueue) -> Mapping[str, Any]:
        body = self._store.workqueue(workqueue.key)
        if body is None or body["metadata"]["uid"] != workqueue.metadata.uid:
            return {}
        shown: Mapping[str, Any] = body.get("status") or {}
        return shown

    async def transitions(
        self, workqueue: WorkQueue, findings: Mapping[ConditionType, Finding], now: float
    ) -> None:
        """Send one Event and write one log line for each condition whose status or reason has changed."""
        uid, known = workqueue.metadata.uid, workqueue.status.conditions
        told = self._told.setdefault(uid, {c.type: (c.status.value, c.reason) for c in known})
        for kind, finding in findings.items():
            before, told[kind] = told.get(kind), (finding.status, finding.reason.value)
            if before == told[kind]:
                continue
            if (
                kind is ConditionType.SCALING_ACTIVE
                and before is not None
                and {before[0], finding.status} == {"True"}
            ):
                # The reason for the count changes often, and each change of the count has its own Event.
                continue
            if (
                kind is ConditionType.READY
                or finding.status == "Unknown"
                or finding.reason is Reason.SCALED_TO_ZERO
            ):
                # Ready repeats another condition's reason, Unknown is transient, and the step to zero has its own
                # Event.
                continue
            if before is None and finding.status == "True" and kind is not ConditionType.QUEUE_DECLARED:
                continue
            event = Event(finding.reason, finding.message, kind, warning=finding.status == "False")
            await self.event(workqueue, event, now)

    async def event(self, workqueue: WorkQueue, event: Event, now: float) -> None:
        """Send one Event and write one log line. A failure to send is only logged.

        Args:
            now: seconds on the monotonic clock.
        """
        namespace, name = workqueue.key
        logger.log(
            logging.WARNING if event.warning else logging.INFO,
            "A WorkQueue changed.",
            extra={
                "namespace": namespace,
                "workqueue": name,
                "action": str(event.action),
                "reason": event.reason.value,
                "detail": event.message,
            },
        )
        uid, sent = workqueue.metadata.uid, (event.reason.value, event.message)
        recent = {known: at for known, at in self._sent.get(uid, {}).items() if now - at < EVENT_AGAIN_AFTER}
        if sent in recent:
            return
        self._sent[uid] = {**recent, sent: now}
        regarding = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "namespace": namespace,
            "name": name,
            "uid": uid,
        }
        await self._send(regarding, event)

    async def namespace_event(self, namespace: str, event: Event) -> None:
        """Send one Event about a namespace and write one log line."""
        logger.info(
            "A namespace changed.",
            extra={
                "namespace": namespace,
                "action": event.action,
                "reason": event.reason.value,
                "detail": event.message,
            },
        )
        regarding = {"apiVersion": "v1", "kind": "Namespace", "namespace": namespace, "name": namespace}
        await self._send(regarding, event)

    async def _send(self, regarding: Mapping[str, str], event: Event) -> None:
        """Send one Event. A failure is only logged."""
        moment = self._clock.now()
        body = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"generateName": f"{regarding['name']}-", "namespace": regarding["namespace"]},
            "eventTime": moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "type": "Warning" if event.warning else "Normal",
            "reason": event.reason.value,
            "action": str(event.action),
            "note": event.message[:1024],
            "reportingController": EVENT_REPORTER,
            "reportingInstance": self._instance,
            "regarding": dict(regarding),
        }
        try:
            await self._kubernetes.create(
                f"/apis/events.k8s.io/v1/namespaces/{regarding['namespace']}/events", body
            )
        except ClusterError as error:
            logger.info(
                "An Event could not be sent.",
                extra={"regarding": regarding["name"], "detail": error.message},
            )


def _says_all_of(shown: Mapping[str, Any], status: Mapping[str, Any]) -> bool:
    """Whether a WorkQueue shows this status, possibly beside conditions of others."""
    conditions = {one["type"]: one for one in shown.get("conditions", ())}
    return all(
        all(conditions.get(one["type"]) == one for one in value)
        if name == "conditions"
        else shown.get(name) == value
        for name, value in status.items()
    )


def _without_numbers(status: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part that is written immediately. The reason of an active scaling changes as often as a number."""
    rest = {name: value for name, value in status.items() if name not in _NUMBERS}
    rest["conditions"] = [
        (one["type"], one["status"])
        if (one["type"], one["status"]) == (ConditionType.SCALING_ACTIVE.value, "True")
        # If only the time changes, another writer had removed the condition.
        else {name: value for name, value in one.items() if name != "lastTransitionTime"}
        for one in status.get("conditions", ())
    ]
    return rest
