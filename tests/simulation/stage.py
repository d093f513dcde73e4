"""Carries out the steps of a scenario on a cluster, and knows which WorkQueues a fault may touch."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final

from tests.simulation.apiserver import Key, Object
from tests.simulation.cluster import Cluster
from tests.simulation.rabbit import ModelQueue
from tests.simulation.scenario import Scenario, Step, WorkQueueSpec
from tests.simulation.workers import Task
from tests.simulation.world import World
from workqueue_operator.names import workload_name

PUBLISH_AGAIN: Final = 1.0
HEARTBEAT: Final = 10.0
WorkQueueKey = tuple[str, str]


class Stage:
    """One scenario on one cluster.

    Attributes:
        sick_until: for each scope, when the last fault in it ends; infinite while one lasts.
        confirmed: the messages that a publisher knows to be safe, and their WorkQueues.
        exempt: messages that a user has deleted.
        foreign_write: when something else than the operator last wrote the count of a Deployment.
        told: what operators have said about recurring messages: WorkQueue, reason, message.
        published: how often RabbitMQ has stored each recurring message, by its id.
        passes: how many passes each WorkQueue has had.
        changed_template: when a user last changed what a pod template depends on.
    """

    def __init__(self, scenario: Scenario, world: World) -> None:
        self.scenario = scenario
        self.world = world
        self.cluster = Cluster(world, brokers=scenario.brokers, nodes=scenario.nodes)
        for address, rabbit in list(self.cluster.rabbits.items()):
            self.cluster.rabbits[address.replace("10.1.0.", "10.1.1.")] = rabbit
        self.workqueues: dict[WorkQueueKey, WorkQueueSpec] = {one.key: one for one in scenario.workqueues}
        self.hosts = {one.key: one.host for one in scenario.workqueues}
        self.sick_until: dict[str, float] = defaultdict(lambda: -math.inf)
        self._ill: dict[str, int] = defaultdict(int)
        self.confirmed: dict[str, WorkQueueKey] = {}
        self.exempt: set[str] = set()
        self.handled: set[str] = set()
        self._crashing: set[str] = set()
        self.foreign_write: dict[Key, float] = {}
        self.changed_template: dict[WorkQueueKey, float] = defaultdict(float)
        self.cancelled: dict[str, float] = {}
        """When RabbitMQ stored the cancel of a message, by its id."""
        cancels = (step for step in scenario.steps if step.what.startswith("user cancels"))
        queues = {self.workqueues[step.arguments[:2]].queue for step in cancels}
        # Also of another WorkQueue on the same queue.
        self.cluster.cancelling = {key for key, one in self.workqueues.items() if one.queue in queues}
        self.told: list[tuple[WorkQueueKey, Any, str]] = []
        self.published: dict[str, int] = defaultdict(int)
        self.paused_recurring: set[WorkQueueKey] = set()
        """WorkQueues whose user has stopped all of it for a while."""
        self.passes: dict[WorkQueueKey, int] = defaultdict(int)
        self.expected_exits = 0
        self.quiet_from = 0.0
        self.before_recurring_ends: Callable[[], None] = lambda: None
        self._retires: dict[Callable[..., None], Callable[[Any], None]] = {}
        """Faults that wait for a worker to agree to leave."""
        self.cluster.on_retired = self._on_retired
        self._passwords = 0
        self._images = 1
        self.cluster.on_handled = lambda _worker, message: self.handled.add(message.properties.message_id)

    def crashing(self) -> int:
        """How many messages will crash a worker, or just have."""
        return len(self._crashing - self.handled)

    # -- scopes --------------------------------------------------------------------------------------

    def scopes(self, key: WorkQueueKey) -> list[str]:
        """What a WorkQueue depends on."""
        return [
            "api",
            "pods",
            "operator",
            f"ns {key[0]}",
            f"quota {key[0]}",
            f"wq {key[0]}/{key[1]}",
            f"broker {self.broker(key)}",
        ]

    def broker(self, key: WorkQueueKey) -> str:
        """The broker of a WorkQueue, by its first address."""
        return self.hosts[key].replace("10.1.1.", "10.1.0.")

    def healthy_for(self, *scopes: str) -> float:
        """Seconds since the last fault in these scopes."""
        return self.world.now - max(self.sick_until[scope] for scope in scopes)

    def _sick(self, scope: str) -> None:
        self._ill[scope] += 1
        self.sick_until[scope] = math.inf

    def _well(self, scope: str) -> None:
        self._ill[scope] -= 1
        if not self._ill[scope]:
            self.sick_until[scope] = self.world.now

    # -- the run -------------------------------------------------------------------------------------

    async def play(self) -> None:
        """Set up, carry out every step, and wait until every fault has ended."""
        cluster = self.cluster
        for namespace in sorted({one.namespace for one in self.workqueues.values()}):
            cluster.server.put("user", ("namespaces", "", namespace), {"metadata": {}})
        cluster.start_operator()
        if self.scenario.standby:
            cluster.start_operator()
        for one in self.workqueues.values():
            self.cluster.put_secret(one.namespace, one.spec["connectionSecretRef"]["name"], one.host)
            self._put(one)
        begun = self.world.begun
        last = 40.0
        loop = self.world.loop
        for scope in ("api", "pods", "operator"):
            # The first seconds: everything is created.
            self.sick_until[scope] = 5.0
        for step in self.scenario.steps:
            loop.call_at(begun + step.at, self._begin, step)
            last = max(last, step.at + step.seconds + 1.0)
        self.quiet_from = last
        await asyncio.sleep(last)
        self.before_recurring_ends()
        for key, one in self.workqueues.items():
            if "recurring" in one.spec:
                self._edit(key, lambda spec: {k: v for k, v in spec.items() if k != "recurring"})

    def _put(self, one: WorkQueueSpec) -> None:
        body = {"apiVersion": "workqueue.dev/v1alpha1", "kind": "WorkQueue", "metadata": {}, "spec": one.spec}
        self.cluster.server.put("user", ("workqueues", *one.key), body)

    def _begin(self, step: Step) -> None:
        self.world.tell("publisher" if step.what.startswith("publish") else "FAULT", str(step))
        method: Callable[..., tuple[list[str], Callable[[], object] | None]] = getattr(
            self, step.what.replace(" ", "_").replace("-", "_")
        )
        scopes, undo = (
            method(*step.arguments)
            if not step.seconds
            else method(*step.arguments, seconds=step.seconds)
            if step.what in _KNOW_SECONDS
            else method(*step.arguments)
        )
        for scope in scopes:
            self._sick(scope)
        self.world.later(step.seconds + 0.001, self._over, step, scopes, undo)

    def _over(self, step: Step, scopes: list[str], undo: Callable[[], object] | None) -> None:
        if undo is not None:
            undo()
            if step.seconds:
                self.world.tell("FAULT", f"over: {step.what}")
        for scope in scopes:
            self._well(scope)

    # -- messages ------------------------------------------------------------------------------------

    def publish(self, namespace: str, name: str, count: int, seconds: float, kind: str) -> Any:
        """A publisher sends messages, and repeats each until it is confirmed."""
        for _ in range(count):
            self._publish((namespace, name), Task(seconds, kind), 0)
        return [], None

    def publish_later(self, namespace: str, name: str, count: int, seconds: float, delay: float) -> Any:
        """A publisher sends messages that are due after a delay."""
        for _ in range(count):
            self._publish((namespace, name), Task(seconds, "ok"), 0, delay)
        return [], None

    def _publish(self, key: WorkQueueKey, task: Task, tries: int, delay: float = 0.0) -> None:
        queue = self.workqueues[key].queue
        done = self.cluster.publish(self.hosts[key], queue, task, delay)
        if done is not None:
            self.confirmed[done] = key
            if task.kind == "crashes":
                self._crashing.add(done)
        elif tries < 60:
            self.world.later(PUBLISH_AGAIN, self._publish, key, task, tries + 1, delay)

    def user_cancels_a_message(self, namespace: str, name: str, number: int, discard: bool) -> Any:
        key = namespace, name
        open_ones = [
            one
            for one, owner in self.confirmed.items()
            if owner == key
            and one not in self.handled
            and one not in self.exempt
            and one not in self.cancelled
        ]
        if open_ones:
            self._cancel(key, open_ones[number % len(open_ones)], discard, 0)
        return [], None

    def _cancel(self, key: WorkQueueKey, message: str, discard: bool, tries: int) -> None:
        if self.cluster.cancel(self.hosts[key], self.workqueues[key].queue, message, discard=discard):
            self.cancelled.setdefault(message, self.world.now)
            self.world.tell("publisher", f"cancels {message}{' and discards it' if discard else ''}")
            if discard:
                self.exempt.add(message)
        elif tries < 60:
            self.world.later(PUBLISH_AGAIN, self._cancel, key, message, discard, tries + 1)

    def queue(self, key: WorkQueueKey) -> ModelQueue | None:
        """The work queue of a WorkQueue on its present broker."""
        return self.cluster.rabbits[self.hosts[key]].queues.get(self.workqueues[key].queue)

    # -- brokers -------------------------------------------------------------------------------------

    def broker_restarts(self, host: str) -> Any:
        rabbit = self.cluster.rabbits[host]
        rabbit.stop()
        return [f"broker {host}"], rabbit.start

    def broker_hangs(self, host: str) -> Any:
        rabbit = self.cluster.rabbits[host]
        rabbit.hang()
        return [f"broker {host}"], rabbit.resume

    def connections_are_lost(self, host: str) -> Any:
        self.cluster.rabbits[host].drop_connections()
        return [f"broker {host}"], None

    def queue_loses_its_majority(self, namespace: str, name: str) -> Any:
        return self._cut((namespace, name), zeros=self.world.random.random() < 0.3)

    def queue_elects_a_leader(self, namespace: str, name: str) -> Any:
        return self._cut((namespace, name), zeros=True)

    def _cut(self, key: WorkQueueKey, *, zeros: bool) -> Any:
        queue = self.queue(key)
        if queue is None or not queue.is_quorum:
            return [], None
        queue.answers_zero = zeros
        self.cluster.rabbits[self.hosts[key]].declare_hangs = self.world.random.random() < 0.5
        queue.cut()
        same = [other for other in self.workqueues if self.workqueues[other].queue == queue.name]
        return [f"wq {other[0]}/{other[1]}" for other in same], queue.mend

    def broker_has_a_memory_alarm(self, host: str) -> Any:
        rabbit = self.cluster.rabbits[host]
        rabbit.alarm = True
        return [f"alarm {host}"], lambda: setattr(rabbit, "alarm", False)

    def broker_is_slow(self, host: str) -> Any:
        rabbit = self.cluster.rabbits[host]
        rabbit.slow = self.world.random.choice([0.02, 0.2, 1.0])
        return [f"broker {host}"], lambda: setattr(rabbit, "slow", 0.0)

    def broker_is_cut_from_the_operator(self, host: str) -> Any:
        rabbit = self.cluster.rabbits[host]
        operators = [one.process for one in self.cluster.operators if one.process.alive]
        for process in operators:
            rabbit.cut(process)

        def undo() -> None:
            for process in operators:
                rabbit.uncut(process)

        return [f"broker {host}"], undo

    def password_is_rotated(self, host: str) -> Any:
        self._passwords += 1
        password = f"secret-{self._passwords}"
        rabbit = self.cluster.rabbits[host]
        rabbit.passwords["user"] = password
        rabbit.drop_connections()
        users = [one for one in self.workqueues.values() if self.broker(one.key) == host]

        def write() -> None:
            for one in users:
                self.cluster.put_secret(
                    one.namespace,
                    one.spec["connectionSecretRef"]["name"],
                    self.hosts[one.key],
                    rabbit.passwords["user"],
                )

        scope = f"broker {host}"
        self._sick(scope)
        self.world.later(3.0, write)
        self.world.later(20.0, self._well, scope)
        return [scope], None

    def user_deletes_the_queue(self, namespace: str, name: str) -> Any:
        key = namespace, name
        rabbit, queue = self.cluster.rabbits[self.hosts[key]], self.queue(key)
        if queue is not None:
            self.exempt.update(message.original for message in queue.messages)
            rabbit.delete(queue.name)
        return [f"wq {namespace}/{name}"], None

    # -- the API server ------------------------------------------------------------------------------

    def _weather(self, name: str, value: Any) -> Any:
        weather = self.cluster.server.weather
        before = getattr(weather, name)
        setattr(weather, name, value)
        # A watch that lags is no fault of the server.
        return ["api"] if name == "lag" else ["api", "server"], lambda: setattr(
            weather, name, type(weather)().__getattribute__(name) if name != "denies" else before
        )

    def API_server_is_down(self) -> Any:  # noqa: N802 - as the steps are called
        return self._weather("down", True)

    def API_server_is_slow(self, slow: float) -> Any:  # noqa: N802
        return self._weather("slow", slow)

    def API_server_refuses_requests(self) -> Any:  # noqa: N802
        return self._weather("refuses", self.world.random.choice([0.1, 0.5]))

    def API_server_loses_answers(self) -> Any:  # noqa: N802
        return self._weather("loses_answers", self.world.random.choice([0.1, 0.4]))

    def API_server_refuses_statuses(self) -> Any:  # noqa: N802
        return [], self._weather("refuses_statuses", True)[1]

    def API_server_refuses_one_count(self) -> Any:  # noqa: N802
        """Too little to make anything sick: the operator writes it again."""
        self.cluster.server.weather.refuses_counts = 1
        return [], None

    def API_server_refuses_counts(self) -> Any:  # noqa: N802
        return self._weather("refuses_counts", math.inf)

    def all_watches_lag(self) -> Any:
        return self._weather("lag", self.world.random.choice([0.5, 3.0]))

    def watch_lags(self, plural: str, seconds: float) -> Any:
        watches = [w for one in self.cluster.operators for w in one.watches if w._plural == plural]
        return self._lag(watches, seconds)

    def _lag(self, watches: list[Any], seconds: float) -> Any:
        for watch in watches:
            watch.lag = seconds

        def undo() -> None:
            for watch in watches:
                watch.lag = 0.0

        return ["api"], undo

    def watch_breaks(self, plural: str, _lag: float, *, seconds: float) -> Any:
        for one in self.cluster.operators:
            for watch in one.watches:
                if watch._plural == plural:
                    watch.break_off(seconds)
        # A deletion in the gap shows at the LIST after it, or at the one after that, if one fails.
        self._sick("api")
        self.world.later(seconds + 10.0, self._well, "api")
        return ["api"], None

    def ReplicaSet_controller_sees_pods_late(self, lag: float) -> Any:  # noqa: N802
        return self._lag([self.cluster.replicasets.cache.watches["pods"]], lag)

    def ReplicaSet_controller_sees_sets_late(self, lag: float) -> Any:  # noqa: N802
        return self._lag([self.cluster.replicasets.cache.watches["replicasets"]], lag)

    def Deployment_controller_stands_still(self) -> Any:  # noqa: N802
        self.cluster.deployments.stop()
        return ["pods"], self.cluster.deployments.go

    def ReplicaSet_controller_stands_still(self) -> Any:  # noqa: N802
        self.cluster.replicasets.stop()
        return ["pods"], self.cluster.replicasets.go

    # -- pods ----------------------------------------------------------------------------------------

    def pods_start_slowly(self) -> Any:
        self.cluster.kubelets.start_seconds = self.world.random.choice([8.0, 25.0])
        return ["pods"], lambda: setattr(self.cluster.kubelets, "start_seconds", 1.0)

    def node_is_lost(self, number: int) -> Any:
        kubelets = self.cluster.kubelets
        node = list(kubelets.nodes)[number % len(kubelets.nodes)]
        kubelets.lose(node)
        return ["pods"], lambda: kubelets.restore(node)

    def _pod(self, number: int) -> Any:
        pods = list(self.cluster.kubelets.pods.values())
        return pods[number % len(pods)] if pods else None

    def pod_is_evicted(self, number: int) -> Any:
        if (pod := self._pod(number)) is not None:
            self.cluster.kubelets.evict(pod)
        return ["pods"], None

    def worker_crashes(self, number: int) -> Any:
        if (pod := self._pod(number)) is not None and pod.worker is not None:
            pod.worker.crash()
        return ["pods"], None

    def pod_is_deleted(self, number: int) -> Any:
        if (pod := self._pod(number)) is not None:
            self.cluster.server.delete("user", pod.key)
        return ["pods"], None

    def pods_are_unreachable(self, namespace: str) -> Any:
        self.cluster.cut_namespaces.add(namespace)
        return [f"ns {namespace}"], lambda: self.cluster.cut_namespaces.discard(namespace)

    def confirms_are_late(self) -> Any:
        cluster = self.cluster
        cluster.confirms_late, cluster.confirms_lost = 5.0, 0.2

        def undo() -> None:
            cluster.confirms_late = cluster.confirms_lost = 0.0

        return ["confirms"], undo

    # -- in a scale-in -------------------------------------------------------------------------------

    def operator_is_killed_in_a_scale_in(self) -> Any:
        def kill(key: WorkQueueKey) -> None:
            scopes, undo = self.operator_is_killed()
            self._for_a_while(3.0, scopes, undo)
            self.world.later(self.world.random.uniform(0.0, 10.0), self._publish, key, Task(3.0, "ok"), 0)

        return self._in_next_scale_in("operator is killed", kill)

    def operator_is_frozen_in_a_scale_in(self) -> Any:
        def freeze(key: WorkQueueKey) -> None:
            seconds = self.world.random.choice([1.0, 4.0, 12.0])
            scopes, undo = self.operator_is_frozen(seconds=seconds)
            self._for_a_while(seconds, scopes, undo)
            self.world.later(self.world.random.uniform(0.0, 10.0), self._publish, key, Task(3.0, "ok"), 0)

        return self._in_next_scale_in("operator is frozen", freeze)

    def API_server_queues_requests_in_a_scale_in(self) -> Any:  # noqa: N802
        def queue(key: WorkQueueKey) -> None:
            seconds = self.world.random.choice([2.0, 7.8, 7.8])
            self._for_a_while(45.0, *self._weather("queues", seconds))
            # When the lease of the worker ends, there are messages.
            for after in range(24, 34, 2):
                self.world.later(after, self._publish, key, Task(6.0, "ok"), 0)

        return self._in_next_scale_in("API server queues requests", queue)

    def _in_next_scale_in(self, what: str, fault: Callable[[WorkQueueKey], None]) -> Any:
        """Let a fault happen shortly after a worker has agreed to leave."""

        def happen(key: WorkQueueKey) -> None:
            self.world.tell("FAULT", f"{what} in the scale-in of {key[0]}/{key[1]}")
            fault(key)

        def soon(worker: Any) -> None:
            if not self._retires.pop(happen, None):
                return
            pause = self.world.random.choice([0.0, 0.003, 0.006, 0.012, 0.05])
            self.world.later(pause, happen, (worker.namespace, worker.workqueue))

        self._retires[happen] = soon
        return [], lambda: self._retires.pop(happen, None)

    def _on_retired(self, worker: Any) -> None:
        for soon in list(self._retires.values()):
            soon(worker)

    def _for_a_while(self, seconds: float, scopes: list[str], undo: Callable[[], object] | None) -> None:
        for scope in scopes:
            self._sick(scope)

        def over() -> None:
            if undo is not None:
                undo()
            for scope in scopes:
                self._well(scope)

        self.world.later(seconds, over)

    # -- quota and admission -------------------------------------------------------------------------

    def _deny(
        self, name: str, denies: Callable[[str, Object | None, Object], str | None]
    ) -> Callable[[], object]:
        rules = self.cluster.server.weather.denies
        rules[name] = denies
        return lambda: rules.pop(name, None)

    def quota_limits_pods(self, namespace: str, most: int) -> Any:
        server = self.cluster.server

        def denies(plural: str, before: Object | None, after: Object) -> str | None:
            if plural != "pods" or before is not None or after["metadata"]["namespace"] != namespace:
                return None
            alive = [
                body
                for key, body in server.of("pods")
                if key[1] == namespace and body["status"]["phase"] not in {"Failed", "Succeeded"}
            ]
            return f"exceeded quota: pods={most}" if len(alive) >= most else None

        return [f"quota {namespace}"], self._deny(f"quota {namespace}", denies)

    def policy_limits_replicas(self, namespace: str, most: int) -> Any:
        def denies(plural: str, before: Object | None, after: Object) -> str | None:
            if plural != "deployments" or after["metadata"]["namespace"] != namespace:
                return None
            wanted = after["spec"].get("replicas", 1)
            was = before["spec"].get("replicas", 1) if before is not None else 0
            return f"policy: at most {most} replicas" if wanted > most and wanted > was else None

        # At least one worker may run.
        return [], self._deny(f"policy {namespace}", denies)

    def webhook_refuses_new_templates(self, namespace: str) -> Any:
        def denies(plural: str, before: Object | None, after: Object) -> str | None:
            if plural != "deployments" or before is None or after["metadata"]["namespace"] != namespace:
                return None
            return (
                "webhook denied the request"
                if before["spec"]["template"] != after["spec"]["template"]
                else None
            )

        # Existing workers go on: no WorkQueue is sick because of it.
        return [], self._deny(f"webhook {namespace}", denies)

    # -- operators -----------------------------------------------------------------------------------

    def operator_is_killed(self) -> Any:
        victim = self.cluster.leader or next((o for o in self.cluster.operators if o.code is None), None)
        if victim is None:
            return [], None
        victim.kill()
        self._recover()
        return ["operator"], self.cluster.start_operator

    def operator_is_restarted(self) -> Any:
        victim = self.cluster.leader or next((o for o in self.cluster.operators if o.code is None), None)
        if victim is None:
            return [], None
        victim.stop()
        self._recover()
        return ["operator"], self.cluster.start_operator

    def operator_is_frozen(self, *, seconds: float) -> Any:
        victim = self.cluster.leader
        if victim is None:
            return [], None
        victim.process.freeze(seconds)
        self._recover()

        def heartbeat() -> None:
            if self.world.loop.time() < victim.process.frozen_until:
                for rabbit in self.cluster.rabbits.values():
                    for connection in [c for c in rabbit.connections if c.process is victim.process]:
                        connection.lose()

        self.world.later(HEARTBEAT, heartbeat)
        return ["operator"], None

    def _recover(self) -> None:
        """A new leader takes some seconds."""
        self._sick("operator")
        self.world.later(15.0, self._well, "operator")

    def watch_operators(self) -> None:
        """As the kubelet does: start an operator again that has ended."""
        for one in list(self.cluster.operators):
            if one.code not in {None, -9, 0} and not one.replaced:
                one.replaced = True
                self.world.later(2.0, self.cluster.start_operator)
                self._recover()

    # -- users ---------------------------------------------------------------------------------------

    def _edit(self, key: WorkQueueKey, change: Callable[[dict[str, Any]], dict[str, Any]]) -> list[str]:
        server = self.cluster.server
        server.change("user", ("workqueues", *key), lambda body: {**body, "spec": change(body["spec"])})
        return [f"wq {key[0]}/{key[1]}"]

    def _with_image(self, key: WorkQueueKey, image: str) -> list[str]:
        self.changed_template[key] = self.world.now
        return self._edit(key, lambda spec: {**spec, "worker": {**spec["worker"], "image": image}})

    def user_changes_the_image(self, namespace: str, name: str) -> Any:
        self._images += 1
        return self._with_image((namespace, name), f"jobs:{self._images}"), None

    def user_sets_a_bad_image(self, namespace: str, name: str) -> Any:
        self._images += 1
        bad = f"bad:{self._images}"
        self.cluster.kubelets.bad_images.add(bad)
        scopes = self._with_image((namespace, name), bad)
        return scopes, lambda: self._with_image((namespace, name), f"jobs:{self._images}")

    def user_pins_the_count(self, namespace: str, name: str, count: int) -> Any:
        key = namespace, name
        scopes = self._edit(key, lambda spec: {**spec, "replicas": count})
        return scopes, lambda: self._edit(
            key, lambda spec: {k: v for k, v in spec.items() if k != "replicas"}
        )

    def user_suspends(self, namespace: str, name: str) -> Any:
        key = namespace, name
        self.paused_recurring.add(key)
        scopes = self._edit(key, lambda spec: {**spec, "suspend": True})
        return scopes, lambda: self._edit(key, lambda spec: {**spec, "suspend": False})

    def user_changes_the_maximum(self, namespace: str, name: str, most: int) -> Any:
        key = namespace, name

        def change(spec: dict[str, Any]) -> dict[str, Any]:
            return {
                **spec,
                "scaling": {**spec["scaling"], "maxReplicas": max(most, spec["scaling"]["minReplicas"], 1)},
            }

        return self._edit(key, change), None

    def user_scales_the_Deployment(self, namespace: str, name: str, count: int) -> Any:  # noqa: N802
        key = ("deployments", namespace, workload_name(name))
        if self.cluster.server.objects.get(key) is not None:
            self.foreign_write[key] = self.world.now
            self.cluster.server._owners_of_replicas.setdefault(key, set()).add(("kubectl", "Update"))
            self.cluster.server.change(
                "user", key, lambda body: {**body, "spec": {**body["spec"], "replicas": count}}
            )
        return [f"wq {namespace}/{name}"], None

    def user_moves_to_another_broker(self, namespace: str, name: str, host: str) -> Any:
        key = namespace, name
        if name == "twin" or any(
            self.workqueues[k].queue == self.workqueues[key].queue and k != key for k in self.workqueues
        ):
            return [], None
        old = self.queue(key)
        if old is not None:
            # The user moves the messages of the old broker.
            rabbit = self.cluster.rabbits[self.hosts[key]]
            for queue in rabbit.queues.values():
                if queue.name.startswith(old.name):
                    self.exempt.update(message.original for message in queue.messages)
        self.changed_template[key] = self.world.now
        self.paused_recurring.add(key)
        self.hosts[key] = host
        one = self.workqueues[key]
        password = self.cluster.rabbits[host].passwords["user"]
        self.cluster.put_secret(namespace, one.spec["connectionSecretRef"]["name"], host, password)
        scope = f"wq {namespace}/{name}"
        # The Secret is read once a minute.
        self._sick(scope)
        self.world.later(90.0, self._well, scope)
        return [scope], None

    def user_deletes_the_WorkQueue(self, namespace: str, name: str) -> Any:  # noqa: N802
        return self.user_deletes_the_workqueue(namespace, name)

    def user_deletes_the_workqueue(self, namespace: str, name: str) -> Any:
        key = namespace, name
        body = self.cluster.server.objects.get(("workqueues", *key))
        if body is None:
            return [], None
        if self.workqueues[key].spec["queue"]["deletionPolicy"] == "Delete" and name != "twin":
            queue = self.queue(key)
            self.exempt.update(message.original for message in (queue.messages if queue else ()))
        self.paused_recurring.add(key)
        self.cluster.server.delete("user", ("workqueues", *key))
        scope = f"wq {namespace}/{name}"

        # Another WorkQueue on this queue takes it over, and its workers learn of the broker.
        for other, one in self.workqueues.items():
            if one.queue == self.workqueues[key].queue:
                self.changed_template[other] = self.world.now

        def again() -> None:
            if ("workqueues", *key) in self.cluster.server.objects:
                self.world.later(5.0, again)
                return
            self.changed_template[key] = self.world.now
            if name != "twin":
                self._put(self.workqueues[key])
            self.world.later(20.0, self._well, scope)

        self._sick(scope)
        return [scope], again


_KNOW_SECONDS: Final = frozenset({"watch breaks", "operator is frozen"})
