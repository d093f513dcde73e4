"""Handlers for tests: the message says what to do, and a file records what happened.

Runs inside worker processes: `workqueue run tests.support.jobs:handle`. The body is JSON such as
`{"id": 1, "do": "sleep", "seconds": 2}`; EVENTS in the environment names the file.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import json
import os
import sys
import threading
import time
from typing import Any

from workqueue import Message, Reject, Retry


def record(event: str, message: Message, job: dict[str, Any]) -> None:
    """Append one event; a line this short is written atomically, even when the process dies."""
    line = json.dumps(
        {
            "event": event,
            "id": job.get("id"),
            "do": job.get("do", "ok"),
            "attempt": message.attempt,
            "pid": os.getpid(),
            "redelivered": message.redelivered,
            "headers": {name: str(value) for name, value in message.headers.items()},
            "expiration": message.properties.expiration,
            "priority": message.properties.priority,
            "correlation_id": message.properties.correlation_id,
            "message_id": message.properties.message_id,
            "at": time.time(),
        }
    )
    descriptor = os.open(os.environ["EVENTS"], os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def handle(message: Message) -> None:
    """Do what the job says, in a thread."""
    if message.body.startswith(b"not json"):
        message.json()
    job = message.json()
    record("start", message, job)
    match job.get("do", "ok"):
        case "sleep":
            if message.cancelled.wait(_seconds(job, message)):
                record("cancelled", message, job)
                return
        case "wait":
            _wait_for_sign(job, message)
        case "ignore":
            _ignore(job, message)
        case "hold the interpreter":  # as a C extension that does not release Python's lock
            ctypes.PyDLL(None).sleep(job["seconds"])
        case "ignore once":
            time.sleep(job["seconds"] if message.attempt == 1 else 0)
        case "fail on sign":  # the first time
            if message.attempt == 1:
                if not _wait_for_sign(job, message):
                    return
                raise ValueError("the first time")
        case "linger":  # the first time, and ignore its cancellation
            time.sleep(0 if message.redelivered else job["seconds"])
        case other:
            _misbehave(other, job, message)
    record("end", message, job)


async def handle_async(message: Message) -> None:
    """The same as a coroutine; `block` holds up the whole loop."""
    job = message.json()
    record("start", message, job)
    match job.get("do", "ok"):
        case "sleep":
            try:
                await asyncio.sleep(_seconds(job, message))
            except asyncio.CancelledError:
                record("cancelled", message, job)
                raise
        case "wait":
            while not _is_signed(job):  # noqa: ASYNC110 - another process makes the sign
                await asyncio.sleep(0.05)
        case "block":
            time.sleep(job["seconds"])  # noqa: ASYNC251 - that is what is being tested
        case "exit in a task":
            await asyncio.gather(asyncio.create_task(_exit()))
        case "exit in a callback":
            asyncio.get_running_loop().call_soon(sys.exit, 0)
            await asyncio.sleep(60)
        case "stop the loop":
            asyncio.get_running_loop().stop()
            await asyncio.sleep(60)
        case other:
            _misbehave(other, job, message)
    record("end", message, job)


@functools.wraps(handle_async)
def handle_timed(message: Message) -> Any:
    """The coroutine function behind a synchronous decorator, such as prometheus_client's `time()`."""
    return handle_async(message)


async def _exit() -> None:
    sys.exit(0)


def _misbehave(what: str, job: dict[str, Any], message: Message) -> None:
    match what:
        case "fail":
            raise ValueError(job.get("why", "it went wrong"))
        case "fail once":
            if message.attempt == 1:
                raise ValueError("the first time")
        case "retry":
            _retry(job, message)
        case "reject":
            raise Reject(job.get("why", ""))
        case "exit":
            raise SystemExit(9)
        case "fork and exit":
            _fork(job, message)
        case "start a thread":
            threading.Thread(target=time.sleep, args=[job["seconds"]], daemon=False).start()
        case "die":
            os._exit(70)
        case "die once":
            _die_once(job)


def _seconds(job: dict[str, Any], message: Message) -> float:
    """How long the handler takes: `again` seconds, if given, for a message that is delivered again."""
    return float(job.get("again", job["seconds"]) if message.redelivered else job["seconds"])


def _wait_for_sign(job: dict[str, Any], message: Message) -> bool:
    """Wait until the test has made the file `sign`. Returns False if the handler is cancelled before."""
    while not _is_signed(job):
        if message.cancelled.wait(0.05):
            return False
    return True


def _ignore(job: dict[str, Any], message: Message) -> None:
    """Take as long as asked, or until the test has made the file `sign`, although the handler is cancelled."""
    if "sign" not in job:
        time.sleep(_seconds(job, message))
    while "sign" in job and not _is_signed(job):
        time.sleep(0.05)


def _is_signed(job: dict[str, Any]) -> bool:
    return os.path.exists(job["sign"])  # noqa: PTH110 - a handler needs no more


def _retry(job: dict[str, Any], message: Message) -> None:
    if "sign" in job:
        if not _is_signed(job):
            raise Retry(after=1, reason="quota used up", counts=False)
    elif message.attempt == 1:
        raise Retry(after=job.get("after"), reason=job.get("why", ""))


def _fork(job: dict[str, Any], message: Message) -> None:
    child = os.fork()
    if child == 0:
        sys.exit(7)
    _, status = os.waitpid(child, 0)
    record(f"child ended with {os.waitstatus_to_exitcode(status)}", message, job)


def _die_once(job: dict[str, Any]) -> None:
    mark = f"{os.environ['EVENTS']}-died-{job['id']}"
    if not os.path.exists(mark):  # noqa: PTH110 - a handler needs no more
        open(mark, "w").close()  # noqa: PTH123
        os._exit(70)
