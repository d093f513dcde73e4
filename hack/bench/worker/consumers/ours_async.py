"""The async handler for this project's worker. It is not beside the sync one, which would then import asyncio."""

from __future__ import annotations

import asyncio
import os

from hack.bench.worker.consumers import tally
from workqueue.message import Message

tick = tally.asked().tick
SECONDS = float(os.environ["WORKQUEUE_BENCH_SECONDS"])


async def handle(_message: Message) -> None:
    """Handle a message in a task."""
    tick()
    if SECONDS:
        await asyncio.sleep(SECONDS)
