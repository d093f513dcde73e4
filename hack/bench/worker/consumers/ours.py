"""Handlers for this project's worker, which `workqueue run` starts as usual."""

from __future__ import annotations

import asyncio
import os
import time

from hack.bench.worker.consumers import tally
from workqueue.message import Message

tick = tally.asked().tick
SECONDS = float(os.environ["WORKQUEUE_BENCH_SECONDS"])


def thread(_message: Message) -> None:
    """Handle a message in a thread."""
    tick()
    if SECONDS:
        time.sleep(SECONDS)


async def task(_message: Message) -> None:
    """Handle a message in a task."""
    tick()
    if SECONDS:
        await asyncio.sleep(SECONDS)
