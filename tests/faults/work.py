"""Work that goes on while something breaks: workers, messages that keep coming, and the ledger of both.

Place in the flow: the tests of the broker and of the workers say what breaks, between two lines of `through`.
The messages are published over a plain connection of the test's own, straight to RabbitMQ; what became of them
is read from the file that the handlers write and from the queues, not from what the workers report.
"""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import pika
import pika.exceptions

from tests.faults.report import Report
from tests.support.ledger import Ledger, dead_letter
from tests.support.rabbitmq import Broker, BrokerError, VirtualHost
from tests.support.wait import eventually
from tests.support.worker import THREADS, Worker, Workers, publish, take_all
from workqueue.contract import headers
from workqueue.contract.topology import QueueSettings, QueueType, delay_route, plan

QUEUE: Final = "jobs"
DELAY_SECONDS: Final = 1
ROUTE: Final = delay_route(QUEUE, DELAY_SECONDS)
DELAY_QUEUE, *_, LAST_QUEUE = ROUTE.queues
DEAD: Final = f"{QUEUE}.dead"
RATE: Final = 40.0
"""Messages a second."""

LOOK_SECONDS: Final = 0.1

COPY_REFUSED: Final = "A copy could not be published; the message stays unacknowledged, trying again."

JOBS: Final = {
    "ok": 40,
    "sleep": 40,
    "fail once": 12,
    "retry": 3,
    "reject": 5,
}
"""What a message asks of its handler, and how often: every way that a message can take is always in use."""

Connect = Callable[[], pika.BlockingConnection]


class Source:
    """Publishes to the work queue, each message confirmed, over a connection that it opens again.

    Also after a refusal: RabbitMQ 3.10 refuses whatever comes by a channel which met a quorum queue without a leader.
    """

    def __init__(self, ledger: Ledger, connect: Connect) -> None:
        self._ledger = ledger
        self._connect = connect
        self._random = random.Random(7)
        self._numbers = itertools.count(1)
        self._stop = threading.Event()
        self._pause = threading.Event()
        self._idle = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @contextmanager
    def flowing(self) -> Iterator[None]:
        """Publish while the context lasts."""
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join(30)
            assert not self._thread.is_alive(), "the test's own publisher is stuck"

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Publish nothing for a while."""
        self._idle.clear()
        self._pause.set()
        eventually(self._idle.is_set)
        try:
            yield
        finally:
            self._pause.clear()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with self._connect() as connection:
                    channel = connection.channel()
                    channel.confirm_delivery()
                    while not self._stop.wait(1 / RATE):
                        if self._pause.is_set():
                            connection.process_data_events(0)
                            self._idle.set()
                        else:
                            self._publish(channel)
            except (pika.exceptions.AMQPError, OSError):
                self._stop.wait(LOOK_SECONDS)

    def _publish(self, channel: Any) -> None:
        number = next(self._numbers)
        [what] = self._random.choices(list(JOBS), list(JOBS.values()))
        job = {"id": number, "do": what, "seconds": self._random.choice([0.05, 0.2, 0.5]), "after": 0.5}
        if number % 30 == 0:
            job["padding"] = "x" * 300_000  # several frames
        properties = pika.BasicProperties(delivery_mode=2)
        try:
            channel.basic_publish("", QUEUE, json.dumps(job).encode(), properties, mandatory=True)
        except pika.exceptions.UnroutableError as error:
            self._ledger.sent(number, error)
        except (pika.exceptions.AMQPError, OSError) as error:
            self._ledger.sent(number, error)
            raise
        else:
            self._ledger.sent(number)


class Work:
    """The work of one test.

    Args:
        vhost: has the queues.
        workers: starts worker processes.
        report: takes the row.
        url: where workers connect by default.
        connect: how the test connects to publish.

    Attributes:
        ledger: of all messages of `through`, and of those a test adds.
        workers: all that `start` has started.
        last_death: when `replace_dead` last found one that had ended, on the monotonic clock.
        killed: when workers were killed by `kill`, by their process ids.
        measures: what else is measured for the row, at its end.
        reasons: why each dead letter is one.
    """

    def __init__(
        self,
        vhost: VirtualHost,
        workers: Workers,
        report: Report,
        *,
        url: str | None = None,
        connect: Connect | None = None,
    ) -> None:
        self.vhost = vhost
        self.ledger = Ledger()
        self.workers: list[Worker] = []
        self.url = url or vhost.url
        self._connect = connect or vhost.connect
        self._factory = workers
        self._report = report
        self._source = Source(self.ledger, self._connect)
        self._events_read = 0
        self.last_death = time.monotonic()
        self.killed: dict[int, float] = {}
        self.measures: dict[str, Callable[[], float]] = {}
        self.reasons: dict[Any, str] = {}

    @property
    def broker(self) -> Broker:
        """The server that answers the test's own questions."""
        return self.vhost.broker

    # -- before

    def declare(
        self, kind: QueueType = QueueType.QUORUM, *, limit: int | None = None, **settings: Any
    ) -> None:
        """Declare the queues, as the operator does, and the delay queues, as a worker that retried did.

        Args:
            limit: the delivery limit as RabbitMQ counts it, for tests that cannot wait for a larger one.
            settings: of QueueSettings.
        """
        delays = ROUTE.plan
        queues = [*plan(QueueSettings(QUEUE, kind, **settings)).queues, *delays.queues]
        with self._connect() as connection:
            channel = connection.channel()
            for queue in queues:
                arguments = dict(queue.arguments)
                if queue.name == QUEUE and limit is not None:
                    arguments["x-delivery-limit"] = limit
                channel.queue_declare(queue.name, durable=True, arguments=arguments)
            for exchange in delays.steps:
                channel.exchange_declare(exchange.name, "topic", durable=True)
            for step in delays.step_bindings:
                channel.exchange_bind(step.exchange, step.source, step.routing_key)
            for binding in delays.bindings:
                channel.queue_bind(binding.queue, binding.exchange, binding.routing_key)

    def start(
        self,
        count: int = 2,
        *arguments: str,
        port: int | None = None,
        url: str | None = None,
        handler: str = THREADS,
        wait: bool = True,
    ) -> list[Worker]:
        """Start workers that use the existing queue, as workers in pods do.

        Args:
            port: of a proxy that they connect to.
            url: where they connect, instead of `url`; empty: the arguments say where.
            wait: until they consume.
        """
        where = self.url if url is None else url
        if port is not None:
            where = where.replace(f":{self.broker.port}/", f":{port}/")
        words = ("--concurrency", "4", *arguments)
        started = [
            self._factory.start(where or None, *words, handler=handler, declare=False) for _ in range(count)
        ]
        for worker in started if wait else ():
            worker.wait_consuming()
        self.workers += started
        return started

    # -- meanwhile

    @contextmanager
    def through(self, fault: str, *, within: float, duplicates: bool = True) -> Iterator[None]:
        """Messages come before, during and after what is done in the context; then the ledger must balance.

        Args:
            fault: its name in the table.
            within: seconds after the context until every message must have ended.
            duplicates: whether the fault may make RabbitMQ deliver messages again.

        Raises:
            AssertionError: a message is lost or has ended twice without a cause, or some wait too long.
        """
        with self._source.flowing():
            self.await_done(40)
            yield
            over = time.monotonic()
            self.await_sent(10)
        self.balance(fault, over, within, duplicates=duplicates)

    def await_sent(self, count: int, seconds: float = 30) -> None:
        """Wait until so many more messages are confirmed."""
        before = len(self.ledger.confirmed)
        eventually(lambda: len(self.ledger.confirmed) - before >= count, seconds)

    def await_done(self, count: int, seconds: float = 30) -> None:
        """Wait until so many more messages were handled to their end."""
        before = self._read_done()
        eventually(lambda: self._read_done() - before >= count, seconds)

    @contextmanager
    def quiet(self, seconds: float = 30) -> Iterator[None]:
        """Nothing is published, and every message has ended: what is deleted now takes no message along."""
        with self._source.paused():
            eventually(self._settled, seconds)
            yield

    def publish(self, *jobs: dict[str, Any], queue: str = QUEUE) -> None:
        """Publish jobs of the test's own, which are in the ledger, too."""
        publish(self.vhost, *jobs, queue=queue)
        for job in jobs:
            self.ledger.sent(job["id"])

    def publish_delayed(self, *jobs: dict[str, Any]) -> None:
        """Publish jobs of the test's own with the delay."""
        with self._connect() as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            for job in jobs:
                channel.basic_publish(
                    ROUTE.exchange,
                    ROUTE.routing_key,
                    json.dumps(job).encode(),
                    pika.BasicProperties(delivery_mode=2),
                    mandatory=True,
                )
        for job in jobs:
            self.ledger.sent(job["id"])

    def publish_until_refused(self) -> None:
        """Publish until the queue takes no more."""
        for number in itertools.count(1):
            try:
                self.publish({"id": number})
            except pika.exceptions.NackError:
                return

    def delete(self, queue: str) -> None:
        """Delete a queue with its messages, as a person may by mistake."""
        with self._connect() as connection:
            connection.channel().queue_delete(queue)

    def declare_foreign(self, queue: str) -> None:
        """Declare a queue otherwise than we do."""
        with self._connect() as connection:
            connection.channel().queue_declare(queue, durable=True)

    def await_refused(self, count: int, seconds: float = 30) -> None:
        """Wait until so many more messages were refused to their publisher, or got no confirmation."""
        before = len(self.ledger.unconfirmed)
        eventually(lambda: len(self.ledger.unconfirmed) - before >= count, seconds)

    def await_blocked(self, seconds: float = 30) -> None:
        """Wait until RabbitMQ accepts no more messages and only messages that need a copy are left in workers."""
        looks: list[tuple[int, int]] = []

        def blocked() -> bool:
            looks.append(self.vhost.depth(QUEUE))
            ready, held = looks[-1]
            return ready == 0 and held > 0 and looks[-5:] == [looks[-1]] * 5

        eventually(blocked, seconds)

    def kill(self, worker: Worker) -> None:
        """SIGKILL, and it is gone."""
        self.killed[worker.process.pid] = time.time()
        worker.kill()

    def replace_dead(self, *arguments: str, handler: str = THREADS) -> list[Worker]:
        """Replace each worker that has ended, as Kubernetes does, and return the running ones."""
        dead = [worker for worker in self.workers if worker.process.poll() is not None]
        self.workers = [worker for worker in self.workers if worker not in dead]
        if dead:
            self.last_death = time.monotonic()
            self.start(len(dead), *arguments, handler=handler, wait=False)
        return self.workers

    def is_dead(self, number: Any) -> bool:
        """Whether a message is a dead letter."""
        self._read_dead()
        return number in self.ledger.dead

    @property
    def reconnects(self) -> list[int]:
        """How often each worker has connected again."""
        return [worker.count_log("Connected to RabbitMQ.") - 1 for worker in self.workers]

    @property
    def errors(self) -> list[str]:
        """Why each worker does not consume, in its own words; empty where it does."""
        return [worker.status()["lastError"] or "" for worker in self.workers]

    @property
    def copies_refused(self) -> int:
        """How often workers have said that a copy was refused."""
        return sum(worker.count_log(COPY_REFUSED) for worker in self.workers)

    @property
    def connected(self) -> int:
        """How many workers have a connection."""
        return sum(worker.status()["connected"] for worker in self.workers)

    @property
    def consuming(self) -> int:
        """How many workers consume."""
        return sum(worker.status()["consuming"] for worker in self.workers)

    def outcomes(self, outcome: str) -> int:
        """How many messages the workers say have ended so."""
        return sum(worker.outcomes()[outcome] for worker in self.workers)

    def lost_leases(self) -> int:
        """How many deliveries the workers say they have lost."""
        return self.outcomes("lost")

    # -- afterwards

    def balance(self, fault: str, over: float, within: float, *, duplicates: bool = True) -> None:
        """Wait until every message has ended and no queue holds any; write the row down.

        Args:
            over: when the fault was over, on the monotonic clock.

        Raises:
            AssertionError: as `through`.
        """
        deadline = over + within
        while not (settled := self._settled()) and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
        seconds = round(time.monotonic() - over, 1) if settled else None
        if not settled:
            self.ledger.read_waiting(self._take_waiting())
        measured = {name: measure() for name, measure in self.measures.items()}
        self._report.ledger(fault, self.broker.version, self.ledger, seconds, measured)
        assert settled, (
            f"{fault}: {sum(self.ledger.waiting.values())} messages still wait after {within:g} s: "
            f"{sorted(self.ledger.waiting, key=str)[:10]}"
        )
        assert duplicates or not self.ledger.duplicates, (
            f"{fault}: no lease should have been lost, and these ended twice: {self.ledger.duplicates}"
        )

    def _settled(self) -> bool:
        """Whether every confirmed message has ended and nothing is on its way."""
        self._read_done()
        if self.ledger.lost:
            self._read_dead()
        if self.ledger.lost:
            return False
        try:
            return all(
                self.vhost.depth(queue) == (0, 0)
                for queue in (QUEUE, *ROUTE.queues)
                if self.vhost.exists(queue)
            )
        except BrokerError:  # it is busy with the fault
            return False

    def _read_done(self) -> int:
        """Take in what the handlers have written since the last time; returns how much ended in all."""
        events = self.workers[0].events if self.workers else []
        self.ledger.read_events(events[self._events_read :])
        self._events_read = len(events)
        return sum(self.ledger.done.values())

    def _read_dead(self) -> None:
        # The broker may be busy with the fault, or with the beginning or end of the queue: it is asked again.
        with suppress(pika.exceptions.AMQPError, OSError), self._connect() as connection:
            channel = connection.channel()
            channel.queue_declare(DEAD, passive=True)
            while (got := channel.basic_get(DEAD))[0] is not None:
                channel.basic_ack(got[0].delivery_tag)
                letter = dead_letter(got[2], got[1].headers)
                self.ledger.read_dead([letter])
                self.reasons[letter["id"]] = (got[1].headers or {}).get(headers.FAILURE_REASON, "")

    def _take_waiting(self) -> list[dict[str, Any]]:
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.kill()
        queues = [queue for queue in (QUEUE, *ROUTE.queues) if self.vhost.exists(queue)]
        return [json.loads(body) for queue in queues for _, body in take_all(self.vhost, queue)]
