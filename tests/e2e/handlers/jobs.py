"""The handlers of the end-to-end tests, mounted into the workers from a ConfigMap.

Each message is a JSON object with an id; the handler publishes the result to the results queue with
a confirm, so that the test has a ledger outside the system under test.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from workqueue import Message, Reject
from workqueue.amqp.outgoing import Outgoing
from workqueue.amqp.publish_pipeline import PublishPipeline
from workqueue.contract.binding import from_folder

RESULTS = os.environ["RESULTS_QUEUE"]


@functools.cache
def publisher() -> PublishPipeline:
    return PublishPipeline(lambda: from_folder(Path(os.environ["WORKQUEUE_BINDING"])), "results").start()


def tell(**result: object) -> None:
    result["pod"] = os.environ["WORKQUEUE_POD_NAME"]
    publisher().publish(Outgoing(RESULTS, json.dumps(result).encode())).result(30)


def done(message: Message, job: dict[str, Any], **more: object) -> None:
    tell(id=job["id"], event="done", attempt=message.attempt, redelivered=message.redelivered, **more)


def record(message: Message) -> None:
    """Take as long as the message says, then publish the result."""
    job = message.json()
    begun = time.time()
    if job.get("announced"):
        tell(id=job["id"], event="started")
    deadline = time.monotonic() + job.get("seconds", 0)
    while (left := deadline - time.monotonic()) > 0:
        if message.cancelled.wait(left):
            tell(id=job["id"], event="interrupted")
            return
    done(message, job, begun=begun, ended=time.time())


def poison(message: Message) -> None:
    """Publish the start of an attempt, and kill the worker."""
    tell(id=message.json()["id"], event="started", attempt=message.attempt)
    os.kill(os.getpid(), signal.SIGKILL)


def moody(message: Message) -> None:
    """Fail as the message asks for."""
    job = message.json()
    if job.get("reject"):
        raise Reject("the test asked for it")
    if message.attempt <= job.get("failures", 0):
        raise RuntimeError("not yet")
    if job.get("eat") and not message.redelivered:
        eaten = []
        while True:  # until the kernel ends it
            eaten.append(b"x" * 2**20)
    if job.get("die") and message.attempt == 1 and not message.redelivered:
        os.kill(os.getpid(), signal.SIGKILL)
    done(message, job)
