"""Real worker processes for tests: observed over their endpoint, ended with signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pika
import pytest

from tests.support.rabbitmq import VirtualHost
from tests.support.wait import eventually
from workqueue.contract.signing import HEADER, Purpose, sign

ROOT: Final = Path(__file__).parents[2]
POD_UID: Final = "6f1c7f3e-0000-4000-8000-000000000001"
PATIENCE: Final = 60.0
THREADS: Final = "tests.support.jobs:handle"
ASYNC: Final = "tests.support.jobs:handle_async"
IN_THREADS: Final = ("--isolation", "Thread")
"""For tests in which a handler ends its worker. All others also pass with WORKQUEUE_ISOLATION=Process."""


class Worker:
    """One `workqueue run` process.

    Attributes:
        events: what its handler wrote (tests/support/jobs.py); workers of one test share the file.
        log: its standard error, as one text.
    """

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[str],
        environment: dict[str, str],
        number: int,
        cwd: Path = ROOT,
    ) -> None:
        self._events_file = folder / "events"
        self._log_file = folder / f"worker-{number}.log"
        self.termination_log = folder / f"termination-{number}"
        self.port: int | None = None
        with self._log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "workqueue", "run", *arguments],
                cwd=cwd,
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "PYTHONPATH": f"{ROOT / 'worker'}:{ROOT}",
                    "EVENTS": str(self._events_file),
                    "WORKQUEUE_LOG_FORMAT": "json",
                    "WORKQUEUE_POD_UID": POD_UID,
                    "WORKQUEUE_POD_NAME": f"pod-{number}",
                    "WORKQUEUE_TERMINATION_LOG": str(self.termination_log),
                    **environment,
                },
            )

    # -- output

    @property
    def log(self) -> str:
        return self._log_file.read_text()

    @property
    def log_entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in _complete_lines(self.log) if line.startswith("{")]

    def count_log(self, sentence: str) -> int:
        """How often a message was logged."""
        return sum(entry["message"] == sentence for entry in self.log_entries)

    @property
    def events(self) -> list[dict[str, Any]]:
        if not self._events_file.exists():
            return []
        return [json.loads(line) for line in _complete_lines(self._events_file.read_text())]

    def events_of(self, kind: str) -> list[Any]:
        """The ids of all events of a kind, in order."""
        return [event["id"] for event in self.events if event["event"] == kind]

    def request(self, path: str, method: str = "GET", headers: dict[str, str] | None = None) -> Any:
        """(status code, parsed JSON or text) of a request to the endpoint."""
        if self.port is None:
            self.port = eventually(self._find_port, PATIENCE)
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", method=method, headers=headers or {}
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                code, text = answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                code, text = error.code, error.read().decode()
        return code, json.loads(text) if text.startswith("{") else text

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.request("/status")[1]
        return answer

    def outcomes(self) -> Counter[str]:
        """Messages by outcome, from /metrics, without zero counts."""
        found: Counter[str] = Counter()
        for line in self.request("/metrics")[1].splitlines():
            if line.startswith("workqueue_worker_messages_total{"):
                labels, value = line.rsplit(" ", 1)
                found[labels.split('outcome="')[1].split('"')[0]] = int(float(value))
        return +found

    def retire(
        self, purpose: Purpose = Purpose.RETIRE, key: bytes = b"guest", now: float | None = None, **how: str
    ) -> Any:
        header = how.get("header") or sign(purpose, POD_UID, key, now or time.time())
        method = "POST" if purpose is Purpose.RETIRE else "DELETE"
        return self.request("/retire", method, {HEADER: header})

    def wait_consuming(self) -> Worker:
        eventually(lambda: self._check_alive() and self.status()["consuming"], PATIENCE)
        return self

    # -- actions

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for its end; returns the exit code."""
        return self.process.wait(timeout)

    def stop(self, timeout: float = PATIENCE) -> int:
        """SIGTERM, and wait."""
        self.signal()
        return self.wait(timeout)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _check_alive(self) -> bool:
        assert self.process.poll() is None, f"the worker ended with {self.process.returncode}:\n{self.log}"
        return True

    def _find_port(self) -> int | None:
        self._check_alive()
        for entry in self.log_entries:
            if entry["message"] == "The endpoint is up.":
                return int(entry["port"])
        return None


def _complete_lines(text: str) -> list[str]:
    """The lines of a file that a process may be writing."""
    return text[: text.rfind("\n") + 1].splitlines()


class Workers:
    """Starts workers on one queue and ends them all after the test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[Worker] = []

    def start(
        self,
        url: str | None,
        *arguments: str,
        handler: str | None = THREADS,
        queue: str | None = "jobs",
        declare: bool = True,
        environment: dict[str, str] | None = None,
        cwd: Path = ROOT,
    ) -> Worker:
        """Start one. By default it declares the queue `jobs` and retries after a second."""
        words = [handler] if handler else []
        words += ["--queue", queue] if queue else []
        words += ["--url", url] if url else []
        words += ["--declare"] if declare else []
        if not {"--delays", "--backoff"} & set(arguments):
            words += ["--delays", "1"]
        worker = Worker(self._folder, [*words, *arguments], dict(environment or {}), len(self._started), cwd)
        self._started.append(worker)
        return worker

    def close(self) -> None:
        for worker in self._started:
            if worker.process.poll() is None:
                worker.kill()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    """Workers of one test."""
    made = Workers(tmp_path)
    yield made
    made.close()


def publish(
    vhost: VirtualHost, *jobs: dict[str, Any] | bytes, queue: str = "jobs", **properties: Any
) -> None:
    """Publish jobs to a queue, confirmed."""
    with vhost.connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for job in jobs:
            body = job if isinstance(job, bytes) else json.dumps(job).encode()
            channel.basic_publish(
                "", queue, body, pika.BasicProperties(delivery_mode=2, **properties), mandatory=True
            )


def take_all(vhost: VirtualHost, queue: str) -> list[tuple[Any, bytes]]:
    """Take every message of a queue; returns (properties, body)."""
    found: list[tuple[Any, bytes]] = []
    with vhost.connect() as connection:
        channel = connection.channel()
        while True:
            method, properties, body = channel.basic_get(queue, auto_ack=True)
            if method is None:
                return found
            found.append((properties, body))


def is_empty(vhost: VirtualHost, queue: str = "jobs") -> bool:
    """Whether the queue has no messages, ready or delivered."""
    return vhost.depth(queue) == (0, 0)
