"""Consume with Dramatiq: a thread for each slot, and a prefetch of one message per thread instead of two."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from hack.bench.worker.consumers import arguments, tally

ASKED = arguments.read()
os.environ["dramatiq_queue_prefetch"] = str(ASKED.slots)  # noqa: SIM112 - read when dramatiq is imported

import dramatiq  # noqa: E402
from dramatiq.brokers.rabbitmq import RabbitmqBroker  # noqa: E402


class Broker(RabbitmqBroker):  # type: ignore[misc]
    """Uses the existing queue, of any type."""

    def _declare_queue(self, queue_name: str) -> Any:
        return self.channel.queue_declare(queue=queue_name, passive=True)


def main() -> None:
    """Consume until the process is killed."""
    tick = tally.asked().tick
    broker = Broker(url=ASKED.url)
    dramatiq.set_broker(broker)

    @dramatiq.actor(actor_name="handle", queue_name=ASKED.queue)  # type: ignore[untyped-decorator]
    def handle(_payload: str) -> None:
        tick()
        if ASKED.seconds:
            time.sleep(ASKED.seconds)

    dramatiq.Worker(broker, worker_threads=ASKED.slots).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
