"""Run the soak: publish messages while connections, channels, workers and the broker die at random.

At the end, the ledger must balance. Every confirmed message is done or in the dead-letter queue. No message is
missing, and no unknown message appears. Every message that was handled twice needs an explanation. Either RabbitMQ
redelivered it, because its worker, connection or channel died before the acknowledgement. Or a retry had two copies,
because a confirmation was lost with its connection, or because RabbitMQ crashed while it moved the copy out of its
delay queue.

    python -m hack.bench.soak --seconds 600
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.support.ledger import COPIED_TWICE, DELIVERED_AGAIN, Ledger, dead_letter
from tests.support.rabbitmq import Broker, BrokerError, VirtualHost, running
from tests.support.worker import ASYNC, THREADS, Worker, Workers, take_all
from workqueue.amqp.errors import BrokerError as RefusedError
from workqueue.amqp.outgoing import Outgoing
from workqueue.amqp.publish_pipeline import PublishPipeline
from workqueue.contract.binding import from_url
from workqueue.contract.topology import QueueSettings, QueueType, delay_route, plan

QUEUE: Final = "jobs"
DELAYS: Final = (1, 2)
"""Seconds until a message is retried."""
WORKERS: Final = 3
STALL_SECONDS: Final = 60.0
"""The backlog must shrink within this time. The total time depends on the machine."""


@dataclass
class SoakLedger(Ledger):
    """The fate of every message, and the injected faults.

    Attributes:
        published: all published messages, including those without a confirmation.
        left: messages that are still in a queue at the end.
    """

    published: int = 0
    left: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    def problems(self) -> list[str]:
        """Return one sentence for each imbalance. The list is empty if the ledger balances."""
        return super().problems() + ([f"{self.left} messages are still waiting"] if self.left else [])

    def __str__(self) -> str:
        rows = {
            "sent": self.published,
            "confirmed": len(self.confirmed),
            "fate unknown to the publisher": len(self.unconfirmed),
            "done": len(self.done),
            "dead-lettered": len(self.dead),
            "still waiting": self.left,
            **{cause: len(self.causes[cause]) for cause in (DELIVERED_AGAIN, COPIED_TWICE)},
            "ended more than once": len(self.duplicates),
            **{f"fault: {name}": count for name, count in sorted(self.faults.items())},
        }
        return "\n".join(f"  {name:<32}{value:>8}" for name, value in rows.items())


class Soak:
    """One run.

    Args:
        broker: a running broker, which the soak restarts.
        folder: the folder for logs and events.
        seed: the seed of the faults, so that a run can be repeated.
        rate: messages per second.
    """

    def __init__(
        self, broker: Broker, vhost: VirtualHost, folder: Path, *, seed: int, rate: float, restarts: bool
    ) -> None:
        self.ledger = SoakLedger()
        self._broker = broker
        self._vhost = vhost
        self._random = random.Random(seed)
        self._rate = rate
        self._factory = Workers(folder)
        self._workers: list[Worker] = []
        self._stop = threading.Event()
        self._faults: dict[str, tuple[float, Callable[[], None]]] = {
            "connections closed": (4, lambda: self._broker.close_connections("soak")),
            "worker killed": (4, self._kill_worker),
            "worker stopped": (2, self._stop_worker),
            "channel killed": (4, self._kill_channel),
            "memory alarm": (1, self._alarm),
        }
        if restarts:
            self._faults |= {
                "broker restarted": (0.7, self._broker.restart),
                "broker crashed": (0.7, lambda: self._broker.restart(kill=True)),
            }

    def run(self, seconds: float) -> SoakLedger:
        """Publish and inject faults for `seconds`, wait until the queues are empty, and return the ledger."""
        source = from_url(self._vhost.url)
        with PublishPipeline(lambda: source, "soak", timeout_seconds=60) as publisher:
            publisher.declare_plan(plan(QueueSettings(QUEUE, QueueType.QUORUM, delivery_limit=1000))).result()
            self._broker.save_queues()
            for number in range(WORKERS):
                self._start_worker(number)
            flow = threading.Thread(target=self._flow, args=(publisher,))
            flow.start()
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                time.sleep(self._random.uniform(0.3, 2.0))
                self._inject_fault()
            self._stop.set()
            flow.join()
            publisher.close(60)
        self._settle()
        return self.ledger

    def close(self) -> None:
        """Stop the workers."""
        self._factory.close()

    def _flow(self, publisher: PublishPipeline) -> None:
        while not self._stop.wait(self._random.expovariate(self._rate)):
            number = self.ledger.published
            self.ledger.published += 1
            what = self._random.choices(
                ["ok", "sleep", "fail once", "retry", "reject", "fail", "die"], [60, 20, 8, 4, 3, 2, 0.5]
            )[0]
            job = {"id": number, "do": what, "seconds": self._random.choice([0.01, 0.1, 1.0]), "after": 1}
            if what == "die":  # kills its worker only the first time; the file records that
                job["do"] = "die once"
            try:
                future = publisher.publish(Outgoing(QUEUE, json.dumps(job).encode()))
            except RefusedError:
                continue
            future.add_done_callback(lambda done, number=number: self.ledger.sent(number, done.exception()))  # type: ignore[misc]

    def _inject_fault(self) -> None:
        name = self._random.choices(list(self._faults), [weight for weight, _ in self._faults.values()])[0]
        self.ledger.faults[name] += 1
        with suppress(BrokerError):  # the broker is busy with the previous fault
            self._faults[name][1]()
        self._replace_dead_workers()

    def _replace_dead_workers(self) -> None:
        for index, worker in enumerate(self._workers):
            if worker.process.poll() is not None:
                self._start_worker(index)

    def _start_worker(self, index: int) -> None:
        worker = self._factory.start(
            self._vhost.url,
            *(
                "--concurrency",
                "3",
                "--max-attempts",
                "3",
                "--delays",
                ",".join(map(str, DELAYS)),
                "--timeout",
                "20",
            ),
            handler=self._random.choice([THREADS, ASYNC]),
            declare=False,
        )
        self._workers[index : index + 1] = [worker]

    def _kill_worker(self) -> None:
        self._random.choice(self._workers).kill()

    def _stop_worker(self) -> None:
        worker = self._random.choice(self._workers)
        worker.signal()
        worker.wait(60)

    def _kill_channel(self) -> None:
        self._broker.evaluate(
            "case rabbit_channel:list_local() of [] -> none; Channels ->"
            " exit(lists:nth(rand:uniform(length(Channels)), Channels), kill) end"
        )

    def _alarm(self) -> None:
        with self._broker.memory_alarm():
            time.sleep(1.0)

    def _settle(self) -> None:
        """Wait until no message is in transit, then read the dead-letter queue and the workers' events."""
        queues = {QUEUE}.union(*(delay_route(QUEUE, seconds).queues for seconds in DELAYS))
        least, self.ledger.left = sys.maxsize, self.ledger.published
        progress_at = quiet_since = time.monotonic()
        while time.monotonic() - progress_at < STALL_SECONDS:
            self._replace_dead_workers()  # some messages kill their worker
            with suppress(BrokerError):  # the broker is busy with the last fault: assume the same backlog
                self.ledger.left = sum(
                    sum(self._vhost.depth(queue)) for queue in queues if self._vhost.exists(queue)
                )
            if self.ledger.left < least:
                least = self.ledger.left
                progress_at = time.monotonic()
            if self.ledger.left:
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since > 2.0:  # a message may be between two queues
                break
            time.sleep(0.2)
        letters = take_all(self._vhost, f"{QUEUE}.dead")
        self.ledger.read_dead(dead_letter(body, properties.headers) for properties, body in letters)
        self.ledger.read_events(self._workers[0].events)


def main() -> int:
    """Run the soak with a RabbitMQ of its own. The exit code is 1 if the ledger does not balance."""
    parser = argparse.ArgumentParser(prog="python -m hack.bench.soak", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--series", default="4.0", help="RabbitMQ 3.10, 4.0 or 4.3")
    parser.add_argument("--rate", type=float, default=60, help="messages per second")
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    logging.basicConfig(filename=folder / "soak.log")
    print(f"seed {arguments.seed}, logs in {folder}", flush=True)
    with running(arguments.series, management=False) as broker, broker.new_vhost() as vhost:
        soak = Soak(broker, vhost, folder, seed=arguments.seed, rate=arguments.rate, restarts=True)
        try:
            ledger = soak.run(arguments.seconds)
        finally:
            soak.close()
    print(ledger)
    problems = ledger.problems()
    for problem in problems:
        print(f"PROBLEM: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
