"""The sync handler for this project's worker, which `workqueue run` starts as usual."""

from __future__ import annotations

import os
import time

from hack.bench.worker.consumers import tally
from workqueue.message import Message

tick = tally.asked().tick
SECONDS = float(os.environ["WORKQUEUE_BENCH_SECONDS"])


def handle(_message: Message) -> None:
    """Handle a message in a thread or process."""
    tick()
    if SECONDS:
        time.sleep(SECONDS)
