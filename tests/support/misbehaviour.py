"""Handlers that misbehave, for the handler matrix. The message says how, and a file records what happened."""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from tests.support.jobs import record
from workqueue import Message

LONG_SECONDS: Final = 600
LINE: Final = "x" * 10_000
LINES: Final = 10_000
CHILDREN: Final = 100
MIB: Final = 2**20
GIB: Final = 2**30


class UnreadableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class UnpicklableError(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()
        self.function = lambda: None


def handle(message: Message) -> object:
    """Do what the message says."""
    job = message.json()
    record("start", message, job)
    what = job.get("do", "ok")
    result = None if what == "ok" else ACTIONS[what]()
    record("end", message, job)
    return result


async def handle_async(message: Message) -> None:
    """The same as a coroutine."""
    job = message.json()
    record("start", message, job)
    match job.get("do", "ok"):
        case "ok":
            pass
        case "sleep":
            await asyncio.sleep(job["seconds"])
        case "exit in a task":
            await asyncio.gather(asyncio.create_task(_exit()))
        case "exit in a callback":
            asyncio.get_running_loop().call_soon(sys.exit, 3)
            await asyncio.sleep(0)
        case "stop the loop":
            asyncio.get_running_loop().stop()
        case "swallow the cancellation":
            await _never_ends()
        case other:
            ACTIONS[other]()
    record("end", message, job)


async def _exit() -> None:
    sys.exit(3)


async def _never_ends() -> None:
    while True:
        try:  # noqa: SIM105 - that is what is being tested
            await asyncio.sleep(LONG_SECONDS)
        except asyncio.CancelledError:
            pass


def _segfault() -> None:
    ctypes.string_at(0)


def _be_killed() -> None:
    """As by the kernel, when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


def _run_out_of_memory() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (GIB, hard))
    try:
        bytearray(2 * GIB)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _allocate() -> None:
    bytearray(GIB)


def _fill_memory() -> None:
    kept = []
    while True:
        kept.append(b"x" * MIB)


def _hold_interpreter() -> None:
    ctypes.PyDLL(None).sleep(LONG_SECONDS)


def _loop() -> None:
    while True:
        pass


def _fork_children() -> None:
    for _ in range(CHILDREN):
        if os.fork() == 0:
            time.sleep(LONG_SECONDS)
            os._exit(0)


def _fork_and_return() -> None:
    os.fork()


def _close_descriptors() -> None:
    os.closerange(0, 4096)


def _ignore_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(LONG_SECONDS)


def _flood() -> None:
    for _ in range(LINES):
        print(LINE)


def _exit_in_thread() -> None:
    sys.exit(3)


def _raise_unreadable() -> None:
    raise UnreadableError


def _raise_unpicklable() -> None:
    raise UnpicklableError("it went wrong")


def _coroutine() -> object:
    return _exit()


def _generator() -> object:
    return (number for number in range(3))


ACTIONS: Final[dict[str, Callable[[], Any]]] = {
    "segfault": _segfault,
    "be killed": _be_killed,
    "run out of memory": _run_out_of_memory,
    "allocate 1 GiB": _allocate,
    "fill the memory": _fill_memory,
    "os._exit": lambda: os._exit(3),
    "sys.exit": _exit_in_thread,
    "hold the interpreter": _hold_interpreter,
    "loop": _loop,
    "fork 100 children": _fork_children,
    "fork and return": _fork_and_return,
    "close all descriptors": _close_descriptors,
    "ignore signals": _ignore_signals,
    "flood standard output": _flood,
    "block": lambda: time.sleep(LONG_SECONDS),
    "raise an unreadable exception": _raise_unreadable,
    "raise an unpicklable exception": _raise_unpicklable,
    "return a coroutine": _coroutine,
    "return a generator": _generator,
}
