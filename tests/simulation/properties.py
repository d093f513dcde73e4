"""What must hold in every run. Some properties are checked at each write, the others once a second or at the end."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final

from tests.simulation.apiserver import Key, Object
from tests.simulation.cluster import OPERATOR, condition
from tests.simulation.controllers import REPLICASETS, is_ready, labelled
from tests.simulation.rabbit import ModelChannel, ModelConnection, ModelConsumer, ModelMessage, ModelQueue
from tests.simulation.stage import Stage, WorkQueueKey
from tests.simulation.workers import WorkerProcess
from tests.simulation.world import BEGIN
from workqueue.amqp.connection import HANDSHAKE_TIMEOUT_SECONDS, LONGEST_WAIT_SECONDS
from workqueue.contract.headers import DUE_AT
from workqueue.worker.tokens import Tokens
from workqueue_operator import __main__ as main
from workqueue_operator.api.reasons import Reason
from workqueue_operator.api.workqueue import WorkQueue, timestamp
from workqueue_operator.broker.depth_poller import LONGEST_PAUSE, STEADY_SECONDS, WARM_SECONDS
from workqueue_operator.broker.doorbell import PRIORITY
from workqueue_operator.names import ANNOTATION_DELETION_COST, LABEL_RETIRING, workload_name
from workqueue_operator.reconcile.outbox import REPORT_AFTER
from workqueue_operator.reconcile.reconciler import LOOK_AGAIN
from workqueue_operator.reconcile.reporter import STATUS_EVERY
from workqueue_operator.scaling import slots

WAKES_WITHIN: Final = 12.0
"""Seconds until the first message of an idle, healthy WorkQueue has raised the count."""

POLLED_WITHIN: Final = 45.0
"""The same without a doorbell: an idle queue is polled every 30 s."""

MARGIN: Final = 45.0
"""Seconds after a fault until a WorkQueue counts as healthy. The longest pauses of retries are in it."""

NAMED_WITHIN: Final = 90.0
"""Seconds until a waiting message has a worker or an obstacle that a condition names."""

CONNECTS_WITHIN: Final = LONGEST_WAIT_SECONDS + HANDSHAKE_TIMEOUT_SECONDS
"""Seconds until a worker connects again after the obstacle has gone."""

LOST_FOR: Final = 1.0
"""Seconds after which a worker knows that a delivery is lost."""

MILLISECOND: Final = 0.001
"""The precision of the time at which a message is due."""

LATE: Final = 5.0
"""Seconds by which a delayed message may be late. A worker uses a new delay queue only after two seconds."""

CANCELS_KNOWN: Final = 15.0
"""Seconds after which a worker knows a cancel. One that starts reads the earlier ones before it takes a message."""

LONGEST_DELAY: Final = 90.0
"""Seconds without a fault after which no message was on its way during one."""

RECURS_WITHIN: Final = 60.0
"""Seconds within which a recurring message is published, or counts as missed."""

SECRET_KNOWN: Final = 90.0
"""Seconds after which an operator knows a changed Secret, which it reads once a minute."""

FIRST_SLOT: Final = 15.0
"""Seconds until an operator knows a new entry."""

HELD_WITHIN: Final = 25.0
"""Seconds for which an operator may hold a message."""

SURPLUS_LEAVES_WITHIN: Final = 75.0
"""Seconds, beyond the scale-in delay, within which workers without messages are removed."""

RANG: Final = 30.0
"""Seconds after a ring within which the count may go to zero without a doorbell: the pass of the ring follows."""

CONTRADICTS: Final = 40.0
"""Seconds for which the status may differ from the state."""

PASS_WITHIN: Final = LOOK_AGAIN
"""Seconds within which a pass follows a changed count and ends."""

UNKNOWN_WITHIN: Final = 60.0
"""Seconds without a majority after which a depth is no longer reported as known. Idle queues are polled each 30 s."""

DEAD_LETTERS: Final = (
    STEADY_SECONDS + LONGEST_PAUSE * WARM_SECONDS + PASS_WITHIN + REPORT_AFTER + STATUS_EVERY
)
"""Seconds until a dead letter shows while workers run. The queue may not have changed for a while, and a round of
polls may take long."""

BLIND: Final = 45.0
"""Seconds without a broker after which the operator cannot know its counts."""

FOREIGN: Final = 120.0
"""Seconds after which a count that something else has written no longer matters."""

JUST_UNREADY: Final = 1.0
"""Seconds before its removal within which a pod may lose its readiness unseen: a limit of the retirement protocol
(docs/specs/retire.md). Seed 3924 found such a pod, whose worker had crashed and was busy again."""

WAITS_TOO: Final = 30.0
"""Seconds for which a message waits, so that no step to zero may overlook it."""

CAUSE: Final = 260.0
"""Seconds after a user's change within which its new template may be written. A webhook may refuse it for a while."""

FLOOD: Final = 400
"""Writes in ten seconds for each WorkQueue: an operator that writes more never pauses."""

PASSES: Final = 120
"""Passes in ten seconds for each WorkQueue: one that fails more often does not pause."""

TASK_ENDS_WITHIN: Final = 30.0
"""Seconds within which a pass and the write of a report end."""

SETTLES_WITHIN: Final = 200.0
"""Seconds after the last fault within which everything has converged."""


class Properties:
    """Watches one stage."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._world = stage.world
        self._cluster = stage.cluster
        self._held: dict[tuple[str, str], float] = {}
        self._contradictions: dict[tuple[WorkQueueKey, str], float] = {}
        self._unserved: dict[WorkQueueKey, float] = {}
        self._named_at: dict[WorkQueueKey, float] = {}
        """When a condition last named an obstacle while a message waited."""
        self._rung: dict[ModelMessage, ModelConsumer] = {}
        self._rang_at: dict[ModelQueue, float] = {}
        self._changes = 0
        """How many objects other than Leases have been written."""
        self._contradicted: dict[WorkQueueKey, tuple[tuple[int, int | None, int | None], frozenset[str]]] = {}
        self._idle_since: dict[WorkQueueKey, float] = {}
        self._leaderless_since: dict[WorkQueueKey, float] = {}
        self._writes: deque[tuple[float, int]] = deque()
        self._most_messages: dict[WorkQueueKey, deque[tuple[float, int]]] = {}
        self._waiting: dict[WorkQueueKey, deque[tuple[float, int]]] = {}
        self._lost_marks: dict[WorkQueueKey, float] = {}
        self._unready_at: dict[tuple[str, str], float] = {}
        """When a pod was last seen to lose its readiness, by namespace and name."""
        self._passes: dict[WorkQueueKey, deque[int]] = {}
        self._tokens: dict[tuple[str, str], int] = Counter()
        """How many tokens of a limit per second RabbitMQ has stored, by broker and queue."""
        self._starts: dict[tuple[str, str], int] = Counter()
        self._paces: dict[tuple[str, str, Any], tuple[float, float]] = {}
        """How many tokens an operator may publish to a queue, and when that was calculated."""
        self._last_conditions: dict[WorkQueueKey, dict[str, str]] = {}
        stage.cluster.on_scale_in = self._on_scale_in
        stage.cluster.on_copy = self._on_copy
        stage.cluster.on_handler = self._on_handler
        stage.cluster.on_dropped = self._on_dropped
        stage.before_recurring_ends = self._check_recurring
        stage.cluster.server.on_count_conflict = self._on_count_conflict
        stage.cluster.server.on_write.append(self._on_write)
        for rabbit in set(stage.cluster.rabbits.values()):
            rabbit.on_delete = self._on_delete
            rabbit.on_delivery = self._on_delivery
            rabbit.on_own_publish = self._on_own_publish
            rabbit.on_declare = self._on_declare
            rabbit.on_push = self._on_push

    # -- at each event -------------------------------------------------------------------------------

    def _on_scale_in(self, replicaset: Object, pod: Object, worker: WorkerProcess | None) -> None:
        """A worker in a handler is never removed by a scale-in."""
        name = pod["metadata"]["name"]
        held = worker.held if worker is not None else 0
        self._world.tell("replicaset", f"removes pod {name}{f' with {held} messages' if held else ''}")
        if worker is None or not held:
            return
        key = (worker.namespace, worker.workqueue)
        workqueue = self._cluster.server.get("workqueues", *key)
        deployment = ("deployments", key[0], workload_name(key[1]))
        if workqueue is None or workqueue["metadata"].get("deletionTimestamp"):
            return
        if self._world.now - self._stage.foreign_write.get(deployment, -1e9) < FOREIGN:
            return
        if self._rolls_out(deployment, replicaset) or not self._is_owner(key):
            return
        if self._world.now - self._lost_marks.get(key, -1e9) < FOREIGN:
            return
        if self._world.now - self._unready_at.get((key[0], name), -1e9) < JUST_UNREADY:
            return
        self._world.violated("busy worker removed", f"pod {name} of {key[0]}/{key[1]} had {held} messages")

    def _rolls_out(self, key: Key, replicaset: Object) -> bool:
        deployment = self._cluster.server.objects.get(key)
        if deployment is None or deployment["spec"]["template"] != replicaset["spec"]["template"]:
            return True
        return self._replicasets(key) > 1

    def _replicasets(self, key: Key) -> int:
        """How many ReplicaSets of a Deployment have pods."""
        owned = [
            body
            for other, body in self._cluster.server.of("replicasets")
            if other[1] == key[1] and body["metadata"]["ownerReferences"][0]["name"] == key[2]
        ]
        return sum(bool(one["spec"]["replicas"] or one["status"].get("replicas")) for one in owned)

    def _on_write(
        self, writer: str, _kind: str, key: Key, before: Object | None, after: Object | None
    ) -> None:
        self._changes += key[0] != "leases"
        if key[0] == "deployments" and before is not None and after is not None:
            self._on_deployment(writer, key, before, after)
        elif key[0] == "workqueues" and after is not None:
            self._tell_conditions((key[1], key[2]), after)
        elif key[0] == "pods" and before is not None and _lost_its_mark(writer, before, after):
            self._lost_marks[key[1], str(labelled(before))] = self._world.now
        elif (
            key[0] == "pods"
            and after is not None
            and before is not None
            and is_ready(after) != is_ready(before)
        ):
            self._world.tell("kubelet", f"pod {key[2]} is {'' if is_ready(after) else 'not '}Ready")
            if is_ready(before):
                self._unready_at[key[1], key[2]] = self._world.now

    def _on_deployment(self, writer: str, key: Key, before: Object, after: Object) -> None:
        was, now = before["spec"].get("replicas", 1), after["spec"].get("replicas", 1)
        name = key[2].removesuffix("-worker")
        workqueue_key = (key[1], name)
        if before["spec"]["template"] != after["spec"]["template"]:
            changed = list(_differing(before["spec"]["template"], after["spec"]["template"]))
            self._world.tell(writer, f"{key[1]}/{name}: a new template: {', '.join(changed)}")
            self._require_cause(workqueue_key)
        if was == now:
            return
        self._world.tell(writer, f"{key[1]}/{name}: count {was} -> {now}")
        if writer != OPERATOR:
            return
        body = self._cluster.server.get("workqueues", *workqueue_key)
        if body is None or body["metadata"].get("deletionTimestamp") or not self._is_owner(workqueue_key):
            return
        self._require_seen(key, was)
        if "replicas" in body["spec"] or self._was_edited(workqueue_key):
            return
        stage = self._stage
        queue, rabbit = stage.queue(workqueue_key), self._cluster.rabbits[stage.hosts[workqueue_key]]
        # A broker that has just come back is in `_down` until the next second.
        down_since = self._down.get(rabbit.name) if rabbit.down or rabbit.hung else None
        if down_since is not None and self._world.now - down_since > BLIND:
            self._world.violated(
                "unknown depth changed a count", f"{key[1]}/{name}: {was} -> {now} without a broker"
            )
        if now == 0 and queue is not None and queue.ready and queue.waiting_since is not None:
            waited = self._world.now - queue.waiting_since
            if waited > WAITS_TOO:
                self._world.violated(
                    "step to zero with waiting messages", f"{key[1]}/{name}: waiting for {waited:.0f} s"
                )
        if now > was:
            self._require_need(workqueue_key, body, now)
            return
        self._require_nothing_waits(workqueue_key, body, was, now)
        if now == 0 and queue is not None:
            self._require_doorbell(workqueue_key, body, queue)

    def _is_owner(self, key: WorkQueueKey) -> bool:
        """Whether no older WorkQueue names the same queue."""
        return key == min(self._claimants(key), key=self._age, default=key)

    def _claimants(self, key: WorkQueueKey) -> list[WorkQueueKey]:
        """The WorkQueues that name the queue of this one."""
        stage = self._stage
        return [
            other
            for other, one in stage.workqueues.items()
            if one.queue == stage.workqueues[key].queue
            and (body := self._cluster.server.get("workqueues", *other)) is not None
            and not body["metadata"].get("deletionTimestamp")
        ]

    def _age(self, key: WorkQueueKey) -> tuple[str, str]:
        metadata = self._cluster.server.objects["workqueues", key[0], key[1]]["metadata"]
        return metadata["creationTimestamp"], metadata["uid"]

    def _require_seen(self, key: Key, was: int) -> None:
        """An operator changes only a count that it has seen."""
        operator = self._cluster._current()
        if operator is None or operator.parts is None:
            return
        seen = operator.parts.store.deployment(key[1], key[2])
        if seen is not None and seen["spec"].get("replicas", 1) != was:
            self._world.violated(
                "a count was changed unseen", f"{key[1]}/{key[2]}: {seen['spec'].get('replicas')} was {was}"
            )

    def _on_count_conflict(self, _writer: str, key: Key) -> None:
        """Without another writer, the operator knows the count that it has written."""
        stage = self._stage
        if stage.healthy_for("server", "operator") < RANG or not self._is_owner((key[1], self._named(key))):
            return
        if self._world.now - stage.foreign_write.get(key, -1e9) > FOREIGN:
            self._world.violated("the operator conflicts with itself", f"{key[1]}/{key[2]}")

    @staticmethod
    def _named(key: Key) -> str:
        return key[2].removesuffix("-worker")

    def _require_nothing_waits(self, key: WorkQueueKey, body: Object, was: int, now: int) -> None:
        """No scale-in leaves fewer workers than the messages ask for that have been waiting."""
        scaling, recent = body["spec"]["scaling"], self._waiting.get(key)
        if not recent or recent[-1][0] - recent[0][0] < WAITS_TOO - 2.0:
            return
        if "ratePerSecond" in body["spec"].get("limits", {}):
            # More workers would not start more handlers.
            return
        queue = self._stage.queue(key)
        least = min(*(n for _, n in recent), len(queue.ready) if queue is not None else 0)
        need = min(-(-least // (scaling.get("messagesPerReplica") or max(least, 1))), scaling["maxReplicas"])
        if now < min(need, was):
            self._world.violated(
                "count lowered while messages wait",
                f"{key[0]}/{key[1]}: {was} -> {now}, at least {least} waited",
            )

    def _require_doorbell(self, key: WorkQueueKey, body: Object, queue: ModelQueue) -> None:
        """Before the count goes to zero, something notices the next message."""
        stage = self._stage
        pods = [body for other, body in self._cluster.server.of("pods") if self._is_pod_of(key, other, body)]
        if body["spec"]["scaling"].get("wake") == "Poll" or not pods:
            return
        if stage.healthy_for(f"broker {stage.broker(key)}", f"wq {key[0]}/{key[1]}", "operator") < RANG:
            return
        rang = self._world.now - self._rang_at.get(queue, -1e9) < RANG
        if not rang and not any(one.priority == PRIORITY for one in queue.consumers):
            self._world.violated("step to zero without a doorbell", f"{key[0]}/{key[1]}")

    @staticmethod
    def _is_pod_of(key: WorkQueueKey, pod_key: Key, pod: Object) -> bool:
        return (
            pod_key[1] == key[0]
            and pod["metadata"]["labels"].get("workqueue.dev/workqueue") == key[1]
            and pod["status"]["phase"] not in {"Failed", "Succeeded"}
        )

    def _on_handler(self, worker: WorkerProcess, message: Any) -> None:
        self._require_token(worker)
        self._require_start(worker)
        self._require_not_cancelled(worker, str(message.properties.message_id))

    def _require_start(self, worker: WorkerProcess) -> None:
        """Each handler uses up a token of the limit per second. One that RabbitMQ gave twice counts twice."""
        limit, rabbit = worker.config.limit_rate_queue, worker.rabbit()
        if limit is None or rabbit is None:
            return
        queue, entry = rabbit.queues.get(limit), (rabbit.name, limit)
        if all(paced[:2] != entry for paced in self._paces):
            # The worker was at the new broker before the operator.
            return
        self._starts[entry] += 1
        tokens = self._tokens[entry] + (queue.lost_deliveries if queue is not None else 0)
        if queue is not None and self._starts[entry] > tokens:
            self._world.violated(
                "starts without a token", f"{self._starts[entry]} starts of {limit}, {tokens} tokens"
            )

    def _on_declare(self, connection: ModelConnection, queue: str) -> None:
        """An operator begins to publish the tokens of a limit when it has declared their queue."""
        self._paces.setdefault((connection.rabbit.name, queue, connection.process), (2.0, self._world.now))

    def _on_token(self, channel: ModelChannel, queue: str) -> None:
        """An operator publishes tokens at the rate, and after a pause the burst. A new one begins without a burst."""
        rabbit, now = channel.connection.rabbit, self._world.now
        self._tokens[rabbit.name, queue] += 1
        limits = next(
            one.spec["limits"]
            for one in self._stage.workqueues.values()
            if "ratePerSecond" in one.spec.get("limits", {})
        )
        # One token is in progress, and one was published before the pause.
        entry, most = (rabbit.name, queue, channel.connection.process), limits["burst"] + 2.0
        left, at = self._paces.get(entry, (2.0, now))
        left = min(left + (now - at) * limits["ratePerSecond"], most) - 1.0
        self._paces[entry] = left, now
        if left < -MILLISECOND:
            self._world.violated(
                "more tokens than the rate", f"{queue}, by {channel.connection.process.name}"
            )

    def _require_not_cancelled(self, worker: WorkerProcess, message: str) -> None:
        """A cancelled message is not started, after the worker has learned of it or a while later."""
        stage, key = self._stage, (worker.namespace, worker.workqueue)
        if message in worker.knows_cancels:
            self._world.violated("a cancelled message is started", f"{message} by {worker.pod}, which knew")
        cancelled = stage.cancelled.get(message)
        healthy = stage.healthy_for(f"broker {stage.broker(key)}", f"wq {key[0]}/{key[1]}")
        if cancelled is not None and min(self._world.now - cancelled, healthy) > CANCELS_KNOWN:
            self._world.violated("a cancelled message is started", f"{message} by {worker.pod}")

    def _on_dropped(self, worker: WorkerProcess, message: str) -> None:
        """A worker drops only messages that were cancelled."""
        if message not in self._stage.cancelled:
            self._world.violated("a message is dropped without a cancel", f"{message} by {worker.pod}")

    def _require_token(self, worker: WorkerProcess) -> None:
        """Never more handlers run than the limit allows. A handler whose token was lost is the exception."""
        limit = worker.config.limit_queue
        rabbit = worker.rabbit()
        if limit is None or rabbit is None or (tokens := rabbit.queues.get(limit)) is None:
            return
        running = 1
        for other in self._cluster.workers:
            if other.config.limit_queue != limit or other.rabbit() is not rabbit:
                continue
            held = next(one for one in other.runtime.consumer.limits if isinstance(one, Tokens))
            if held._without or not other.is_connected:
                return
            running += len(other.running())
        if running > tokens.arguments["x-max-length"]:
            self._world.violated("more handlers than the limit", f"{running} of {limit}")

    def _on_own_publish(self, channel: ModelChannel, message: ModelMessage) -> None:
        """A slot of a recurring message is published once, unless an Event names it."""
        if message.is_transient and message.original == "token":
            self._on_token(channel, message.routing_key)
        if "/" not in message.original:
            return
        stage, name = self._stage, message.original.partition("/")[0]
        if message.is_transient:
            if not stage.published[message.original]:
                self._world.violated("the ledger names what was not published", message.original)
            return
        stage.published[message.original] += 1
        key = next(key for key in stage.workqueues if key[1] == name)
        stage.confirmed[message.original] = key
        moved = self._world.now - stage.changed_template.get(key, -math.inf)
        current = self._cluster.rabbits[stage.hosts[key]]
        if channel.connection.rabbit is not current and moved < SECRET_KNOWN:
            # The user moves it, as the other messages of the old broker.
            stage.exempt.add(message.original)
        self._world.tell("operator", f"publishes {message.original}")
        named = any(message.original in said for other, _, said in stage.told if other == key)
        if stage.published[message.original] > 1 and not named:
            self._world.violated("a recurring message repeats", f"{message.original}, and no Event says so")

    def _on_push(self, queue: ModelQueue, message: ModelMessage) -> None:
        """A delayed message comes at its time: never before, and soon after it while the broker is well."""
        due_at, stage = message.headers.get(DUE_AT), self._stage
        if due_at is None or not (keys := [key for key in stage.workqueues if stage.queue(key) is queue]):
            return
        late = self._world.unix() - due_at / 1000
        if late < -MILLISECOND:
            self._world.violated("a delayed message is early", f"{message.original}: {-late:.3f} s")
        # Without its confirm a copy is published again, and the second one is late.
        host = stage.broker(keys[0])
        # An alarm holds up the copy of a message whose handler has failed.
        scopes = ["confirms", f"broker {host}", f"alarm {host}", *(f"wq {key[0]}/{key[1]}" for key in keys)]
        if late > LATE and stage.healthy_for(*scopes) > LONGEST_DELAY:
            self._world.violated("a delayed message is late", f"{message.original}: {late:.1f} s")

    def _check_recurring(self) -> None:
        """Each slot is published, unless an Event says that it was missed."""
        for key, one in self._stage.workqueues.items():
            if key in self._stage.paused_recurring or len(self._claimants(key)) > 1:
                continue
            for entry in one.spec.get("recurring", ()):
                every = entry["everySeconds"]
                for number in range(1, int((self._world.now - RECURS_WITHIN) // every) + 1):
                    slot = BEGIN + timedelta(seconds=number * every)
                    if number * every > FIRST_SLOT and not self._is_accounted_for(key, entry["name"], slot):
                        self._world.violated("a recurring message is missing", f"{key[0]}/{key[1]}: {slot}")

    def _is_accounted_for(self, key: WorkQueueKey, name: str, slot: datetime) -> bool:
        if self._stage.published.get(slots.message_id(key[1], name, slot)):
            return True
        for other, reason, said in self._stage.told:
            if other == key and reason is Reason.RECURRING_MISSED:
                first, last = said.partition(" from ")[2].partition(". ")[0].split(" to ")
                if first <= timestamp(slot) <= last:
                    return True
        return False

    def _on_copy(self, worker: WorkerProcess, message: str) -> None:
        """A worker publishes no copy of a message that RabbitMQ has taken back."""
        stage, key = self._stage, (worker.namespace, worker.workqueue)
        queue = stage.queue(key)
        if queue is None or message in stage.exempt:
            return
        held = [one for one, channel in queue.unacked.items() if channel.connection.process is worker.process]
        if any(one.original == message for one in held):
            return
        known = [one for one in queue.messages if one.original == message]
        if all(self._world.now - one.requeued_at > LOST_FOR for one in known):
            self._world.violated("copy of a lost delivery", f"{message} by {worker.pod}")

    def _was_edited(self, key: WorkQueueKey) -> bool:
        return self._stage.healthy_for(f"wq {key[0]}/{key[1]}") < FOREIGN

    def _require_need(self, key: WorkQueueKey, body: Object, count: int) -> None:
        """The count never grows beyond what the messages of the last minute ask for."""
        scaling = body["spec"]["scaling"]
        per = scaling.get("messagesPerReplica")
        if per is None:
            return
        most = max((n for _, n in self._most_messages.get(key, ())), default=0)
        queue = self._stage.queue(key)
        most = max(most, queue.most if queue is not None else 0)
        if count > max(scaling["minReplicas"], -(-most // per)):
            self._world.violated(
                "count raised without messages", f"{key[0]}/{key[1]}: to {count} for at most {most}"
            )

    def _require_cause(self, key: WorkQueueKey) -> None:
        """Workers are replaced only after a user changed what they depend on."""
        # After a restart, a younger WorkQueue on the same queue may come first for a moment.
        if self._world.now - self._stage.changed_template[key] > CAUSE and self._is_owner(key):
            self._world.violated("workers replaced without cause", f"{key[0]}/{key[1]}")

    def _on_delivery(self, queue: ModelQueue, consumer: ModelConsumer, message: ModelMessage) -> None:
        """A doorbell is cancelled before its message returns, so that each ring counts as one delivery."""
        if consumer.priority != PRIORITY:
            return
        if self._rung.get(message) is consumer:
            self._world.violated("a message rings twice", f"{message.original} of {queue.name}")
        self._rung[message] = consumer
        self._rang_at[queue] = self._world.now

    def _on_delete(self, queue: ModelQueue, by: Any) -> None:
        """Only a user deletes a queue with confirmed messages."""
        if by is None:
            return
        lost = [m.original for m in queue.messages if m.original in self._stage.confirmed]
        lost = [one for one in lost if one not in self._stage.exempt and one not in self._stage.handled]
        self._world.tell(by.process.name, f"deletes queue {queue.name} with {len(queue.messages)} messages")
        if lost:
            self._world.violated("confirmed messages lost", f"queue {queue.name} was deleted with {lost}")

    def _tell_conditions(self, key: WorkQueueKey, body: Object) -> None:
        now = {
            c["type"]: f"{c['status']} {c['reason']}"
            for c in (body.get("status") or {}).get("conditions", ())
        }
        before = self._last_conditions.get(key, {})
        changed = [f"{kind}={said}" for kind, said in now.items() if before.get(kind) != said]
        self._last_conditions[key] = now
        if changed:
            self._world.tell("status", f"{key[0]}/{key[1]}: {', '.join(changed)}")

    # -- once a second -------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Check once a second, until cancelled."""
        self._down: dict[str, float] = {}
        while True:
            await asyncio.sleep(1.0)
            self._check()

    def _check(self) -> None:
        stage, now = self._stage, self._world.now
        stage.watch_operators()
        for error in self._world.loop.errors:
            self._world.violated("unexpected error", error)
        for one in self._cluster.operators:
            if one.code == main.EXIT_FAILED:
                self._world.violated("an operator gave up", one.name)
        for rabbit in dict.fromkeys(self._cluster.rabbits.values()):
            if rabbit.down or rabbit.hung:
                self._down.setdefault(rabbit.name, now)
            else:
                self._down.pop(rabbit.name, None)
                self._check_held(rabbit)
        self._check_writes(now)
        self._check_passes()
        for key in stage.workqueues:
            self._check_workqueue(key, now)

    def _check_writes(self, now: float) -> None:
        self._writes.append((now, self._cluster.server.writes))
        if len(self._writes) > 10:
            self._writes.popleft()
        if self._writes[-1][1] - self._writes[0][1] > FLOOD * len(self._stage.workqueues):
            self._world.violated(
                "the operator floods the API server",
                f"{self._writes[-1][1] - self._writes[0][1]} writes in 10 s",
            )

    def _check_passes(self) -> None:
        """A pass that fails is followed by a pause."""
        for key, count in self._stage.passes.items():
            recent = self._passes.setdefault(key, deque([0], maxlen=11))
            recent.append(count)
            if (many := recent[-1] - recent[0]) > PASSES:
                self._world.violated("passes without a pause", f"{key[0]}/{key[1]}: {many} in 10 s")

    def _check_held(self, rabbit: Any) -> None:
        """No message is held by an operator without end."""
        operators = {one.process for one in self._cluster.operators}
        seen = set()
        for queue in rabbit.queues.values():
            if queue.leaderless or not queue.unacked:
                continue
            for message, channel in queue.unacked.items():
                if channel.connection.process in operators:
                    entry = (queue.name, message.original)
                    seen.add(entry)
                    since = self._held.setdefault(entry, self._world.now)
                    if self._world.now - since > HELD_WITHIN:
                        self._world.violated(
                            "an operator holds a message", f"{message.original} of {queue.name}"
                        )
        if self._held:
            self._held = {e: at for e, at in self._held.items() if e in seen or e[0] not in rabbit.queues}

    def _check_workqueue(self, key: WorkQueueKey, now: float) -> None:
        stage = self._stage
        queue, body = stage.queue(key), self._cluster.server.get("workqueues", *key)
        count = queue.most if queue is not None else 0
        if queue is not None:
            queue.most = len(queue.ready) + len(queue.unacked)
        recent = self._most_messages.setdefault(key, deque())
        recent.append((now, count))
        while recent[0][0] < now - 60.0:
            recent.popleft()
        waiting = self._waiting.setdefault(key, deque())
        waiting.append((now, len(queue.ready) if queue is not None else 0))
        while waiting[0][0] < now - WAITS_TOO:
            waiting.popleft()
        if body is None or body["metadata"].get("deletionTimestamp"):
            self._unserved.pop(key, None)
            self._leaderless_since.pop(key, None)
            return
        self._check_waiting(key, body, queue, now)
        self._check_unknown(key, body, queue, now)
        self._check_surplus(key, body, queue, now)
        self._check_contradictions(key, body, queue, now)

    def _check_waiting(self, key: WorkQueueKey, body: Object, queue: ModelQueue | None, now: float) -> None:
        spec = body["spec"]
        if queue is None or not queue.ready:
            self._unserved.pop(key, None)
            return
        deployment = self._cluster.server.get("deployments", key[0], workload_name(key[1]))
        stands_still = spec.get("suspend") or spec.get("replicas") == 0 or key[1] == "twin"
        twin = any(
            k != key and one.queue == self._stage.workqueues[key].queue
            for k, one in self._stage.workqueues.items()
        )
        if stands_still or deployment is None or twin:
            self._unserved.pop(key, None)
            return
        served = any(one.priority != PRIORITY for one in queue.consumers)
        if served:
            self._unserved.pop(key, None)
            return
        since = self._unserved.setdefault(key, now)
        healthy = min(self._stage.healthy_for(*self._stage.scopes(key)), now - since + MARGIN)
        polled = spec["scaling"].get("wake") == "Poll"
        bound = POLLED_WITHIN if polled else WAKES_WITHIN
        if deployment["spec"]["replicas"] == 0 and now - since > bound and healthy >= MARGIN + bound:
            self._world.violated(
                "a healthy WorkQueue waits", f"{key[0]}/{key[1]}: {now - since:.0f} s without a worker"
            )
        # A polled queue without a majority looks empty (docs/scaling.md).
        if _names_obstacle(body) or (polled and queue.leaderless and queue.answers_zero):
            self._named_at[key] = now
        nameless = now - max(self._named_at.get(key, since), since)
        if (
            now - since > NAMED_WITHIN
            and self._stage.healthy_for("api", "operator") > NAMED_WITHIN
            and nameless > CONNECTS_WITHIN
        ):
            self._world.violated(
                "no obstacle is named", f"{key[0]}/{key[1]}: waiting for {now - since:.0f} s"
            )

    def _check_unknown(self, key: WorkQueueKey, body: Object, queue: ModelQueue | None, now: float) -> None:
        """The depth of a queue that does not answer, or answers with zeros although it has consumers, is unknown."""
        if (
            queue is None
            or not queue.leaderless
            or not (queue.answers_zero or queue.rabbit.declare_hangs)
            # A consumer whose process has ended is a witness for nobody.
            or not any(one.channel.connection.process.alive for one in queue.consumers)
            or body["spec"].get("suspend")
            or not self._is_owner(key)
            or self._stage.healthy_for("api", "operator", f"broker {self._stage.broker(key)}") < MARGIN
        ):
            self._leaderless_since.pop(key, None)
            return
        since, known = self._leaderless_since.setdefault(key, now), condition(body, "DepthKnown")
        # RabbitMQ does not answer the doorbell, either, and the condition says so.
        is_named = known.get("reason") == Reason.DOORBELL_UNAVAILABLE
        if now - since > UNKNOWN_WITHIN and known.get("status") == "True" and not is_named:
            self._world.violated(
                "an unknown depth is reported", f"{key[0]}/{key[1]}: for {now - since:.0f} s"
            )

    def _check_surplus(self, key: WorkQueueKey, body: Object, queue: ModelQueue | None, now: float) -> None:
        """Workers without messages are removed, also under a quota that refuses pods."""
        spec, stage = body["spec"], self._stage
        deployment = self._cluster.server.get("deployments", key[0], workload_name(key[1]))
        if (
            deployment is None
            or queue is None
            # Also messages that came and went since the last look.
            or self._most_messages[key][-1][1]
            or not deployment["spec"].get("replicas", 1)
            or spec.get("suspend")
            or "replicas" in spec
            # Other targets also ask for workers while they measure.
            or "messagesPerReplica" not in spec["scaling"]
            or deployment["spec"].get("replicas", 1) <= _fewest(body)
            or len(self._claimants(key)) > 1
            or stage.healthy_for(*(one for one in stage.scopes(key) if not one.startswith("quota"))) < MARGIN
            or self._replicasets(("deployments", key[0], workload_name(key[1]))) > 1
        ):
            self._idle_since.pop(key, None)
            return
        since = self._idle_since.setdefault(key, now)
        if now - since > spec["scaling"]["scaleInDelaySeconds"] + SURPLUS_LEAVES_WITHIN:
            self._world.violated("surplus stays", f"{key[0]}/{key[1]}: for {now - since:.0f} s")

    def _check_contradictions(
        self, key: WorkQueueKey, body: Object, queue: ModelQueue | None, now: float
    ) -> None:
        found = self._contradictions_of(key, body, queue)
        if not (found or self._contradictions):
            return
        for what in found:
            since = self._contradictions.setdefault((key, what), now)
            bound = DEAD_LETTERS if what.startswith("deadLetters") else CONTRADICTS
            if (
                now - since > bound
                and self._stage.healthy_for(*self._stage.scopes(key)) > MARGIN + CONTRADICTS
            ):
                self._world.violated("the status contradicts the state", f"{key[0]}/{key[1]}: {what}")
        for entry in [e for e in self._contradictions if e[0] == key and e[1] not in found]:
            del self._contradictions[entry]

    def _contradictions_of(self, key: WorkQueueKey, body: Object, queue: ModelQueue | None) -> frozenset[str]:
        """What `_contradict` yields. In most seconds nothing changes of what that depends on."""
        dead = self._dead_letters(key)
        state = (
            self._changes,
            None if queue is None else len(queue.ready),
            None if dead is None else len(dead.ready),
        )
        known = self._contradicted.get(key)
        if known is None or known[0] != state:
            known = self._contradicted[key] = state, frozenset(self._contradict(key, body, queue))
        return known[1]

    def _dead_letters(self, key: WorkQueueKey) -> ModelQueue | None:
        stage = self._stage
        return self._cluster.rabbits[stage.hosts[key]].queues.get(f"{stage.workqueues[key].queue}.dead")

    def _contradict(self, key: WorkQueueKey, body: Object, queue: ModelQueue | None) -> Iterator[str]:
        """What the status says and the state does not show."""
        deployment = self._cluster.server.get("deployments", key[0], workload_name(key[1]))
        status = body.get("status") or {}
        if deployment is None or not status or body["spec"].get("suspend"):
            return
        conditions: dict[str, Any] = {one["type"]: one for one in status.get("conditions", ())}
        workers = conditions.get("WorkersAvailable", {}).get("reason")
        replicas = deployment["spec"].get("replicas", 1)
        if workers == "ScaledToZero" and replicas:
            yield f"ScaledToZero with {replicas} replicas"
        if status.get("desiredReplicas", 0) != replicas:
            yield f"desiredReplicas is not {replicas}"
        declared = conditions.get("QueueDeclared", {}).get("status") == "True"
        if declared and queue is None:
            yield "QueueDeclared without a queue"
        known = conditions.get("DepthKnown", {}).get("status") == "True" and queue is not None
        if known and queue is not None and status.get("messages") != len(queue.ready):
            yield f"messages is not {len(queue.ready)}"
        ready = any(
            other[1] == key[0]
            and labelled(pod) == key[1]
            and is_ready(pod)
            and not pod["metadata"].get("deletionTimestamp")
            for other, pod in self._cluster.server.of("pods")
        )
        if workers == "WorkersReady" and not ready:
            yield "WorkersReady without a Ready pod"
        dead = self._dead_letters(key)
        # A WorkQueue on a queue that another one has claimed does not count its dead letters.
        if declared and ready and dead is not None and status.get("deadLetters", 0) != len(dead.ready):
            yield f"deadLetters is not {len(dead.ready)}"

    # -- at the end ----------------------------------------------------------------------------------

    def settled(self) -> list[tuple[str, str]]:
        """What has not converged yet."""
        stage, cluster = self._stage, self._cluster
        missing: list[tuple[str, str]] = []
        leaders = [one for one in cluster.operators if one.leads]
        if len(leaders) != 1:
            return [("does not converge", f"{len(leaders)} operators lead")]
        for key in stage.workqueues:
            body = cluster.server.objects.get(("workqueues", *key))
            # A deletion waits for minutes until nothing can be hidden in a delay queue.
            if body is not None and not body["metadata"].get("deletionTimestamp"):
                missing += [
                    ("does not converge", f"{key[0]}/{key[1]}: {what}") for what in self._unsettled(key)
                ]
        kept = Counter(
            message.original
            for rabbit in dict.fromkeys(cluster.rabbits.values())
            for queue in rabbit.queues.values()
            if queue.name.endswith(".dead")
            for message in queue.messages
        )
        lost = [
            m for m in stage.confirmed if m not in stage.handled and m not in kept and m not in stage.exempt
        ]
        if lost:
            missing.append(
                (
                    "confirmed messages lost",
                    f"neither handled nor given up: {[(one, self._place_of(one)) for one in lost[:3]]}",
                )
            )
        # Only then: it looks at each task of this process.
        return missing or self._leaks(leaders[0])

    def _place_of(self, message: str) -> str:
        for rabbit in dict.fromkeys(self._cluster.rabbits.values()):
            for queue in rabbit.queues.values():
                if any(one.original == message for one in queue.messages):
                    return f"in {queue.name}"
        return "nowhere"

    def _unsettled(self, key: WorkQueueKey) -> Iterator[str]:
        server = self._cluster.server
        body = server.objects["workqueues", key[0], key[1]]
        deployment = server.get("deployments", key[0], workload_name(key[1]))
        queue = self._stage.queue(key)
        if len(self._claimants(key)) > 1:
            if not self._is_owner(key):
                yield from self._unrefused(body, deployment)
            return
        if deployment is None or queue is None:
            yield "no Deployment or no queue"
            return
        if queue.messages:
            yield f"{len(queue.messages)} messages"
        minimum = _fewest(body)
        if deployment["spec"]["replicas"] != minimum:
            yield f"{deployment['spec']['replicas']} replicas instead of {minimum}"
        pods = [
            pod
            for other, pod in server.of("pods")
            if other[1] == key[0]
            and pod["metadata"]["labels"].get("workqueue.dev/workqueue") == key[1]
            and pod["status"]["phase"] not in {"Failed", "Succeeded"}
        ]
        if len(pods) != minimum:
            yield f"{len(pods)} pods instead of {minimum}"
        if any(ANNOTATION_DELETION_COST in pod["metadata"]["annotations"] for pod in pods):
            yield "a mark is left"
        push = body["spec"]["scaling"].get("wake") != "Poll" and minimum == 0
        doorbells = sum(one.priority == PRIORITY for one in queue.consumers)
        if doorbells != push:
            yield f"{doorbells} doorbells instead of {int(push)}"
        for kind in _ALL:
            one = condition(body, kind)
            if one.get("status") != "True":
                yield f"{kind} is {one.get('status')} {one.get('reason')}"
        yield from self._contradict(key, body, queue)
        dead = self._dead_letters(key)
        if dead is not None and body["status"].get("deadLetters") != len(dead.ready):
            yield f"deadLetters is {body['status'].get('deadLetters')} instead of {len(dead.ready)}"

    @staticmethod
    def _unrefused(body: Object, deployment: Object | None) -> Iterator[str]:
        """An older WorkQueue has its queue, so it has no workers there."""
        if (reason := condition(body, "QueueDeclared").get("reason")) != Reason.QUEUE_CLAIMED:
            yield f"QueueDeclared is {reason} on the queue of an older WorkQueue"
        if deployment is not None and deployment["spec"]["replicas"]:
            yield f"{deployment['spec']['replicas']} workers on the queue of an older WorkQueue"

    def _leaks(self, leader: Any) -> list[tuple[str, str]]:
        """Nothing that belongs to one pass or one WorkQueue stays. A pass may run just now."""
        latest = self._world.loop.time() - TASK_ENDS_WITHIN
        own = [
            t
            for t in asyncio.all_tasks(self._world.loop)
            if getattr(t, "process", None) is leader.process and getattr(t, "begun", latest) < latest
        ]
        names = Counter((task.get_name().split() or ["?"])[0] for task in own)
        found = [
            f"{count} tasks called {name}" for name, count in names.items() if name in {"pass", "report"}
        ]
        parts = leader.parts
        if parts is not None:
            known = len(parts.store.workqueues)
            sizes = {
                "states of passes": len(leader.reconciler._pass_states),
                "reports": len(parts.reporter._reports),
                "applied Deployments": len(parts.targets._workload._applied),
            }
            found += [f"{size} {what} of {known} WorkQueues" for what, size in sizes.items() if size > known]
        return [("leak", one) for one in found]


_ALL: Final = ("QueueDeclared", "DepthKnown", "WorkloadApplied", "WorkersAvailable", "ScalingActive", "Ready")


def _differing(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """The paths at which two objects differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted(before.keys() | after.keys()):
            yield from _differing(before.get(name), after.get(name), f"{path}.{name}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, pair in enumerate(zip(before, after, strict=True)):
            yield from _differing(*pair, f"{path}[{number}]")
    elif before != after:
        yield f"{path.removeprefix('.')}={after}"


def _fewest(body: Object) -> int:
    """The count of an idle WorkQueue."""
    spec = WorkQueue.model_validate(body).spec
    return min(spec.scaling.min_replicas, spec.most_replicas)


def _lost_its_mark(writer: str, before: Object, after: Object | None) -> bool:
    """Whether something else than a scale-in ended a marked pod. Its successor has no mark, and may be removed.

    This is a limit of the protocol: see docs/specs/retire.md.
    """
    if writer == REPLICASETS or before["metadata"]["labels"].get(LABEL_RETIRING) != "true":
        return False
    ended = after is None or after["status"]["phase"] == "Failed" or "deletionTimestamp" in after["metadata"]
    return ended and "deletionTimestamp" not in before["metadata"] and before["status"]["phase"] != "Failed"


def _names_obstacle(body: Object) -> bool:
    conditions = (body.get("status") or {}).get("conditions", ())
    return any(one["status"] != "True" for one in conditions)
