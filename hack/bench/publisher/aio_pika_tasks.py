"""Publish with aio-pika and print the rate: URL QUEUE TOTAL TASKS BYTES. Runs in the benchmarks' environment."""

from __future__ import annotations

import asyncio
import json
import sys
import time

import aio_pika


async def main(url: str, queue: str, total: int, tasks: int, size: int) -> float:
    """Return the messages per second."""
    body = bytes(size)
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)

        async def task() -> None:
            for _ in range(total // tasks):
                message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
                await channel.default_exchange.publish(message, queue, mandatory=True)

        begun = time.perf_counter()
        await asyncio.gather(*(task() for _ in range(tasks)))
        return total / (time.perf_counter() - begun)


if __name__ == "__main__":
    print(json.dumps({"rate": asyncio.run(main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])))}))
