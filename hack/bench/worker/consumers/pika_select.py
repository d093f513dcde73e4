"""Consume with the fastest plain pika: a SelectConnection that handles messages in callbacks.

Each slot has a channel with prefetch 1. A sleeping handler is a timer, because a callback must not block the loop.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pika

from hack.bench.worker.consumers import arguments, tally


def main() -> None:
    """Consume until the process is killed."""
    asked, tick = arguments.read(), tally.asked().tick

    def handle(channel: Any, method: Any, _properties: Any, _body: bytes) -> None:
        tick()
        done = partial(channel.basic_ack, method.delivery_tag)
        if asked.seconds:
            connection.ioloop.call_later(asked.seconds, done)
        else:
            done()

    def consume(channel: Any) -> None:
        channel.basic_qos(prefetch_count=1)
        channel.basic_consume(asked.queue, handle)

    def opened(opened_connection: pika.SelectConnection) -> None:
        for _ in range(asked.slots):
            opened_connection.channel(on_open_callback=consume)

    connection = pika.SelectConnection(pika.URLParameters(asked.url), on_open_callback=opened)
    connection.ioloop.start()


if __name__ == "__main__":
    main()
