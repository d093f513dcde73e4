"""List the contenders, each with the format of its messages and its command."""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hack.bench import environment
from hack.bench.worker.cases import Case
from workqueue.amqp.outgoing import Outgoing

CONSUMERS: Final = "hack.bench.worker.consumers"
BASELINE: Final = "pika SelectConnection"
ASYNC: Final = "ours, async"
THREADS: Final = "ours, threads"
PROCESSES: Final = "ours, processes"
ASYNC_PROCESS: Final = "ours, async in a process"
BARE_PROCESSES: Final = "pika, processes"
PREFORK: Final = "Celery, prefork"
ISOLATED: Final = ("--isolation=Process",)

Maker = Callable[[str, bytes], Outgoing]


def plain(queue: str, body: bytes) -> Outgoing:
    """Return a message with the plain body."""
    return Outgoing(queue, body)


def celery(queue: str, body: bytes) -> Outgoing:
    """Return a task message of Celery's protocol 2 with the body as its argument."""
    task = str(uuid.uuid4())
    content = json.dumps([[body.decode()], {}, {}])
    headers = {
        "lang": "py",
        "task": "bench.handle",
        "id": task,
        "root_id": task,
        "argsrepr": "",
        "retries": 0,
    }
    return Outgoing(
        queue,
        content.encode(),
        headers=headers,
        content_type="application/json",
        content_encoding="utf-8",
        correlation_id=task,
    )


def dramatiq(queue: str, body: bytes) -> Outgoing:
    """Return a message of Dramatiq with the body as its argument."""
    content = {
        "queue_name": queue,
        "actor_name": "handle",
        "args": [body.decode()],
        "kwargs": {},
        "options": {},
        "message_id": str(uuid.uuid4()),
        "message_timestamp": int(time.time() * 1000),
    }
    return Outgoing(queue, json.dumps(content).encode())


@dataclass(frozen=True)
class Contender:
    """A consumer program.

    Attributes:
        module: of `consumers`: its program, or the module of the handler that `workqueue run` loads.
        ours: whether it is this project's worker.
        peer: whether it needs the benchmarks' environment.
        processes: whether its handlers run in several processes.
        one_slot: whether it can handle only one message at a time.
        message: returns a message in its format.
        extra: further command line arguments.
    """

    name: str
    module: str
    ours: bool = False
    peer: bool = False
    processes: bool = False
    one_slot: bool = False
    message: Maker = plain
    extra: tuple[str, ...] = ()

    def takes_part(self, case: Case) -> bool:
        """Return whether the contender supports the case."""
        return case.slots == 1 or not self.one_slot

    def command(self, url: str, queue: str, kind: str, case: Case) -> list[str | Path]:
        """Return the command that starts the contender."""
        if self.ours:
            run = [sys.executable, "-m", "workqueue", "run", f"{CONSUMERS}.{self.module}:handle"]
            where = [f"--url={url}", f"--queue={queue}", f"--queue-type={kind}"]
            return [*run, *where, f"--concurrency={case.slots}", "--port=0", *self.extra]
        interpreter = environment.python() if self.peer else sys.executable
        asked = [url, queue, kind, str(case.slots), str(case.handler_seconds)]
        return [interpreter, "-m", f"{CONSUMERS}.{self.module}", *asked, *self.extra]


CONTENDERS: Final = (
    Contender(BASELINE, "pika_select"),
    Contender(ASYNC, "ours_async", ours=True),
    Contender(THREADS, "ours_sync", ours=True),
    Contender(PROCESSES, "ours_sync", ours=True, processes=True, extra=ISOLATED),
    Contender(ASYNC_PROCESS, "ours_async", ours=True, processes=True, extra=ISOLATED),
    Contender("pika BlockingConnection", "pika_blocking", one_slot=True),
    Contender("pika, threads", "pika_threads"),
    Contender(BARE_PROCESSES, "pika_processes", processes=True),
    Contender("aio-pika", "aio_pika_tasks", peer=True),
    Contender("Celery, solo", "celery_worker", peer=True, one_slot=True, message=celery, extra=("solo",)),
    Contender("Celery, threads", "celery_worker", peer=True, message=celery, extra=("threads",)),
    Contender(PREFORK, "celery_worker", peer=True, processes=True, message=celery, extra=("prefork",)),
    Contender("Dramatiq", "dramatiq_worker", peer=True, message=dramatiq),
)
