"""A worker process: the real Runtime, slots, settler, retirement and drain, between models of their outside."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import aiohttp

from tests.simulation import threads
from tests.simulation.apiserver import Object
from tests.simulation.loop import PROCESS, Process
from tests.simulation.rabbit import ModelConnection, ModelMessage, Rabbit
from workqueue.amqp.backoff import Backoff
from workqueue.amqp.errors import BrokerError, NotSent, Returned, Unconfirmed
from workqueue.contract import worker_api
from workqueue.contract.signing import Purpose
from workqueue.contract.topology import Plan, QueueSettings, QueueType
from workqueue.contract.worker_api import Variable
from workqueue.message import Message
from workqueue.worker import drain
from workqueue.worker.config import PythonHandler, RunConfig
from workqueue.worker.endpoint import Endpoint, _Request
from workqueue.worker.handlers.outcome import RetryPolicy
from workqueue.worker.retirement import Retirement
from workqueue.worker.runtime import Runtime
from workqueue.worker.slot import Delivery
from workqueue_operator.names import RETIREMENT_KEY, retirement_secret_name

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster

KILLED: Final = 137
CONFIRM_SECONDS: Final = 0.003


class Task(NamedTuple):
    """What a message asks of its handler.

    Attributes:
        kind: "ok", "fails" each time, "fails once", or "crashes" its worker once.
    """

    seconds: float
    kind: str

    def body(self) -> bytes:
        """The body of the message."""
        return f"{self.seconds:g} {self.kind}".encode()

    @classmethod
    def of(cls, body: bytes) -> Task:
        """Read a body."""
        seconds, _, kind = body.decode().partition(" ")
        return cls(float(seconds), kind)


class WorkerConnection:
    """The worker's consuming connection, with the interface of `workqueue.amqp.connection.Connection`."""

    def __init__(self, worker: WorkerProcess, *, on_open: Any, on_lost: Any) -> None:
        self.lock = threads.NullLock()
        self.loop = _Loop(self.lock)
        self.generation = 0
        self.version = None
        self.channel_max = 2047
        self.last_error = None
        self.tick_age = 0.0
        self._worker = worker
        self._on_open = on_open
        self._on_lost = on_lost
        self._model: ModelConnection | None = None
        self._backoff = Backoff(0.2, 5.0)
        self._closing = False

    @property
    def is_open(self) -> bool:
        return self._model is not None and self._model.is_open

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        yield

    def begin(self) -> None:
        self._attempt()

    def channel(self, on_open: Any) -> Any:
        if not self.is_open:
            raise BrokerError("The connection to RabbitMQ is not open.")
        assert self._model is not None
        return self._model.channel(on_open_callback=on_open)

    def call(self, function: Callable[[], None]) -> None:
        self._worker.loop.call_soon(function, context=self._worker.process.context)

    def call_later(self, seconds: float, function: Callable[[], None]) -> Any:
        return self._worker.loop.call_later(seconds, function, context=self._worker.process.context)

    def flush(self) -> None:
        """Frames are sent immediately."""

    def abort(self, reason: str) -> None:
        if self._model is not None:
            self._model.lose(reason)

    def close(self) -> None:
        self._closing = True
        if self._model is not None:
            self._model.close()

    def _attempt(self) -> None:
        if self._closing:
            return
        rabbit = self._worker.rabbit()
        if rabbit is None or rabbit.down or rabbit.hung or rabbit.is_cut_from(self._worker.process):
            self.call_later(0.05 + self._backoff.next(), self._attempt)
            return
        self.call_later(rabbit.latency() * 4, lambda: self._opened(rabbit))

    def _opened(self, rabbit: Rabbit) -> None:
        if self._closing:
            return
        if rabbit.down or rabbit.hung:
            self._attempt()
            return
        self._model = rabbit.connect(self._worker.process)
        self._model.add_on_close_callback(self._lost)
        self.version = rabbit.version  # type: ignore[assignment]
        self.generation += 1
        self._backoff.reset()
        self._on_open(self.generation)

    def _lost(self, _connection: Any, reason: Exception) -> None:
        self._model = None
        self._on_lost(str(reason))
        self.call_later(self._backoff.next(), self._attempt)


class _Loop(threads.NullLock):
    def __init__(self, lock: threads.NullLock) -> None:
        self.lock = lock

    def close(self) -> None:
        """Nothing is open."""


class Publisher:
    """The worker's publisher of copies: confirms come late, or never."""

    def __init__(self, worker: WorkerProcess) -> None:
        self._worker = worker
        self.connection = SimpleNamespace(tick_age=0.0)

    def submit(self, outgoing: Any, is_wanted: Callable[[], bool]) -> Future[None]:
        future: Future[None] = Future()
        self._later(self._publish, future, outgoing, is_wanted)
        return future

    def declare_plan(self, plan: Plan) -> Future[bool]:
        future: Future[bool] = Future()
        self._later(self._declare, future, plan)
        return future

    def close(self, _timeout: float) -> None:
        """Nothing is open."""

    def _later(self, function: Callable[..., None], *arguments: Any) -> None:
        worker = self._worker
        rabbit = worker.rabbit()
        seconds = CONFIRM_SECONDS * (0.5 + worker.cluster.world.random.random()) + (
            rabbit.slow if rabbit else 0.0
        )
        worker.loop.call_later(seconds, function, *arguments, context=worker.process.context)

    def _reachable(self, future: Future[Any]) -> Rabbit | None:
        worker = self._worker
        rabbit = worker.rabbit()
        if rabbit is None or rabbit.down or rabbit.hung or rabbit.is_cut_from(worker.process):
            future.set_exception(BrokerError("The connection to RabbitMQ is not open."))
            return None
        return rabbit

    def _declare(self, future: Future[bool], plan: Plan) -> None:
        if (rabbit := self._reachable(future)) is None:
            return
        future.set_result(rabbit.declare(plan))

    def _publish(self, future: Future[None], outgoing: Any, is_wanted: Callable[[], bool]) -> None:
        if not is_wanted():
            future.set_exception(NotSent("", outgoing.routing_key, "1", "no longer needed"))
            return
        if (rabbit := self._reachable(future)) is None:
            return
        self._worker.cluster.on_copy(self._worker, str(outgoing.message_id))
        message = ModelMessage(
            str(outgoing.message_id),
            outgoing.body,
            dict(outgoing.headers or {}),
            outgoing.expiration,
            outgoing.priority,
            routing_key=outgoing.routing_key,
        )
        done = rabbit.publish(outgoing.exchange, message)
        chance = self._worker.cluster.world.random
        if done is None:
            # No majority, or an alarm: the confirm does not come before that is over.
            self._worker.loop.call_later(
                0.5, self._publish, future, outgoing, is_wanted, context=self._worker.process.context
            )
        elif not done:
            future.set_exception(Returned("", outgoing.routing_key, "1", "NO_ROUTE"))
        elif self._worker.cluster.confirms_lost and chance.random() < self._worker.cluster.confirms_lost:
            self._worker.loop.call_later(
                1.0, _fail, future, outgoing.routing_key, context=self._worker.process.context
            )
        else:
            seconds = CONFIRM_SECONDS * chance.random() + self._worker.cluster.confirms_late * chance.random()
            self._worker.loop.call_later(
                seconds, future.set_result, None, context=self._worker.process.context
            )


def _fail(future: Future[None], queue: str) -> None:
    future.set_exception(Unconfirmed("", queue, "1", "connection lost"))


class CrashError(Exception):
    """Stands for a handler that ends its process."""


class Handlers:
    """Runs handlers: a wait, and an end as the message asks."""

    def __init__(self, worker: WorkerProcess) -> None:
        self._worker = worker
        self._running: dict[Delivery, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._running)

    def start(self) -> None:
        """Nothing runs before the first message."""

    def accepts(self, slot: int) -> bool:
        return True

    def is_blocked(self, delivery: Delivery) -> bool:
        return False

    def submit(self, delivery: Delivery) -> None:
        worker = self._worker
        task = Task.of(delivery.body)
        worker.cluster.on_handler(worker, delivery.message)
        self._running[delivery] = worker.loop.call_later(
            task.seconds, self._end, delivery, task, context=worker.process.context
        )

    def cancel(self, delivery: Delivery) -> None:
        timer = self._running.get(delivery)
        if timer is not None:
            timer.cancel()
            self._running[delivery] = self._worker.loop.call_later(
                0.01, self._end, delivery, Task(0, "cancelled"), context=self._worker.process.context
            )

    def stop(self, _timeout: float) -> bool:
        return not self._running

    def _end(self, delivery: Delivery, task: Task) -> None:
        worker, message = self._worker, delivery.message
        first = message.attempt == 1
        if (
            task.kind == "crashes"
            and delivery.properties.headers.get("x-delivery-count", 0) == 0
            and not message.redelivered
        ):
            worker.crash()
            return
        del self._running[delivery]
        error: Exception | None = None
        if task.kind == "fails" or (task.kind == "fails once" and first):
            error = ValueError("no")
        elif task.kind == "cancelled":
            error = asyncio.CancelledError()  # type: ignore[assignment]
        else:
            worker.cluster.on_handled(worker, message)
        worker.runtime.deliveries.handled(delivery, error)


class WorkerProcess:
    """One worker.

    Args:
        on_end: called with it and its exit code.
    """

    def __init__(
        self, cluster: Cluster, pod: Object, ip: str, on_end: Callable[[WorkerProcess, int], None]
    ) -> None:
        self.cluster = cluster
        self.loop = cluster.world.loop
        self.pod = pod["metadata"]["name"]
        self.namespace = pod["metadata"]["namespace"]
        self.uid = pod["metadata"]["uid"]
        self.ip = ip
        self.process = Process(self.loop, self.pod)
        self.ended = False
        self.ready = False
        self.knows_cancels: set[str] = set()
        """The ids of messages that it knows to be cancelled."""
        self._on_end = on_end
        spec = pod["spec"]
        environment = {one["name"]: one.get("value") for one in spec["containers"][0]["env"]}
        self._secret = next(
            v["secret"]["secretName"] for v in spec["volumes"] if v["name"] == "workqueue-binding"
        )
        self.workqueue = pod["metadata"]["labels"]["workqueue.dev/workqueue"]
        hears = (self.namespace, self.workqueue) in cluster.cancelling
        self.config = _config(environment, pod)._replace(hears_cancels=hears)
        self.handlers = Handlers(self)
        self.process.run(self._begin)

    def _begin(self) -> None:
        self.runtime = Runtime(
            self.config,
            lambda: None,  # type: ignore[arg-type,return-value]
            connect=lambda _source, _name, **callbacks: WorkerConnection(self, **callbacks),  # type: ignore[arg-type,return-value]
            on_end=self._on_runtime_end,
        )
        self.runtime.deliveries._executor = self.handlers  # type: ignore[assignment]
        self.runtime.deliveries._publisher = Publisher(self)  # type: ignore[assignment]
        self.runtime.deliveries.ready = True
        self._watch_cancels()
        self.retirement = Retirement(self.runtime.consumer, self._key, self.uid)
        self.endpoint = Endpoint.__new__(Endpoint)
        self.endpoint.runtime = self.runtime
        self.endpoint.retirement = self.retirement
        self.runtime.consumer.connection.begin()
        self.loop.call_later(0.1, self._now_ready, context=self.process.context)

    def _watch_cancels(self) -> None:
        """Note the cancels that the worker learns of, and the messages that it drops because of one."""
        cancels, deliveries = self.runtime.consumer.cancels, self.runtime.deliveries
        if cancels is None:
            return
        came, drop = cancels._came, deliveries._drop

        def heard(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            came(channel, method, properties, body)
            self.knows_cancels.add(json.loads(body)["id"])

        def dropped(delivery: Delivery, cancel: Any, **named: Any) -> None:
            self.cluster.on_dropped(self, str(delivery.properties.message_id))
            drop(delivery, cancel, **named)

        cancels._came = heard  # type: ignore[method-assign]
        deliveries._drop = dropped  # type: ignore[method-assign]

    def _now_ready(self) -> None:
        self.ready = True

    def _key(self) -> bytes:
        """The mounted Secret."""
        secret = self.cluster.server.get("secrets", self.namespace, retirement_secret_name(self.workqueue))
        return b"" if secret is None else base64.b64decode(secret["data"][RETIREMENT_KEY])

    def rabbit(self) -> Rabbit | None:
        """The broker that the Secret names now."""
        return self.cluster.rabbit_of_secret(self.namespace, self._secret)

    @property
    def held(self) -> int:
        """Messages that it has and has not settled."""
        return self.runtime.consumer.held()

    @property
    def is_connected(self) -> bool:
        """Whether RabbitMQ has its connection, too."""
        model = self.runtime.consumer.connection._model  # type: ignore[attr-defined]
        return model is not None and model.alive

    def running(self) -> list[Delivery]:
        """What its handlers work on, unless RabbitMQ has taken it back."""
        return [delivery for delivery in self.handlers._running if delivery.lease.held]

    # -- its end -------------------------------------------------------------------------------------

    def terminate(self) -> None:
        """SIGTERM."""
        self.process.run(self._drain, 0)

    def _on_runtime_end(self) -> None:
        failure = self.runtime.failure
        self._drain(0 if failure is None else int(failure.code))

    def _drain(self, code: int) -> None:
        if self.ended or (self.runtime.consumer.draining and code == 0 and self.runtime.failure is None):
            return
        self.process.start(self._drained(code), "drain")

    async def _drained(self, code: int) -> None:
        await threads.in_thread(drain.drain, self.runtime, threads.Signals(), self.config.grace_seconds)
        self._end(code)

    def crash(self) -> None:
        """The process ends in the middle of everything."""
        self._end(1)

    def kill(self) -> None:
        """SIGKILL, or the end of its node."""
        self._end(KILLED)

    def _end(self, code: int) -> None:
        if self.ended:
            return
        self.ended = True
        self.process.kill()
        for rabbit in self.cluster.rabbits.values():
            rabbit.drop_connections(self.process)
        self._on_end(self, code)


def _config(environment: dict[str, Any], pod: Object) -> RunConfig:
    delays = environment.get(Variable.DELAYS_SECONDS) or "1,10"
    kind = environment.get(Variable.QUEUE_TYPE) or "Quorum"
    return RunConfig(
        handler=PythonHandler("m:f"),
        queue_settings=QueueSettings(environment[Variable.QUEUE], QueueType(kind)),
        declare=False,
        retry=RetryPolicy(
            int(environment.get(Variable.MAX_ATTEMPTS) or 5), tuple(int(one) for one in delays.split(","))
        ),
        delivery_limit=None,
        wake_deliveries=0,
        timeout_seconds=float(environment.get(Variable.TIMEOUT_SECONDS) or 300),
        concurrency=int(environment.get(Variable.CONCURRENCY) or 1),
        limit_queue=environment.get(Variable.LIMIT_QUEUE),
        limit_rate_queue=environment.get(Variable.LIMIT_RATE_QUEUE),
        grace_seconds=float(environment.get(Variable.GRACE_SECONDS) or 300),
        port=0,
        port_is_default=False,
        url=None,
        binding_folder=None,
        pod_uid=pod["metadata"]["uid"],
        worker_name=pod["metadata"]["name"],
        log_format=None,
        log_level="INFO",
        heartbeat_seconds=None,
        termination_log=Path("/dev/null"),
        retirement_key_file=Path("/dev/null"),
    )


# -- the operator's calls ------------------------------------------------------------------------------


class _Content:
    def __init__(self, text: bytes) -> None:
        self._text = text

    async def iter_any(self) -> Any:
        yield self._text


class _Call:
    """One HTTP request of an operator to a worker, as `async with`."""

    def __init__(self, cluster: Cluster, method: str, url: str, headers: dict[str, str]) -> None:
        self._cluster = cluster
        self._method = method
        self._url = url
        self._headers = headers
        self.status = 0
        self.content = _Content(b"")

    async def __aenter__(self) -> Self:
        ip, _, path = self._url.removeprefix("http://").partition(":")
        path = f"/{path.partition('/')[2]}"
        cluster, chance = self._cluster, self._cluster.world.random
        if not ip:
            raise aiohttp.InvalidURL(self._url)
        if cluster.is_unreachable(ip, PROCESS.get()):
            await asyncio.sleep(1.0)
            raise TimeoutError
        await asyncio.sleep(0.001 + 0.002 * chance.random())
        worker = cluster.worker_at(ip)
        if worker is None:
            key: Any = SimpleNamespace(host=ip, port=worker_api.PORT, ssl=True)
            raise aiohttp.ClientConnectorError(key, ConnectionRefusedError())
        answer = worker.loop.create_future()
        if path == worker_api.STATUS_PATH:
            worker.loop.call_soon(_answer_status, worker, answer, context=worker.process.context)
        else:
            worker.process.start(_answer(worker, self._method, self._headers, answer), "request")
        late = worker.loop.call_later(2.0, _time_out, answer)
        try:
            self.status, said = await answer
        finally:
            late.cancel()
        await asyncio.sleep(0.001 + 0.002 * chance.random())
        if cluster.is_unreachable(ip, PROCESS.get()):
            await asyncio.sleep(2.0)
            raise TimeoutError
        self.content = _Content(json.dumps(said).encode())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing is open."""


def _answer_status(worker: WorkerProcess, answer: Any) -> None:
    said = worker.endpoint.status()
    if not answer.done():
        answer.set_result((HTTPStatus.OK, said))


async def _answer(worker: WorkerProcess, method: str, headers: dict[str, str], answer: Any) -> None:
    heard: list[tuple[int, Any]] = []
    request: Any = SimpleNamespace(
        server=SimpleNamespace(endpoint=worker.endpoint),
        path=worker_api.RETIRE_PATH,
        headers=headers,
        _answer=lambda code, content: heard.append((int(code), content)),
    )
    purpose = Purpose.RETIRE if method == "POST" else Purpose.RESUME
    await threads.in_thread(_Request._retire, request, purpose)
    if purpose is Purpose.RETIRE and heard[0][0] == HTTPStatus.OK:
        worker.cluster.on_retired(worker)
    if not answer.done():
        answer.set_result(heard[0])


def _time_out(answer: Any) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError())


class Session:
    """Stands in for aiohttp's session of an operator."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def get(self, url: str, **_: Any) -> _Call:
        return _Call(self._cluster, "GET", url, {})

    def request(self, method: str, url: str, *, headers: dict[str, str], **_: Any) -> _Call:
        return _Call(self._cluster, method, url, headers)

    async def close(self) -> None:
        """Nothing is open."""


def http_of(cluster: Cluster) -> Any:
    """What a module finds under the name aiohttp."""
    own = {"TCPConnector": lambda **_: None, "ClientSession": lambda **_: Session(cluster)}
    return SimpleNamespace(**{**vars(aiohttp), **own})


__all__ = ["Message", "Session", "Task", "WorkerProcess", "http_of"]
