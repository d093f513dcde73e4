"""What must hold in every run. Some properties are checked at each write, the others once a second or at the end."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any, Final

from tests.simulation.apiserver import Key, Object
from tests.simulation.cluster import OPERATOR, condition
from tests.simulation.controllers import is_ready
from tests.simulation.rabbit import ModelConsumer, ModelMessage, ModelQueue
from tests.simulation.stage import Stage, WorkQueueKey
from tests.simulation.workers import WorkerProcess
from workqueue_operator import __main__ as main
from workqueue_operator.api.reasons import Reason
from workqueue_operator.broker.doorbell import PRIORITY
from workqueue_operator.names import ANNOTATION_DELETION_COST, workload_name

WAKES_WITHIN: Final = 12.0
"""Seconds until the first message of an idle, healthy WorkQueue has raised the count."""

POLLED_WITHIN: Final = 45.0
"""The same without a doorbell: an idle queue is polled every 30 s."""

MARGIN: Final = 45.0
"""Seconds after a fault until a WorkQueue counts as healthy. The longest pauses of retries are in it."""

NAMED_WITHIN: Final = 90.0
"""Seconds until a waiting message has a worker or an obstacle that a condition names."""

HELD_WITHIN: Final = 25.0
"""Seconds for which an operator may hold a message."""

CONTRADICTS: Final = 40.0
"""Seconds for which the status may differ from the state."""

DEAD_LETTERS: Final = 12.0
"""Seconds until a dead letter shows while workers run."""

BLIND: Final = 45.0
"""Seconds without a broker after which the operator cannot know its counts."""

FOREIGN: Final = 120.0
"""Seconds after which a count that something else has written no longer matters."""

WAITS_TOO: Final = 30.0
"""Seconds for which a message waits, so that no step to zero may overlook it."""

CAUSE: Final = 260.0
"""Seconds after a user's change within which its new template may be written. A webhook may refuse it for a while."""

FLOOD: Final = 400
"""Writes in ten seconds for each WorkQueue: an operator that writes more never pauses."""

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
        self._rung: dict[ModelMessage, ModelConsumer] = {}
        self._writes: deque[tuple[float, int]] = deque()
        self._most_messages: dict[WorkQueueKey, deque[tuple[float, int]]] = {}
        self._last_conditions: dict[WorkQueueKey, dict[str, str]] = {}
        stage.cluster.on_scale_in = self._on_scale_in
        stage.cluster.server.on_write.append(self._on_write)
        for rabbit in set(stage.cluster.rabbits.values()):
            rabbit.on_delete = self._on_delete
            rabbit.on_delivery = self._on_delivery

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
        self._world.violated("busy worker removed", f"pod {name} of {key[0]}/{key[1]} had {held} messages")

    def _rolls_out(self, key: Key, replicaset: Object) -> bool:
        deployment = self._cluster.server.objects.get(key)
        if deployment is None or deployment["spec"]["template"] != replicaset["spec"]["template"]:
            return True
        owned = [
            body
            for other, body in self._cluster.server.of("replicasets")
            if other[1] == key[1] and body["metadata"]["ownerReferences"][0]["name"] == key[2]
        ]
        return sum(bool(one["spec"]["replicas"] or one["status"].get("replicas")) for one in owned) > 1

    def _on_write(
        self, writer: str, _kind: str, key: Key, before: Object | None, after: Object | None
    ) -> None:
        if key[0] == "deployments" and before is not None and after is not None:
            self._on_deployment(writer, key, before, after)
        elif key[0] == "workqueues" and after is not None:
            self._tell_conditions((key[1], key[2]), after)
        elif (
            key[0] == "pods"
            and after is not None
            and before is not None
            and is_ready(after) != is_ready(before)
        ):
            self._world.tell("kubelet", f"pod {key[2]} is {'' if is_ready(after) else 'not '}Ready")

    def _on_deployment(self, writer: str, key: Key, before: Object, after: Object) -> None:
        was, now = before["spec"].get("replicas", 1), after["spec"].get("replicas", 1)
        name = key[2].removesuffix("-worker")
        workqueue_key = (key[1], name)
        if before["spec"]["template"] != after["spec"]["template"]:
            self._world.tell(writer, f"{key[1]}/{name}: a new template")
            self._require_cause(workqueue_key)
        if was == now:
            return
        self._world.tell(writer, f"{key[1]}/{name}: count {was} -> {now}")
        if writer != OPERATOR:
            return
        body = self._cluster.server.get("workqueues", *workqueue_key)
        if body is None or body["metadata"].get("deletionTimestamp") or "replicas" in body["spec"]:
            return
        if self._was_edited(workqueue_key) or not self._is_owner(workqueue_key):
            return
        stage = self._stage
        queue, rabbit = stage.queue(workqueue_key), self._cluster.rabbits[stage.hosts[workqueue_key]]
        down_since = self._down.get(rabbit.name)
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
        if self._world.now - self._stage.changed_template[key] > CAUSE:
            self._world.violated("workers replaced without cause", f"{key[0]}/{key[1]}")

    def _on_delivery(self, queue: ModelQueue, consumer: ModelConsumer, message: ModelMessage) -> None:
        """A doorbell is cancelled before its message returns, so that each ring counts as one delivery."""
        if consumer.priority != PRIORITY:
            return
        if self._rung.get(message) is consumer:
            self._world.violated("a message rings twice", f"{message.original} of {queue.name}")
        self._rung[message] = consumer

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
            if not rabbit.down and not rabbit.hung:
                self._check_held(rabbit)
        self._check_writes(now)
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

    def _check_held(self, rabbit: Any) -> None:
        """No message is held by an operator without end."""
        operators = {one.process for one in self._cluster.operators}
        seen = set()
        for queue in rabbit.queues.values():
            if queue.leaderless:
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
        prefix = set(rabbit.queues)
        self._held = {e: at for e, at in self._held.items() if e in seen or e[0] not in prefix}

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
        if body is None or body["metadata"].get("deletionTimestamp"):
            self._unserved.pop(key, None)
            return
        self._check_waiting(key, body, queue, now)
        self._check_contradictions(key, body, queue, now)

    def _check_waiting(self, key: WorkQueueKey, body: Object, queue: ModelQueue | None, now: float) -> None:
        spec = body["spec"]
        deployment = self._cluster.server.get("deployments", key[0], workload_name(key[1]))
        stands_still = spec.get("suspend") or spec.get("replicas") == 0 or key[1] == "twin"
        twin = any(
            k != key and one.queue == self._stage.workqueues[key].queue
            for k, one in self._stage.workqueues.items()
        )
        if queue is None or not queue.ready or stands_still or deployment is None or twin:
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
        if (
            now - since > NAMED_WITHIN
            and self._stage.healthy_for("api", "operator") > NAMED_WITHIN
            and not _names_obstacle(body)
        ):
            self._world.violated(
                "no obstacle is named", f"{key[0]}/{key[1]}: waiting for {now - since:.0f} s"
            )

    def _check_contradictions(
        self, key: WorkQueueKey, body: Object, queue: ModelQueue | None, now: float
    ) -> None:
        found = set(self._contradict(key, body, queue))
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

    def _contradict(self, key: WorkQueueKey, body: Object, queue: ModelQueue | None) -> Iterator[str]:
        """What the status says and the state does not show."""
        deployment = self._cluster.server.get("deployments", key[0], workload_name(key[1]))
        status = body.get("status") or {}
        if deployment is None or not status or body["spec"].get("suspend"):
            return
        replicas = deployment["spec"].get("replicas", 1)
        if condition(body, "WorkersAvailable").get("reason") == "ScaledToZero" and replicas:
            yield f"ScaledToZero with {replicas} replicas"
        if status.get("desiredReplicas", 0) != replicas:
            yield f"desiredReplicas is not {replicas}"
        declared = condition(body, "QueueDeclared").get("status") == "True"
        if declared and queue is None:
            yield "QueueDeclared without a queue"
        known = condition(body, "DepthKnown").get("status") == "True" and queue is not None
        if known and queue is not None and status.get("messages") != len(queue.ready):
            yield f"messages is not {len(queue.ready)}"
        ready = sum(
            is_ready(pod)
            for other, pod in self._cluster.server.of("pods")
            if other[1] == key[0]
            and pod["metadata"]["labels"].get("workqueue.dev/workqueue") == key[1]
            and not pod["metadata"].get("deletionTimestamp")
        )
        if condition(body, "WorkersAvailable").get("reason") == "WorkersReady" and not ready:
            yield "WorkersReady without a Ready pod"
        dead = self._cluster.rabbits[self._stage.hosts[key]].queues.get(
            f"{self._stage.workqueues[key].queue}.dead"
        )
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
        return missing + self._leaks(leaders[0])

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
        minimum = min(body["spec"]["scaling"]["minReplicas"], body["spec"]["scaling"]["maxReplicas"])
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
        dead = self._cluster.rabbits[self._stage.hosts[key]].queues.get(f"{queue.name}.dead")
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


def _names_obstacle(body: Object) -> bool:
    conditions = (body.get("status") or {}).get("conditions", ())
    return any(one["status"] != "True" for one in conditions)
