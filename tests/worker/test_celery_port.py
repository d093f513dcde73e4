"""The programs of docs/migrate-from-celery.md, with a real Celery.

The application with Celery and its port (examples/docs-host) pass the same checks. Their model is the structure of
the tasks of Read the Docs (MIT).
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import pytest
import yaml

from hack.bench import environment
from tests.support.rabbitmq import Broker, VirtualHost
from tests.support.wait import eventually
from tests.support.worker import ROOT, Workers, take_all
from workqueue.contract.topology import QueueSettings, plan

EXAMPLE: Final = ROOT / "examples/docs-host"
PATIENCE: Final = 60.0
BUILD_SECONDS: Final = 5

pytestmark = pytest.mark.slow


class Host(Protocol):
    """The application in one of its versions."""

    folder: Path

    def ask(self, *words: str) -> str:
        """Run `website.py` with these words, and return what it prints."""

    def start(self) -> None:
        """Start all workers, and what is run on a schedule."""

    def kill_builder(self) -> None:
        """Kill the worker of the builds with everything that it has started."""

    def start_builder(self) -> None:
        """Start a worker for the builds."""


class Base:
    def __init__(self, vhost: VirtualHost, folder: Path) -> None:
        self.folder = folder
        self._vhost = vhost
        self._processes: list[subprocess.Popen[bytes]] = []
        self._environment = {
            **os.environ,
            "DOCS_HOST": str(folder),
            "BUILD_SECONDS": str(BUILD_SECONDS),
            "RETRY_SECONDS": "1",
            "BEAT_SECONDS": "1",
        }

    def close(self) -> None:
        for process in self._processes:
            self._kill(process)

    def _run(self, program: Sequence[str | Path], version: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"log-{len(self._processes)}").open("wb") as log:
            process = subprocess.Popen(
                program,
                cwd=EXAMPLE / version,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def _output(self, program: Sequence[str | Path], version: str) -> str:
        return subprocess.run(
            program,
            cwd=EXAMPLE / version,
            env=self._environment,
            check=True,
            text=True,
            stdout=subprocess.PIPE,
            timeout=120,
        ).stdout.strip()

    @staticmethod
    def _kill(process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)


class Before(Base):
    """With Celery."""

    def __init__(self, vhost: VirtualHost, folder: Path) -> None:
        super().__init__(vhost, folder)
        self._environment |= {"BROKER_URL": vhost.url, "PYTHONPATH": str(EXAMPLE), "C_FORCE_ROOT": "1"}

    def ask(self, *words: str) -> str:
        return self._output([environment.python(), "website.py", *words], "before")

    def start(self) -> None:
        self.start_builder()
        self._celery("-Q", "index,web", "--concurrency", "1", "--beat", "-s", f"{self.folder}/beat")

    def start_builder(self) -> None:
        self._builder = self._celery("-Q", "builds", "--concurrency", "2")

    def kill_builder(self) -> None:
        self._kill(self._builder)

    def _celery(self, *arguments: str) -> subprocess.Popen[bytes]:
        quiet = ("--without-gossip", "--without-mingle", "-n", f"worker{len(self._processes)}@localhost")
        return self._run(
            [environment.python(), "-m", "celery", "-A", "tasks", "worker", *quiet, *arguments], "before"
        )


class After(Base):
    """With WorkQueues."""

    def __init__(self, vhost: VirtualHost, folder: Path) -> None:
        super().__init__(vhost, folder)
        self._environment |= {"WORKQUEUE_URL": vhost.url, "PYTHONPATH": f"{EXAMPLE}:{ROOT / 'worker'}"}
        documents = yaml.safe_load_all((EXAMPLE / "after/workqueues.yaml").read_text())
        made: dict[str, Any] = {one["metadata"]["name"]: one["spec"] for one in documents}
        self._cron_job = made.pop("finish-inactive-builds")
        self._queues = made
        with vhost.connect() as connection:
            for name in self._queues:
                for queue in plan(QueueSettings(name)).queues:
                    connection.channel().queue_declare(
                        queue.name, durable=True, arguments=dict(queue.arguments)
                    )

    def ask(self, *words: str) -> str:
        return self._output([sys.executable, "website.py", *words], "after")

    def start(self) -> None:
        self.start_builder()
        self._worker("index")
        self._worker("web", "--max-attempts", "6", "--backoff", "initialSeconds=1,factor=2,maxSeconds=4")
        pod = self._cron_job["jobTemplate"]["spec"]["template"]["spec"]
        _, *command = pod["containers"][0]["command"]
        self._output([sys.executable, "-m", "workqueue", *command], "after")

    def start_builder(self) -> None:
        self._builder = self._worker("builds", "--isolation", "Process", "--concurrency", "2")

    def kill_builder(self) -> None:
        self._kill(self._builder)

    def _worker(self, queue: str, *arguments: str) -> subprocess.Popen[bytes]:
        handler = self._queues[queue]["worker"]["handler"]["python"]
        command = [sys.executable, "-m", "workqueue", "run", handler, "--queue", queue]
        return self._run([*command, *arguments], "after")


@pytest.fixture(scope="module", params=[Before, After], ids=["Celery", "WorkQueue"])
def host(
    request: pytest.FixtureRequest, rabbitmq: Broker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    """The application, with a normal and an urgent mail that were published before its workers started."""
    with rabbitmq.new_vhost() as vhost:
        host = request.param(vhost, tmp_path_factory.mktemp("docs-host"))
        try:
            for words in (("notify", "bob"), ("notify", "carol"), ("alarm", "ada")):
                host.ask(*words)
            host.start()
            yield host
        finally:
            host.close()


def journal(host: Host) -> list[str]:
    file = host.folder / "journal"
    return file.read_text().splitlines() if file.exists() else []


def noted(host: Host, *lines: str, times: int = 1) -> None:
    """Wait until the journal has each of these lines."""

    def complete() -> bool:
        found = journal(host)
        return all(found.count(line) >= times for line in lines)

    eventually(complete, PATIENCE, f"the journal has {lines}")


def in_order(host: Host, *lines: str) -> bool:
    """Whether the journal has these lines in this order."""
    found = iter(journal(host))
    return all(line in found for line in lines)


def test_urgent_mail_overtakes_earlier_ones(host: Host) -> None:
    noted(host, "notified bob", "notified carol", "notified ada")

    assert in_order(host, "notified ada", "notified bob", "notified carol")


def test_push_builds_each_version_then_indexes_and_purges_it(host: Host) -> None:
    host.ask("push", "docs")

    noted(host, "purged docs 1.0", "purged docs 2.0")
    for version in ("1.0", "2.0"):
        steps = ("building", "built", "indexed", "purged")
        assert in_order(host, "fetched docs", *(f"{step} docs {version}" for step in steps))


def test_build_waits_until_a_builder_is_free(host: Host) -> None:
    (host.folder / "builders-busy").touch()
    host.ask("push", "patient")
    noted(host, "builders are busy", times=4)

    (host.folder / "builders-busy").unlink()

    noted(host, "purged patient 1.0", "purged patient 2.0")


def test_build_that_takes_too_long_fails_once_and_is_not_indexed(host: Host) -> None:
    (host.folder / "hold slow").touch()
    host.ask("push", "slow")
    noted(host, "failed slow 1.0: too long", "failed slow 2.0: too long")

    (host.folder / "hold slow").unlink()

    host.ask("push", "next")
    noted(host, "purged next 1.0", "purged next 2.0")
    assert journal(host).count("building slow 1.0") == 1
    assert "indexed slow 1.0" not in journal(host)


def test_build_of_a_killed_worker_is_built_by_another(host: Host) -> None:
    (host.folder / "hold killed").touch()
    host.ask("push", "killed")
    noted(host, "building killed 1.0", "building killed 2.0")

    host.kill_builder()
    (host.folder / "hold killed").unlink()
    host.start_builder()

    noted(host, "purged killed 1.0", "purged killed 2.0")


def test_status_is_sent_when_the_git_host_answers_again(host: Host) -> None:
    (host.folder / "git-host-down").touch()
    host.ask("report", "docs", "1.0", "success")
    noted(host, "git host is down", times=2)

    (host.folder / "git-host-down").unlink()

    noted(host, "status of docs 1.0: success")


def test_storage_of_a_deleted_project_is_removed_later(host: Host) -> None:
    host.ask("delete", "old")

    noted(host, "removed storage of old")
    assert in_order(host, "removed index of old", "removed storage of old")


def test_result_reaches_the_website(host: Host) -> None:
    assert host.ask("repositories", "ada") == "ada/docs, ada/site"


def test_inactive_builds_are_finished_on_schedule(host: Host) -> None:
    noted(host, "finished inactive builds")


PRODUCER: Final = """
from celery import Celery, signature
app = Celery(broker={url!r})
for task in ("tasks.add", "tasks.unknown"):
    signature(task, app=app).delay(20, y=22)
"""


def test_bridge_runs_the_tasks_that_celery_publishes(
    vhost: VirtualHost, workers: Workers, tmp_path: Path
) -> None:
    page = (ROOT / "docs/migrate-from-celery.md").read_text()
    (program,) = re.findall(r"```python\n# bridge.py\n(.*?)```", page, re.DOTALL)
    (command,) = re.findall(r"^workqueue run (.*)$", page, re.MULTILINE)
    (tmp_path / "bridge.py").write_text(program)
    subprocess.run([environment.python(), "-c", PRODUCER.format(url=vhost.url)], check=True, timeout=120)

    worker = workers.start(vhost.url, *command.split(), handler=None, queue=None, declare=False, cwd=tmp_path)

    eventually(lambda: worker.outcomes() == {"acked": 1, "dead_lettered": 1}, PATIENCE)
    assert "42" in worker.log.splitlines()
    [(properties, _)] = take_all(vhost, "celery.dead")
    assert properties.headers["x-workqueue-failure-message"] == "no such task: tasks.unknown"
