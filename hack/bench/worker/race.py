"""Run one contender once: fill a queue with its messages, start its process, and read its tally."""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pika

from hack.bench.errors import BenchError
from hack.bench.worker.cases import Case
from hack.bench.worker.consumers.tally import SHARED_BYTES, VARIABLE
from hack.bench.worker.contenders import Contender
from hack.cluster.checkout import CHECKOUT
from workqueue.amqp.publish_pipeline import PublishPipeline
from workqueue.contract.binding import from_url

SECONDS: Final = 0.8
"""The longest measurement, in seconds."""

RESULT_SECONDS: Final = 30.0
"""The longest time from the start of a contender to its result."""

LAST_LINES: Final = 12

ONE_MESSAGE: Final = Case(slots=1, handler_seconds=0, body=100, warm=0, count=1, rounds=1)


@dataclass(frozen=True)
class Run:
    """The result of one run.

    Attributes:
        rate: messages per second.
        processor_seconds: processor time of the consumer for each message.
    """

    rate: float
    processor_seconds: float


@dataclass(frozen=True)
class Start:
    """The start of a process to the first message in its handler.

    Attributes:
        resident_bytes: memory of the process, without its children.
    """

    seconds: float
    resident_bytes: int


class Track:
    """A RabbitMQ with a new queue for each run.

    Args:
        url: the URL of the server.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._publisher = PublishPipeline(lambda: from_url(url), "bench").start()
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self._channel = self._connection.channel()
        self._runs = itertools.count(1)

    def close(self) -> None:
        """Disconnect."""
        self._publisher.close()
        self._connection.close()

    def run(self, contender: Contender, kind: str, case: Case) -> Run:
        """Measure one contender once.

        Raises:
            BenchError: its process ended, or there is no result within 30 s.
        """
        with (
            self._full(contender, kind, case) as queue,
            _started(contender, self._url, queue, kind, case) as (pipe, process, log),
        ):
            result = _result(pipe, process, log, contender)
        messages = result["messages"]
        return Run(messages / result["seconds"], result["processor_seconds"] / messages)

    def start(self, contender: Contender, kind: str) -> Start:
        """Measure from the start of the process to the first message in its handler.

        Raises:
            BenchError: as for `run`.
        """
        with self._full(contender, kind, ONE_MESSAGE) as queue:
            begun = time.perf_counter()
            with _started(contender, self._url, queue, kind, ONE_MESSAGE) as (pipe, process, log):
                _result(pipe, process, log, contender)
                seconds = time.perf_counter() - begun
                pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
                return Start(seconds, pages * os.sysconf("SC_PAGE_SIZE"))

    @contextmanager
    def _full(self, contender: Contender, kind: str, case: Case) -> Iterator[str]:
        queue = f"bench-{kind}-{next(self._runs)}"
        self._connection.process_data_events()  # send heartbeats on the idle connection
        self._channel.queue_declare(queue, durable=True, arguments={"x-queue-type": kind})
        body = b"x" * case.body
        for _ in range(case.warm + case.count + case.slots):
            self._publisher.publish(contender.message(queue, body))
        self._publisher.wait(RESULT_SECONDS)
        yield queue
        self._channel.queue_delete(queue)


@contextmanager
def _started(
    contender: Contender, url: str, queue: str, kind: str, case: Case
) -> Iterator[tuple[int, subprocess.Popen[bytes], Path]]:
    reader, writer = os.pipe()
    asked: dict[str, object] = {
        "pipe": writer,
        "warm": case.warm,
        "count": case.count,
        "seconds": SECONDS,
    }
    environment = {
        **os.environ,
        VARIABLE: json.dumps(asked),
        "WORKQUEUE_BENCH_SECONDS": str(case.handler_seconds),
        "PYTHONPATH": str(CHECKOUT),
        "PYTHONDONTWRITEBYTECODE": "",  # modules are compiled in an image, and here after the first run
    }
    with tempfile.NamedTemporaryFile() as log, tempfile.NamedTemporaryFile() as shared:
        if contender.processes:
            shared.write(bytes(SHARED_BYTES))
            shared.flush()
            environment[VARIABLE] = json.dumps(asked | {"shared": shared.name})
        process = subprocess.Popen(
            contender.command(url, queue, kind, case),
            env=environment,
            cwd=CHECKOUT,
            pass_fds=[writer],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        os.close(writer)
        try:
            yield reader, process, Path(log.name)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.close(reader)


def _result(pipe: int, process: subprocess.Popen[bytes], log: Path, contender: Contender) -> dict[str, float]:
    deadline = time.monotonic() + RESULT_SECONDS
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        part = os.read(pipe, 4096) if ready else b""
        if not part:  # the time is over, or the process has ended and closed the pipe
            output = "\n".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:])
            raise BenchError(
                f"{contender.name} gave no result in {RESULT_SECONDS:.0f} s (exit code {process.poll()}):\n{output}"
            )
        line += part
    result: dict[str, float] = json.loads(line)
    return result
