"""The operator's end of a doorbell in a process of its own, so that a test can freeze it.

python -m tests.faults.doorbell URL QUEUE       installs one doorbell, reports it, and reports its ring
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from workqueue.contract.binding import from_url
from workqueue_operator.broker.connection import Broker

INSTALLED = "hung"


async def main(url: str, queue: str) -> None:
    """Install the doorbell and wait to be killed."""
    broker = Broker(from_url(url), lambda _: print("rang", flush=True), lambda *_: None, lambda: None)
    await broker.ready()
    assert await broker.install_doorbell(queue)
    print(INSTALLED, flush=True)
    await asyncio.Event().wait()


@contextmanager
def frozen_bell(url: str, queue: str) -> Iterator[subprocess.Popen[str]]:
    """An installed doorbell whose process is stopped (SIGSTOP) before it can ring."""
    command = [sys.executable, "-c", _START, url, queue]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == INSTALLED
        process.send_signal(signal.SIGSTOP)
        yield process
    finally:
        process.kill()
        process.communicate()


_START = (
    "import sys; sys.path[:0] = ['operator', 'worker', '.'];"
    "import asyncio; from tests.faults.doorbell import main; asyncio.run(main(*sys.argv[1:]))"
)
