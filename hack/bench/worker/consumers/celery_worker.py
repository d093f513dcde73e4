"""Consume with Celery in its most reliable setup: late acknowledgement, one message per slot, no results."""

from __future__ import annotations

import sys
import time

from celery import Celery
from kombu import Queue

from hack.bench.worker.consumers import arguments, tally


def main() -> None:
    """Consume until the process is killed."""
    pool = sys.argv.pop()
    asked, tick = arguments.read(), tally.asked().tick
    app = Celery("bench", broker=asked.url)
    app.conf.update(
        task_queues=[Queue(asked.queue, no_declare=True, queue_arguments={"x-queue-type": asked.kind})],
        task_acks_late=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
    )

    @app.task(name="bench.handle")  # type: ignore[untyped-decorator]
    def handle(_payload: str) -> None:
        tick()
        if asked.seconds:
            time.sleep(asked.seconds)

    quiet = ("--loglevel=ERROR", "--without-gossip", "--without-mingle")
    app.worker_main(["worker", f"--pool={pool}", f"--concurrency={asked.slots}", *quiet])


if __name__ == "__main__":
    main()
