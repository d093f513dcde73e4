"""Known defects: each mutant takes one fix out of the code."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import pytest

from workqueue.worker import cancels, consumer, lease, retirement, settlement, slot, start_tokens, tokens
from workqueue.worker import deliveries as deliveries_module
from workqueue_operator.broker import connection, declare, depth_poller, doorbell, limits, rates
from workqueue_operator.errors import ClusterError, ReconcileError
from workqueue_operator.kube import leader, resync, secrets, store
from workqueue_operator.reconcile import finalize, queue, recurring, reporter
from workqueue_operator.reconcile import reconciler as reconciler_module
from workqueue_operator.scaling import decide, depth, gather, scale, wake
from workqueue_operator.workers import apply, client, retire, target


@dataclass(frozen=True)
class Mutant:
    """A fix that is taken out."""

    defect: str
    patch: Callable[[pytest.MonkeyPatch], None]

    @contextmanager
    def apply(self) -> Iterator[None]:
        """Take the fix out for a while."""
        patches = pytest.MonkeyPatch()
        self.patch(patches)
        try:
            yield
        finally:
            patches.undo()


MUTANTS: Final[dict[str, Mutant]] = {}


def mutant(name: str, defect: str) -> Callable[[Callable[[pytest.MonkeyPatch], None]], None]:
    """Add a mutant to the table."""

    def add(patch: Callable[[pytest.MonkeyPatch], None]) -> None:
        MUTANTS[name] = Mutant(defect, patch)

    return add


# -- retirement ------------------------------------------------------------------------------------------


@mutant("rank", "a starting pod that must stay is removed instead of the marked one")
def _(patches: pytest.MonkeyPatch) -> None:
    patches.setattr(retire, "_outranked", lambda _staying, _leaving: None)
    patches.setattr(retire.PodView, "rank", property(lambda _: (True, True, True)))


@mutant("stale ReplicaSet", "the count is lowered before the ReplicaSet controller has seen the marks")
def _(patches: pytest.MonkeyPatch) -> None:
    async def at_once(*_: Any) -> bool:
        return True

    async def counted(_retirer: Any, _namespace: str, _pods: Any) -> int:
        return 0

    patches.setattr(retire.Retirer, "_come_to", at_once)
    patches.setattr(retire.Retirer, "_counted", counted)


@mutant("marks cleared early", "marks are cleared while Kubernetes still carries out the count")
def _(patches: pytest.MonkeyPatch) -> None:
    async def clear_left_over(retirer: Any, namespace: str, pods: Any, keys: Any) -> None:
        marked = [pod for pod in pods if pod.marked and not pod.terminating]
        await call_off(retirer, namespace, marked, keys)

    async def call_off(retirer: Any, namespace: str, marked: Any, keys: Any) -> None:
        await retirer._resume(marked, keys)
        await retirer._mark(namespace, marked, None)

    async def lower_and_call_off(retirer: Any, namespace: str, chosen: Any, keys: Any, steps: Any) -> Any:
        outcome = await real(retirer, namespace, chosen, keys, steps)
        agreed = [pod for pod in chosen.ask if outcome.answers[pod.name] is retire.Answer.RETIRED]
        if outcome.obstacle is retire.CONFLICT:
            await call_off(retirer, namespace, agreed, keys)
        return outcome

    real = retire.Retirer.retire
    patches.setattr(retire.Retirer, "retire", lower_and_call_off)
    patches.setattr(retire.Retirer, "clear_left_over", clear_left_over)
    patches.setattr(scale, "unsettled", lambda *_: None)


@mutant("lease outlasted", "a scale-in takes longer than the lease of the workers that agreed to leave")
def _(patches: pytest.MonkeyPatch) -> None:
    patches.setattr(retire, "LOWER_WITHIN", 1e9)


@mutant("leases not renewed", "a worker that waits for its removal consumes again after 30 s")
def _(patches: pytest.MonkeyPatch) -> None:
    async def nothing(_scaler: Any, _workqueue: Any, _retired: Any, state: Any, _handle: Any) -> Any:
        return state

    patches.setattr(scale.Scaler, "renew_leases", nothing)


@mutant("suspended leases lapse", "a worker that waits for its removal consumes again after a user suspended")
def _(patches: pytest.MonkeyPatch) -> None:
    real = reconciler_module.Reconciler._keep_retired

    async def keep_retired(self: Any, workqueue: Any, state: Any, due: Any) -> Any:
        return due if workqueue.spec.suspend else await real(self, workqueue, state, due)

    patches.setattr(reconciler_module.Reconciler, "_keep_retired", keep_retired)


@mutant(
    "trim not seen", "a pod is admitted after the count was lowered to the pods that exist, and then removed"
)
def _(patches: pytest.MonkeyPatch) -> None:
    async def yes(_scaler: Any, _attempt: Any) -> bool:
        return True

    patches.setattr(scale.Scaler, "_is_seen", yes)


@mutant(
    "crashed is dead",
    "a crashed worker that runs again, and is not reported yet, is removed without a question",
)
def _(patches: pytest.MonkeyPatch) -> None:
    real = retire._may_start
    patches.setattr(retire, "_may_start", lambda pod, now: pod.restarts_at is None and real(pod, now))
    patches.setattr(gather, "_unreported", lambda _pods, _now: [])


@mutant(
    "unscheduled is dead", "a new pod whose node the watch does not show yet is removed without a question"
)
def _(patches: pytest.MonkeyPatch) -> None:
    real = retire._may_start
    patches.setattr(retire, "_may_start", lambda pod, now: pod.scheduled and real(pod, now))
    patches.setattr(retire, "_started", lambda *_: None)


@mutant("busy not asked", "idle workers are removed without a question")
def _(patches: pytest.MonkeyPatch) -> None:
    async def agree(_workers: Any, addresses: Any, _keys: Any) -> Any:
        return {address.pod: retire.Answer.RETIRED for address in addresses}

    patches.setattr(client.Workers, "retire", agree)


@mutant("retired worker consumes", "a worker agrees to leave and keeps its consumers")
def _(patches: pytest.MonkeyPatch) -> None:
    patches.setattr(consumer.Consumer, "retire", lambda self, _timeout: self.held())


# -- the doorbell ----------------------------------------------------------------------------------------


@mutant("no watchdog", "a queue without a majority silences the doorbells on its channel")
def _(patches: pytest.MonkeyPatch) -> None:
    def install(doorbells: Any, queue: str, *, ours: bool = True) -> Any:
        made = doorbells._doorbells[queue] = doorbell._Doorbell(queue)
        doorbells._consume(made, doorbells._consumer_channel(alone=False))
        return made

    def remove(doorbells: Any, queue: str) -> None:
        gone = doorbells._doorbells.pop(queue, None)
        if gone is not None:
            doorbells._cancel(gone)

    patches.setattr(doorbell.Doorbells, "_install", install)
    patches.setattr(doorbell.Doorbells, "remove", remove)
    patches.setattr(doorbell.Doorbells, "_on_stuck", lambda *_: None)


@mutant("nack before cancel", "the message of a ring returns to the same doorbell")
def _(patches: pytest.MonkeyPatch) -> None:
    real = doorbell.Doorbells._on_delivery

    def on_delivery(doorbells: Any, one: Any, tag: int, size: int) -> None:
        channel = one.consumer_channel.channel
        channel.basic_nack(tag, requeue=True)
        real(doorbells, one, tag, size)
        one.held = None

    patches.setattr(doorbell.Doorbells, "_on_delivery", on_delivery)


@mutant("ring forgotten", "a ring whose pass fails is not followed by another pass")
def _(patches: pytest.MonkeyPatch) -> None:
    async def reconcile(reconciler: Any, key: Any) -> Any:
        due = await real(reconciler, key)
        return queue.NextPass() if due.failed else due

    real = reconciler_module.Reconciler.reconcile
    patches.setattr(reconciler_module.Reconciler, "reconcile", reconcile)


@mutant(
    "no doorbell before zero",
    "the step to zero installs no doorbell and does not look whether the queue is empty",
)
def _(patches: pytest.MonkeyPatch) -> None:
    async def confirm(*_: Any) -> bool:
        return True

    patches.setattr(wake, "confirm_empty", confirm)


# -- what the operator knows -----------------------------------------------------------------------------


@mutant("unreachable is busy", "a worker that cannot be asked counts as busy and raises the count")
def _(patches: pytest.MonkeyPatch) -> None:
    def bounds(spec: Any, workload: Any, depth: Any, seen: Any) -> Any:
        known = depth.in_handlers + depth.unconfirmed
        return real(spec, workload, dataclasses.replace(depth, in_handlers=known, unconfirmed=0), seen)

    real = decide._bounds
    patches.setattr(decide, "_bounds", bounds)


@mutant("zero is zero", "zeros of a queue without a leader count as an empty queue")
def _(patches: pytest.MonkeyPatch) -> None:
    patches.setattr(depth, "is_implausible", lambda _: False)
    patches.setattr(gather, "is_implausible", lambda _: False)


@mutant("unknown is zero", "an unknown depth counts as an empty queue")
def _(patches: pytest.MonkeyPatch) -> None:
    def judge(answers: Any, name: str) -> Any:
        found = real(answers, name)
        return found if isinstance(found, decide.Depth) else decide.Depth(0, 0, 0)

    real = depth.judge
    for module in (depth, gather):
        patches.setattr(module, "judge", judge)


@mutant("quota", "a quota that admits fewer pods than the count makes scale-in impossible")
def _(patches: pytest.MonkeyPatch) -> None:
    patches.setattr(decide, "_trim", lambda *_: None)


@mutant("Secret read once", "an idle WorkQueue never reads its Secret again")
def _(patches: pytest.MonkeyPatch) -> None:
    async def nothing(*_: Any) -> None:
        return None

    patches.setattr(secrets.Secrets, "read_due", nothing)


@mutant("refusal is a conflict", "a refused count is taken for another writer's")
def _(patches: pytest.MonkeyPatch) -> None:
    async def write(applier: Any, workqueue: Any, name: str, observed: int, replicas: int) -> Any:
        try:
            return await real(applier, workqueue, name, observed, replicas)
        except ClusterError as error:
            if error.denied:
                return None
            raise

    real = apply.WorkloadApplier.scale
    patches.setattr(apply.WorkloadApplier, "scale", write)


@mutant("refused template", "a refused template stops the scaling of the workers that exist")
def _(patches: pytest.MonkeyPatch) -> None:
    def refuse(_seen: Any, why: Any) -> Any:
        raise ReconcileError(why.reason, why.message)

    patches.setattr(apply, "_as_far_as_admitted", refuse)


@mutant("no backoff", "a failing pass is repeated immediately")
def _(patches: pytest.MonkeyPatch) -> None:
    patches.setattr(
        reconciler_module.Reconciler, "_failed", lambda _self, _key, *, at_least=0.0: queue.NextPass(0.01)
    )


@mutant("first LIST", "a failing LIST at the start ends the operator")
def _(patches: pytest.MonkeyPatch) -> None:
    patches.setattr(resync.Resync, "first", resync.Resync.once)


@mutant("gap not corrected", "what was deleted in a gap of the watch stays until the next round of LISTs")
def _(patches: pytest.MonkeyPatch) -> None:
    async def until_due(self: Any) -> None:
        await resync.asyncio.sleep(self._seconds)

    patches.setattr(resync.Resync, "_until_due", until_due)


@mutant("same broker by name", "two addresses of one broker count as two brokers")
def _(patches: pytest.MonkeyPatch) -> None:
    async def same(self: Any, other: Any, _queue: str) -> bool:
        return bool(self.binding.display == other.binding.display)

    async def unused(*_: Any) -> None:
        return None

    patches.setattr(connection.Broker, "is_same_as", same)
    patches.setattr(declare, "require_unused", unused)


@mutant("refused workers run", "a WorkQueue that loses its queue to an older one keeps its workers")
def _(patches: pytest.MonkeyPatch) -> None:
    async def nothing(*_: Any) -> None:
        return None

    patches.setattr(reconciler_module.Reconciler, "_compare_claims", nothing)
    patches.setattr(target.Targets, "stop_own_workers", nothing)


@mutant("empty broker", "a pass without a broker renders another template and replaces every worker")
def _(patches: pytest.MonkeyPatch) -> None:
    real = apply.WorkloadApplier.ensure

    async def ensure(applier: Any, workqueue: Any, seen: Any, broker: Any = None, proven: Any = None) -> Any:
        return await real(applier, workqueue, seen, broker or "none", proven)

    patches.setattr(apply.WorkloadApplier, "ensure", ensure)


@mutant("dead letters late", "a dead letter shows only at the next slow poll")
def _(patches: pytest.MonkeyPatch) -> None:
    real = depth_poller.DepthPoller.last_answer

    async def last_answer(poller: Any, key: Any, name: str, *, warm: bool) -> Any:
        polled = poller.watch(key, name)
        return polled.last if polled.last is not None else await real(poller, key, name, warm=False)

    patches.setattr(depth_poller.DepthPoller, "last_answer", last_answer)


@mutant("store is not corrected", "a deletion in a gap of the watch is never noticed")
def _(patches: pytest.MonkeyPatch) -> None:
    patches.setattr(store.Store, "correct", lambda *_: None)


@mutant("old event wins", "an event that is older than the answer to a write replaces it")
def _(patches: pytest.MonkeyPatch) -> None:
    patches.setattr(store.Store, "_is_news", _always_news)


@mutant("count not tested", "a count is written although another writer has changed it")
def _(patches: pytest.MonkeyPatch) -> None:
    async def write(applier: Any, workqueue: Any, name: str, _observed: int, replicas: int) -> Any:
        live = await applier.read(workqueue, name)
        return await real(applier, workqueue, name, live["spec"]["replicas"] if live else 0, replicas)

    real = apply.WorkloadApplier.scale
    patches.setattr(apply.WorkloadApplier, "scale", write)


@mutant("replicas applied away", "an apply without replicas resets the count to 1")
def _(patches: pytest.MonkeyPatch) -> None:
    async def nothing(*_: Any) -> None:
        return None

    patches.setattr(apply.WorkloadApplier, "_hand_over_replicas", nothing)


@mutant(
    "frozen leader goes on", "a leader that was frozen for longer than its Lease goes on, without statuses"
)
def _(patches: pytest.MonkeyPatch) -> None:
    async def renew(leadership: Any) -> None:
        try:
            while True:
                await leadership._clock.sleep(leader.RENEW_SECONDS)
                await leadership._succeeds(leadership._renew_once())
                if not leadership.leads:
                    return
        finally:
            leadership.lost.set()

    patches.setattr(leader.Leadership, "_renew", renew)


@mutant("status forgotten", "a status whose write failed is not written again")
def _(patches: pytest.MonkeyPatch) -> None:
    def on_failure(_reporter: Any, report: Any, _uid: str, _error: Any) -> None:
        report.failures += 1

    patches.setattr(reporter.Reporter, "_on_failure", on_failure)


@mutant("leak of pass states", "a deleted WorkQueue's state stays")
def _(patches: pytest.MonkeyPatch) -> None:
    patches.setattr(reporter.Reporter, "forget", lambda *_: None)


@mutant("deletion during a job", "DeleteIfEmpty stops the workers while a handler may fail")
def _(patches: pytest.MonkeyPatch) -> None:
    async def nothing(*_: Any) -> None:
        return None

    patches.setattr(finalize.Finalizer, "_require_idle_workers", nothing)
    patches.setattr(finalize.Finalizer, "_ensure_a_worker", nothing)


# -- limits, cancels and recurring messages --------------------------------------------------------------


@mutant("no token", "a handler starts without a token of the limit")
def _(patches: pytest.MonkeyPatch) -> None:
    patches.setattr(tokens.Tokens, "take", lambda *_: True)


@mutant("tokens added", "tokens that workers hold are taken for missing ones, and others are added")
def _(patches: pytest.MonkeyPatch) -> None:
    async def ensure(_limits: Any, limit: Any, broker: Any) -> None:
        await broker.declare_queue(limit.queue(broker.version))
        await limits._fill(limit, broker)

    patches.setattr(limits.Limits, "ensure", ensure)


@mutant("start without a token", "a handler starts without a token of the limit per second")
def _(patches: pytest.MonkeyPatch) -> None:
    patches.setattr(start_tokens.StartTokens, "take", lambda *_: True)


@mutant("burst of a new leader", "a new leader publishes as many tokens as the burst")
def _(patches: pytest.MonkeyPatch) -> None:
    async def run(feeder: Any, identity: Any, feed: Any) -> None:
        with contextlib.suppress(ReconcileError, connection.QueueMissingError):
            await feed.broker.publish_tokens(feed.limit.name, b"1", feed.limit.most_tokens)
        await real(feeder, identity, feed)

    real = rates.RateFeeder._run
    patches.setattr(rates.RateFeeder, "_run", run)


@mutant("pause made up for", "after a pause the operator publishes the tokens of all of it")
def _(patches: pytest.MonkeyPatch) -> None:
    patches.setattr(rates.Pace, "due", lambda pace, limit, now: pace._owed(limit, now))


@mutant("cancel not looked up", "a worker takes a message although it knows its cancel")
def _(patches: pytest.MonkeyPatch) -> None:
    patches.setattr(cancels.Cancels, "find", lambda *_: None)


@mutant("earlier cancels not read", "a worker that starts does not read the earlier cancels")
def _(patches: pytest.MonkeyPatch) -> None:
    patches.setattr(cancels.Cancels, "_read", cancels.Cancels._recover)


@mutant("cancel of another message", "a worker drops each message that it has when one is cancelled")
def _(patches: pytest.MonkeyPatch) -> None:
    def cancel_by_id(deliveries: Any, cancel: Any) -> None:
        for delivery in deliveries._consumer.deliveries():
            if delivery.lease.held and not delivery.decided and not delivery.abandoned:
                deliveries._drop(delivery, cancel, was_running=not delivery.returned)

    patches.setattr(deliveries_module.Deliveries, "_cancel_by_id", cancel_by_id)


@mutant("slot not recorded", "a new leader does not know which recurring messages were published")
def _(patches: pytest.MonkeyPatch) -> None:
    async def nothing(runner: Any, workqueue: Any, _progress: Any) -> None:
        runner._unrecorded.discard(workqueue.metadata.uid)

    patches.setattr(recurring.RecurringRunner, "_write", nothing)


@mutant("slots of a gap", "a new leader begins with the next slot of a recurring message")
def _(patches: pytest.MonkeyPatch) -> None:
    async def read(_runner: Any, _workqueue: Any) -> dict[str, Any]:
        return {}

    patches.setattr(recurring.RecurringRunner, "_read", read)


# -- the worker ------------------------------------------------------------------------------------------


@mutant("ack before the confirm", "the original is acknowledged before RabbitMQ has confirmed the copy")
def _(patches: pytest.MonkeyPatch) -> None:
    def publish(copy: Any) -> None:
        if copy._target.name in copy._settler.known_queues:
            copy._settler.ack(copy._delivery, copy._outcome)
            copy._settler.republisher().submit(copy._copy, lambda: False)
        else:
            real(copy)

    real = settlement._Republishing.publish
    patches.setattr(settlement._Republishing, "publish", publish)


@mutant("lost delivery settled", "a handler's result counts although its delivery was lost")
def _(patches: pytest.MonkeyPatch) -> None:
    patches.setattr(lease.Lease, "lose", lambda _self: False)


@mutant("slot never reopens", "a slot whose queue was deleted does not consume again")
def _(patches: pytest.MonkeyPatch) -> None:
    patches.setattr(slot.Slot, "_reopen", lambda _self: None)


@mutant("lease of a worker never ends", "a retired worker that is not removed never consumes again")
def _(patches: pytest.MonkeyPatch) -> None:
    patches.setattr(retirement.Retirement, "_expire", lambda *_: None)
    patches.setattr(retirement.Retirement, "end", lambda *_: None)


def _always_news(self: Any, kind: str, key: Any, body: Any) -> bool:
    self._seen[kind, key] = store._Seen(store._version(body), store.time.monotonic())
    return True
