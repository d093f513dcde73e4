"""Write the status and the Events of WorkQueues after their passes, and show their numbers as metrics.

A pass hands over its result and ends. The reporter writes later, over connections of its own, so that a slow or
refused write delays no decision. Of several results of one WorkQueue the last one is written. The writes of each
namespace are limited in number and rate. The status is applied server-side under a field manager of its own, so that
conditions of others survive.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final

from workqueue_operator.api.reasons import ConditionType, Finding, Reason
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.backoff import delay
from workqueue_operator.digest import digest, digest_of_text, sorted_json
from workqueue_operator.errors import ClusterError, LeadershipLostError
from workqueue_operator.kube.client import events_path, workqueue_path
from workqueue_operator.kube.events import event_body, workqueue_reference
from workqueue_operator.kube.store import Key, Store
from workqueue_operator.kube.views import DeploymentView
from workqueue_operator.metrics import Metrics
from workqueue_operator.names import API_VERSION, EVENT_REPORTER, KIND, STATUS_FIELD_MANAGER
from workqueue_operator.packed_text import TextPacker
from workqueue_operator.ports import Clock, Kubernetes, Timer
from workqueue_operator.reconcile.outbox import Outboxes, Rate, never
from workqueue_operator.reconcile.status import Outcome
from workqueue_operator.scaling.decide import Depth

logger = logging.getLogger(__name__)

STATUS_EVERY: Final = 0.5
"""Seconds between two writes of the status of one WorkQueue. A wake changes several conditions within that time."""

NUMBERS_EVERY: Final = 5.0
"""Seconds between two writes of the status when only its numbers changed, or only another writer changed it.

A new dead letter is written sooner. Above 100, only a change of the first two digits is.
"""

FAILED_AGAIN: Final = (1.0, 60.0)
"""Seconds: the first and the longest pause after a status write that failed."""

EVENT_AGAIN_AFTER: Final = 600.0
"""Seconds within which the same Event about the same WorkQueue is not sent twice."""

MOST_EVENTS: Final = 1000
"""Events of one namespace that wait to be sent. Further ones are only logged."""

_NUMBERS: Final = frozenset(
    {
        "messages",
        "retrying",
        "consumers",
        "busyReplicas",
        "readyReplicas",
        "replicas",
        "deadLetters",
    }
)


STATUS_RATE: Final = Rate(per_second=50.0, burst=100, together=4)
EVENT_RATE: Final = Rate(per_second=10.0, burst=50, together=2)
"""Limits for each namespace. Status and Events have separate ones: when the API server refuses Events, the statuses
are still written."""


@dataclass(frozen=True, slots=True)
class Written:
    """What was last written for one WorkQueue: digests of its status, with and without numbers, and the time."""

    whole: bytes
    without_numbers: bytes
    at: float


@dataclass(slots=True)
class _Report:
    """The status of one WorkQueue.

    Attributes:
        packer: packs the statuses of all WorkQueues.
        packed: the status from the last pass, as JSON.
        whole, without_numbers: digests of that.
        shown_by: the version of the WorkQueue that shows this status; None while none is known.
        written: the last write; None before the first.
        failures: failed writes in a row.
        not_before: the monotonic time before which nothing is written, after a failure.
        timer: adds the report to its outbox later.
    """

    key: Key
    packer: TextPacker
    packed: bytes = b""
    whole: bytes = b""
    without_numbers: bytes = b""
    shown_by: int | None = None
    written: Written | None = None
    failures: int = 0
    not_before: float = 0.0
    timer: Timer | None = None

    @property
    def wanted(self) -> dict[str, Any]:
        """The status from the last pass."""
        found: dict[str, Any] = json.loads(self.packer.unpack(self.packed))
        return found

    def want(self, status: Mapping[str, Any]) -> None:
        """Replace the status. Most passes do not change it, so that its digests are kept."""
        text = sorted_json(status)
        self.packed, self.shown_by = self.packer.pack(text), None
        self.whole, self.without_numbers = digest_of_text(text), digest(_without_numbers(status))


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
        kubernetes: has connections of its own, which no pass uses.
        store: shows the present status of each WorkQueue.
        instance: this operator's pod name, for the Events.
        is_urgent: whether counts are being written, which go first.
    """

    def __init__(
        self,
        kubernetes: Kubernetes,
        store: Store,
        instance: str,
        metrics: Metrics,
        *,
        clock: Clock,
        is_urgent: Callable[[], bool] = never,
    ) -> None:
        self._kubernetes = kubernetes
        self._clock = clock
        self._store = store
        self._metrics = metrics
        self._instance = instance
        self._reports: dict[str, _Report] = {}
        self._packer = TextPacker()
        self._statuses = Outboxes(clock, STATUS_RATE, is_urgent)
        self._events = Outboxes(clock, EVENT_RATE, is_urgent)
        self._told: dict[str, tuple[tuple[str, str, str], ...]] = {}
        self._sent: dict[str, dict[tuple[str, str], float]] = {}
        self._event_number = 0
        self._open = True

    def forget(self, uid: str) -> None:
        """Forget a WorkQueue that was deleted. Its Events are still sent."""
        report = self._reports.pop(uid, None)
        if report is not None:
            _cancel_timer(report)
            self._statuses.of(report.key[0]).remove(uid)
        self._told.pop(uid, None)
        self._sent.pop(uid, None)

    async def flush(self, patience: float) -> None:
        """Write everything that waits, without limits of the rate, and then nothing more.

        Args:
            patience: seconds after which the remaining writes are given up.
        """
        for uid in list(self._reports):
            self._offer(uid, hurry=True)
        self._open = False
        outboxes = [*self._statuses, *self._events]
        for outbox in outboxes:
            outbox.stop_limiting()
        deadline = self._clock.monotonic() + patience
        while running := [task for outbox in outboxes for task in outbox.running]:
            remaining = deadline - self._clock.monotonic()
            if remaining <= 0:
                break
            await asyncio.wait(running, timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
        self._give_up()
        await asyncio.gather(*running, return_exceptions=True)

    def _give_up(self) -> None:
        """Write nothing more."""
        self._open = False
        for report in self._reports.values():
            _cancel_timer(report)
        for outbox in (*self._statuses, *self._events):
            outbox.clear()

    # -- numbers -------------------------------------------------------------------------------------

    def measure(self, workqueue: WorkQueue, outcome: Outcome) -> None:
        """Show the known numbers as metrics. An unknown one keeps its last value, except while suspended."""
        shown = self._metrics.workqueues.of(*workqueue.key)
        if workqueue.spec.suspend:
            shown.forget_queue()
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
        if workqueue.spec.scaling.max_wait_seconds is None:
            shown.arrived = shown.late = None
        elif outcome.line is not None:
            shown.arrived, shown.late = outcome.line.arrived, outcome.line.late

    # -- status --------------------------------------------------------------------------------------

    def status(self, workqueue: WorkQueue, status: Mapping[str, Any]) -> None:
        """Write a status soon, unless the WorkQueue shows it already."""
        uid = workqueue.metadata.uid
        self._metrics.workqueues.of(*workqueue.key).conditions = _shared(
            tuple((one["type"], one["status"], one["reason"]) for one in status["conditions"])
        )
        report = self._reports.get(uid)
        if report is None:
            report = self._reports[uid] = _Report(workqueue.key, self._packer)
            report.want(status)
        else:
            before = report.wanted
            now = _with_times_of(before, status)
            if now != before:
                report.want(now)
        self._offer(uid)

    def shows(self, workqueue: WorkQueue) -> bool:
        """Whether a WorkQueue shows the status that was last reported for it."""
        report = self._reports.get(workqueue.metadata.uid)
        return report is not None and self._is_shown(report, workqueue.metadata.uid)

    def _offer(self, uid: str, *, hurry: bool = False) -> None:
        """Add a report to its outbox when it is due.

        Args:
            hurry: it is due now, unless the WorkQueue shows it already.
        """
        report = self._reports.get(uid)
        if report is None or not self._open:
            return
        wait = self._due_in(report, uid)
        if wait is None:
            return
        _cancel_timer(report)
        if wait > 0 and not hurry:
            report.timer = self._clock.call_later(wait, partial(self._offer, uid))
        else:
            self._statuses.of(report.key[0]).put(uid, partial(self._write, uid))

    def _due_in(self, report: _Report, uid: str) -> float | None:
        """Return the seconds until the report may be written; None when the WorkQueue shows it already."""
        written, now = report.written, self._clock.monotonic()
        if written is None:
            if digest(self._shown(report.key, uid)) == report.whole:
                # An earlier process wrote it.
                report.written = Written(report.whole, report.without_numbers, now)
                return None
            return report.not_before - now
        if written.whole == report.whole and self._is_shown(report, uid):
            return None
        only_numbers = written.without_numbers == report.without_numbers
        return max(written.at + (NUMBERS_EVERY if only_numbers else STATUS_EVERY), report.not_before) - now

    async def _write(self, uid: str) -> None:
        report = self._reports.get(uid)
        if report is None:
            return
        namespace, name = report.key
        status, digests = report.wanted, (report.whole, report.without_numbers)
        try:
            answer = await self._kubernetes.apply(
                f"{workqueue_path(namespace, name)}/status",
                {
                    "apiVersion": API_VERSION,
                    "kind": KIND,
                    # With the uid, the API server refuses the write if another object of this name has replaced it.
                    "metadata": {"name": name, "namespace": namespace, "uid": uid},
                    "status": status,
                },
                manager=STATUS_FIELD_MANAGER,
            )
        except LeadershipLostError:
            self._give_up()
        except ClusterError as error:
            self._on_failure(report, uid, error)
        else:
            report.failures = 0
            report.written = Written(*digests, self._clock.monotonic())
            self._store.put_workqueue(answer, our_status=True)
            self._offer(uid)

    def _on_failure(self, report: _Report, uid: str, error: ClusterError) -> None:
        """Write again after a pause. The WorkQueue may have been deleted, and the next pass forgets it then."""
        report.failures += 1
        pause = max(error.retry_after or 0.0, delay(report.failures, *FAILED_AGAIN))
        self._metrics.reconcile_errors.labels(Reason.API_UNAVAILABLE.value).inc()
        logger.warning(
            "A status could not be written.",
            extra={
                "namespace": report.key[0],
                "workqueue": report.key[1],
                "status": error.status,
                "detail": error.message,
                "again_in_seconds": round(pause, 1),
            },
        )
        report.not_before = self._clock.monotonic() + pause
        self._offer(uid)

    def _is_shown(self, report: _Report, uid: str) -> bool:
        """Whether the WorkQueue shows the status. Most passes change neither of them."""
        version = self._store.version(report.key)
        if report.shown_by is None or report.shown_by != version:
            shows = _says_all_of(self._shown(report.key, uid), report.wanted)
            report.shown_by = version if shows else None
        return report.shown_by is not None

    def _shown(self, key: Key, uid: str) -> Mapping[str, Any]:
        body = self._store.workqueue(key)
        if body is None or body["metadata"]["uid"] != uid:
            return {}
        shown: Mapping[str, Any] = body.get("status") or {}
        return shown

    # -- Events --------------------------------------------------------------------------------------

    def transitions(self, workqueue: WorkQueue, findings: Mapping[ConditionType, Finding]) -> None:
        """Send one Event and write one log line for each condition whose status or reason has changed."""
        uid, known = workqueue.metadata.uid, workqueue.status.conditions
        shown = self._told.get(uid) or [(c.type, c.status.value, c.reason) for c in known]
        told = {kind: (state, reason) for kind, state, reason in shown}
        now = {kind.value: (finding.status, finding.reason.value) for kind, finding in findings.items()}
        self._told[uid] = _shared(tuple((kind, *what) for kind, what in {**told, **now}.items()))
        for kind, finding in findings.items():
            before = told.get(kind.value)
            if before == now[kind.value]:
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
            self.event(workqueue, event)

    def event(self, workqueue: WorkQueue, event: Event) -> None:
        """Send one Event soon, and write one log line now. A failure to send is only logged."""
        if self._is_new(workqueue, event):
            self._queue_event(_reference_to(workqueue), event)

    async def event_now(self, workqueue: WorkQueue, event: Event) -> None:
        """Do the same, and return when the API server has the Event: for those that the next leader cannot send.

        Raises:
            LeadershipLostError: this process no longer leads.
        """
        if self._is_new(workqueue, event):
            await self._create(self._event_body(_reference_to(workqueue), event))

    def _is_new(self, workqueue: WorkQueue, event: Event) -> bool:
        """Write one log line. Return whether the Event was not sent a short time ago."""
        (namespace, name), now = workqueue.key, self._clock.monotonic()
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
            return False
        self._sent[uid] = {**recent, sent: now}
        return True

    def namespace_event(self, namespace: str, event: Event) -> None:
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
        self._queue_event(regarding, event)

    def _queue_event(self, regarding: Mapping[str, str], event: Event) -> None:
        outbox = self._events.of(regarding["namespace"])
        if not self._open or len(outbox) >= MOST_EVENTS:
            return
        self._event_number += 1
        outbox.put(self._event_number, partial(self._send, self._event_body(regarding, event)))

    def _event_body(self, regarding: Mapping[str, str], event: Event) -> dict[str, Any]:
        return event_body(
            regarding,
            self._clock.now(),
            (EVENT_REPORTER, self._instance),
            reason=event.reason.value,
            action=str(event.action),
            note=event.message,
            warning=event.warning,
        )

    async def _send(self, body: dict[str, Any]) -> None:
        """Send one Event. A failure is only logged."""
        try:
            await self._create(body)
        except LeadershipLostError:
            self._give_up()

    async def _create(self, body: dict[str, Any]) -> None:
        try:
            await self._kubernetes.create(events_path(body["metadata"]["namespace"]), body)
        except ClusterError as error:
            logger.info(
                "An Event could not be sent.",
                extra={"regarding": body["regarding"]["name"], "detail": error.message},
            )


@lru_cache(maxsize=1024)
def _shared(conditions: tuple[tuple[str, str, str], ...]) -> tuple[tuple[str, str, str], ...]:
    """Return one object for equal (type, status, reason) of all conditions: most WorkQueues show the same."""
    return conditions


def _reference_to(workqueue: WorkQueue) -> dict[str, str]:
    return workqueue_reference(*workqueue.key, workqueue.metadata.uid)


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
    rest["deadLetters"] = _two_digits(status.get("deadLetters"))
    rest["conditions"] = [
        (one["type"], one["status"])
        if (one["type"], one["status"]) == (ConditionType.SCALING_ACTIVE.value, "True")
        # If only the time changes, another writer had removed the condition.
        else {name: value for name, value in one.items() if name != "lastTransitionTime"}
        for one in status.get("conditions", ())
    ]
    return rest


def _two_digits(count: int | None) -> int | None:
    """Return the count with two significant digits above 100: 1,234 becomes 1,200."""
    if count is None or count <= 100:  # noqa: PLR2004 - as the docstring says
        return count
    return int(float(f"{count:.1e}"))


def _with_times_of(before: Mapping[str, Any], status: Mapping[str, Any]) -> dict[str, Any]:
    """Return a status that keeps the transition times of an earlier one, which may not have been written yet."""
    known = {one["type"]: one for one in before.get("conditions", ())}
    conditions = []
    for one in status["conditions"]:
        same = known.get(one["type"], {})
        if same.get("status") == one["status"] and "lastTransitionTime" in same:
            conditions.append({**one, "lastTransitionTime": same["lastTransitionTime"]})
        else:
            conditions.append(one)
    return {**status, "conditions": conditions}


def _cancel_timer(report: _Report) -> None:
    if report.timer is not None:
        report.timer.cancel()
        report.timer = None
