"""Consume like most tutorials: a BlockingConnection that handles each message in its callback.

It has one channel with prefetch 1. A running handler blocks the connection and its heartbeats, so only one slot is
possible.
"""

from __future__ import annotations

import time
from typing import Any

import pika

from hack.bench.worker.consumers import arguments, tally


def main() -> None:
    """Consume until the process is killed."""
    asked, tick = arguments.read(), tally.asked().tick

    def handle(channel: Any, method: Any, _properties: Any, _body: bytes) -> None:
        tick()
        if asked.seconds:
            time.sleep(asked.seconds)
        channel.basic_ack(method.delivery_tag)

    channel = pika.BlockingConnection(pika.URLParameters(asked.url)).channel()
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(asked.queue, handle)
    channel.start_consuming()


if __name__ == "__main__":
    main()
