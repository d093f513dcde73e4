"""One cluster with its brokers, its workers, and operators: the real ones, between the models."""

from __future__ import annotations

import asyncio
import base64
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partialmethod
from typing import Any, Final, cast

import pytest

from tests.simulation import threads
from tests.simulation.apiserver import ApiServer, ModelCluster, Object, Watch
from tests.simulation.controllers import (
    DeploymentController,
    GarbageCollector,
    Kubelets,
    ReplicaSetController,
)
from tests.simulation.loop import PROCESS, Process, sleep
from tests.simulation.rabbit import ModelMessage, Rabbit
from tests.simulation.workers import Task, WorkerProcess, http_of
from tests.simulation.world import World
from workqueue.contract.cancels import Cancel
from workqueue.contract.headers import DUE_AT
from workqueue.contract.topology import BrokerVersion, cancels_name, cancels_plan, delay_route
from workqueue.worker import consumer, drain, retirement
from workqueue_operator import __main__ as main
from workqueue_operator.api.reasons import Reason
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.broker import connection as broker_connection
from workqueue_operator.broker import management
from workqueue_operator.config import Config
from workqueue_operator.errors import ReconcileError
from workqueue_operator.kube import watch
from workqueue_operator.kube.json_map import JsonMap
from workqueue_operator.kube.store import Store
from workqueue_operator.workers import client as workers_client

OPERATOR: Final = "workqueue-operator"
RESYNC_SECONDS: Final = 300.0
POLL_SECONDS: Final = 1.0

_KINDS: Final = ("workqueues", "deployments", "pods")


class _NoEndpoint:
    """The operator's own port."""

    def __init__(self, *_: Any) -> None:
        """Nothing listens."""

    async def start(self) -> None:
        """Nothing listens."""

    async def stop(self) -> None:
        """Nothing listens."""


class OperatorProcess:
    """One operator: the real process behind `python -m workqueue_operator`."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.process = Process(cluster.world.loop, name)
        self.watches: list[Watch] = []
        self.code: int | None = None
        self.parts: Any = None
        self.reconciler: Any = None
        self.replaced = False
        config = Config(
            pod_name=name,
            pod_namespace="operators",
            resync_seconds=RESYNC_SECONDS,
            poll_seconds=POLL_SECONDS,
            read_nodes=cluster.read_nodes,
        )
        self.operator: Any = self.process.run(main.Operator, config)
        self.task = self.process.start(self._run(), f"operator {name}")

    async def _run(self) -> None:
        try:
            self.code = await self.operator.run()
        finally:
            if self.process.alive:
                self._forget()
        self.cluster.world.tell(self.name, f"ended with code {self.code}")

    @property
    def leads(self) -> bool:
        """Whether it runs passes."""
        return self.process.alive and self.code is None and self.operator._leading

    def stop(self) -> None:
        """SIGTERM."""
        self.process.run(self.operator._stop.set)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.code = -9
        self._forget()

    def _forget(self) -> None:
        self.cluster.server.unwatch(self.watches)
        for rabbit in self.cluster.rabbits.values():
            rabbit.drop_connections(self.process)


class Cluster:
    """Everything.

    Attributes:
        confirms_late: seconds that a confirm of a worker's copy may take longer.
        confirms_lost: the share of copies whose confirm never comes, although they are stored.
        unreachable: addresses of pods that nothing reaches.
    """

    def __init__(self, world: World, *, brokers: int = 1, nodes: int = 3, read_nodes: bool = False) -> None:
        self.world = world
        self.read_nodes = read_nodes
        self.server = ApiServer(world)
        self.rabbits: dict[str, Rabbit] = {}
        versions = [BrokerVersion(4, 3), BrokerVersion(3, 10), BrokerVersion(4, 0)]
        for number in range(brokers):
            name = f"10.1.0.{number + 1}"
            self.rabbits[name] = Rabbit(world, f"rabbit@{number}", versions[number % 3])
        self.confirms_late = 0.0
        self.confirms_lost = 0.0
        self.unreachable: set[str] = set()
        self.cut_namespaces: set[str] = set()
        self.on_handler: Callable[[WorkerProcess, Any], None] = lambda _worker, _message: None
        self.on_handled: Callable[[WorkerProcess, Any], None] = lambda _worker, _message: None
        self.on_copy: Callable[[WorkerProcess, str], None] = lambda _worker, _message: None
        self.on_dropped: Callable[[WorkerProcess, str], None] = lambda _worker, _message: None
        """Called with the id of each message that a worker drops because it was cancelled."""
        self.cancelling: set[tuple[str, str]] = set()
        """The WorkQueues whose workers learn of cancels. Without any, a worker only costs time by that."""
        self.on_retired: Callable[[WorkerProcess], None] = lambda _worker: None
        self.on_scale_in: Callable[[Object, Object, WorkerProcess | None], None] = (
            lambda _set, _pod, _worker: None
        )
        self.deployments = DeploymentController(world, self.server)
        self.replicasets = ReplicaSetController(world, self.server, self._on_scale_in)
        self.collector = GarbageCollector(world, self.server)
        self._at: dict[str, WorkerProcess] = {}
        self.kubelets = Kubelets(world, self.server, nodes, self._start_worker)
        self.operators: list[OperatorProcess] = []
        self._numbers = 0

    # -- pods ----------------------------------------------------------------------------------------

    def _start_worker(self, pod: Object, ip: str, on_end: Callable[[Any, int], None]) -> WorkerProcess:
        def ended(worker: WorkerProcess, code: int) -> None:
            self._at.pop(ip, None)
            on_end(worker, code)

        worker = self._at[ip] = WorkerProcess(self, pod, ip, ended)
        return worker

    def worker_at(self, ip: str) -> WorkerProcess | None:
        """The worker that listens at an address."""
        return self._at.get(ip)

    @property
    def workers(self) -> list[WorkerProcess]:
        """All worker processes."""
        return list(self._at.values())

    def is_unreachable(self, ip: str, _process: Process | None) -> bool:
        """Whether packets from an operator to an address are lost."""
        worker = self._at.get(ip)
        return ip in self.unreachable or (worker is not None and worker.namespace in self.cut_namespaces)

    def _on_scale_in(self, replicaset: Object, pod: Object) -> None:
        worker = self.kubelets.worker(pod["metadata"]["name"])
        self.on_scale_in(replicaset, pod, worker)

    # -- brokers -------------------------------------------------------------------------------------

    def rabbit_of_secret(self, namespace: str, name: str) -> Rabbit | None:
        """The broker that a Secret leads to; None when it does not accept its data."""
        secret = self.server.get("secrets", namespace, name)
        if secret is None:
            return None
        data = {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
        rabbit = self.rabbits.get(data["host"])
        if rabbit is None or rabbit.passwords.get(data["username"]) != data["password"]:
            return None
        return rabbit

    def put_secret(self, namespace: str, name: str, host: str, password: str = "secret") -> None:
        """Store a connection Secret."""
        keys = {"host": host, "port": "5672", "username": "user", "password": password}
        data = {key: base64.b64encode(value.encode()).decode() for key, value in keys.items()}
        self.server.put("user", ("secrets", namespace, name), {"metadata": {}, "data": data})

    async def open_connection(self, broker: Any) -> Any:
        """What `Broker._open` does, on the model."""
        binding = broker.binding
        process = PROCESS.get()
        assert process is not None
        host = binding.addresses[0][0]
        rabbit = self.rabbits.get(host)
        if rabbit is None or rabbit.down:
            await asyncio.sleep(0.003)
            raise broker_connection._unreachable(binding, ConnectionRefusedError())
        if rabbit.hung or rabbit.is_cut_from(process):
            await asyncio.sleep(broker_connection.CONNECT_TIMEOUT)
            raise broker_connection._unreachable(binding, TimeoutError("timed out"))
        await asyncio.sleep(4 * rabbit.latency())
        if rabbit.down or rabbit.hung:
            raise broker_connection._unreachable(binding, ConnectionResetError())
        if rabbit.passwords.get(binding.username) != binding.password:
            raise ReconcileError(
                Reason.AUTHENTICATION_FAILED,
                f"The broker {binding.display} refuses the user {binding.username!r} with this password. "
                "Correct username and password in the Secret. The operator reads it again automatically.",
            )
        made = rabbit.connect(process, broker._connection_class)
        closed = broker._closed = asyncio.get_running_loop().create_future()
        made.add_on_close_callback(lambda _, reason: None if closed.done() else closed.set_result(reason))
        return made

    def publish(self, host: str, queue: str, task: Task, delay: float = 0.0) -> str | None:
        """Publish one message; return its id if it was confirmed."""
        self._numbers += 1
        name, rabbit, exchange = f"{queue}-{self._numbers}", self.rabbits[host], ""
        message = ModelMessage(name, task.body(), routing_key=queue)
        if delay and not rabbit.down:
            route = delay_route(queue, delay)
            rabbit.declare(route.plan)
            exchange, message.routing_key = route.exchange, route.routing_key
            message.headers[DUE_AT] = round((self.world.unix() + delay) * 1000)
        return name if rabbit.publish(exchange, message) else None

    def cancel(self, host: str, queue: str, message: str, *, discard: bool) -> bool:
        """Cancel a message as a publisher does; return whether RabbitMQ has stored that."""
        rabbit = self.rabbits[host]
        if rabbit.down or queue not in rabbit.queues:
            return False
        rabbit.declare(cancels_plan(queue))
        body = Cancel(message, round(self.world.unix() * 1000), discard).encode()
        return bool(rabbit.publish(cancels_name(queue), ModelMessage("cancel", body)))

    # -- operators -----------------------------------------------------------------------------------

    def start_operator(self) -> OperatorProcess:
        """Start another operator."""
        operator = OperatorProcess(self, f"operator-{len(self.operators)}")
        self.operators.append(operator)
        return operator

    @property
    def leader(self) -> OperatorProcess | None:
        """The operator that runs passes, if there is one."""
        return next((one for one in self.operators if one.leads), None)

    def _current(self) -> OperatorProcess | None:
        process = PROCESS.get()
        return next((one for one in self.operators if one.process is process), None)

    async def connect(self, _kubeconfig: str | None = None, *arguments: Any) -> ModelCluster:
        """What `kube.client.connect` does."""
        return ModelCluster(self.server, OPERATOR, *arguments)

    async def watch(self, store: Store, namespaces: Any, **_: Any) -> None:
        """What `kube.watch.run` does: feed the store with events, until cancelled."""
        operator, process = self._current(), PROCESS.get()
        assert operator is not None

        def feeder(plural: str) -> Callable[[Any, Object], None]:
            def feed(kind: str | None, body: Object) -> None:
                if plural != "pods" or "workqueue.dev/workqueue" in body["metadata"].get("labels", {}):
                    # The real callback empties what it gets.
                    own = {**body, "metadata": dict(body["metadata"])}
                    watch._feed(store, plural, {"type": kind, "object": own})

            return feed

        for plural in _KINDS:
            operator.watches.append(
                self.server.watch(plural, feeder(plural), process=process, on_list=store.watch_lists.set)
            )
        await asyncio.get_running_loop().create_future()


async def _open(broker: Any, cluster: Cluster) -> Any:
    return await cluster.open_connection(broker)


def _share_objects(patches: pytest.MonkeyPatch) -> None:
    """Let the store keep objects instead of packed JSON. Nothing changes an object that it has read there."""
    packed: Any = JsonMap
    patches.setattr(packed, "__getitem__", lambda self, key: self._packed[key])
    patches.setattr(packed, "__setitem__", lambda self, key, body: self._packed.__setitem__(key, body))


def _record_exceptions(patches: pytest.MonkeyPatch, errors: list[str]) -> None:
    """What the code logs with a traceback is unexpected. Nothing else shows it, because the code goes on."""

    def exception(logger: logging.Logger, message: str, *_: Any, **__: Any) -> None:
        errors.append(f"{logger.name}: {message} {sys.exc_info()[1]!r}")

    patches.setattr(logging.Logger, "exception", exception)


def _log_nothing(patches: pytest.MonkeyPatch) -> None:
    """`logging.disable` would empty the cache of each logger, and there are hundreds."""
    patches.setattr(logging.Logger, "isEnabledFor", lambda *_: False)


def _remembered(validate: Callable[[Object], WorkQueue]) -> Callable[[Object], WorkQueue]:
    """Parse each version of a WorkQueue once."""
    known: dict[tuple[str, str], WorkQueue] = {}

    def model_validate(body: Object) -> WorkQueue:
        version = body["metadata"]["uid"], body["metadata"]["resourceVersion"]
        if version not in known:
            known[version] = validate(body)
        return known[version]

    return model_validate


@contextmanager
def installed(cluster: Cluster) -> Iterator[None]:
    """Put the models in the places where the real code meets the outside."""
    patches = pytest.MonkeyPatch()
    worker_threads: Any = threads
    for module in (consumer, drain, retirement):
        patches.setattr(module, "threading", worker_threads)
    _share_objects(patches)
    _record_exceptions(patches, cluster.world.loop.errors)
    _log_nothing(patches)
    patches.setattr(asyncio, "sleep", sleep)
    patches.setattr(WorkQueue, "model_validate", _remembered(WorkQueue.model_validate))
    patches.setattr(main, "connect", cluster.connect)
    patches.setattr(main, "Endpoint", _NoEndpoint)
    patches.setattr(main.watch, "run", cluster.watch)
    patches.setattr(broker_connection.Broker, "_open", partialmethod(_open, cluster))
    for adjustment in ("receive_in_large_parts", "send_frames_together"):
        patches.setattr(broker_connection, adjustment, lambda *_, **__: None)
    for module in (workers_client, management):
        patches.setattr(module, "aiohttp", http_of(cluster))
    try:
        yield
    finally:
        patches.undo()


def condition(workqueue: Object, kind: str) -> dict[str, Any]:
    """A condition of a WorkQueue; empty without it."""
    conditions = (workqueue.get("status") or {}).get("conditions", ())
    return cast("dict[str, Any]", next((one for one in conditions if one["type"] == kind), {}))
