"""Consume as pika's documentation recommends for long handlers: they run in threads beside the connection's.

Prefetch and the size of the thread pool are the number of slots. Threads acknowledge with `add_callback_threadsafe`,
the only method of a BlockingConnection that other threads may call.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pika

from hack.bench.worker.consumers import arguments, tally


def main() -> None:
    """Consume until the process is killed."""
    asked, tick = arguments.read(), tally.asked().tick
    connection = pika.BlockingConnection(pika.URLParameters(asked.url))
    channel = connection.channel()
    pool = ThreadPoolExecutor(asked.slots)

    def handle(tag: int) -> None:
        tick()
        if asked.seconds:
            time.sleep(asked.seconds)
        connection.add_callback_threadsafe(partial(channel.basic_ack, tag))

    def submit(_channel: Any, method: Any, _properties: Any, _body: bytes) -> None:
        pool.submit(handle, method.delivery_tag)

    channel.basic_qos(prefetch_count=asked.slots)
    channel.basic_consume(asked.queue, submit)
    channel.start_consuming()


if __name__ == "__main__":
    main()
