"""Consume with aio-pika: a channel with prefetch 1 for each slot, a coroutine for each message."""

from __future__ import annotations

import asyncio

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from hack.bench.worker.consumers import arguments, tally


async def main() -> None:
    """Consume until the process is killed."""
    asked, tick = arguments.read(), tally.asked().tick

    async def handle(message: AbstractIncomingMessage) -> None:
        async with message.process():
            tick()
            if asked.seconds:
                await asyncio.sleep(asked.seconds)

    connection = await aio_pika.connect_robust(asked.url)
    for _ in range(asked.slots):
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=1)
        queue = await channel.get_queue(asked.queue, ensure=False)
        await queue.consume(handle)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
