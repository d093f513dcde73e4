"""`workqueue run --reload`: new code without a new command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.rabbitmq import VirtualHost
from tests.support.wait import eventually
from tests.support.worker import Worker, Workers, publish
from workqueue.cli import reload

HANDLER = """
import json, os, time
from pathlib import Path

def handle(message):
    job = message.json()
    while job.get("until") and not Path(job["until"]).exists():
        time.sleep(0.05)
    with Path(os.environ["EVENTS"]).open("a") as file:
        file.write(json.dumps({"event": "VERSION", "id": job["id"]}) + "\\n")
"""


def write(folder: Path, version: str) -> None:
    """Write the handler. All versions have one size and one time, as if they were written within a second."""
    file = folder / "shop.py"
    file.write_text(HANDLER.replace("VERSION", version))
    os.utime(file, (1_700_000_000, 1_700_000_000))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a developer, where Python keeps what it has compiled."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    made = tmp_path / "project"
    made.mkdir()
    write(made, "old")
    return made


def start(workers: Workers, vhost: VirtualHost, folder: Path) -> Worker:
    worker = workers.start(vhost.url, "--reload", handler="shop:handle", cwd=folder)
    return worker.wait_consuming()


def test_new_code_handles_the_next_message_after_the_old_code_has_finished(
    vhost: VirtualHost, workers: Workers, folder: Path
) -> None:
    worker, sign = start(workers, vhost, folder), folder / "sign"
    publish(vhost, {"id": 1, "until": str(sign)})
    eventually(lambda: worker.status()["busy"] == 1)

    write(folder, "new")
    eventually(lambda: "shop.py changed. The worker finishes its messages and starts again." in worker.log)
    publish(vhost, {"id": 2})
    sign.touch()

    eventually(lambda: worker.events_of("new") == [2])
    assert worker.events_of("old") == [1]
    assert worker.stop() == 0


def test_code_that_cannot_be_loaded_is_loaded_again_when_it_has_changed(
    vhost: VirtualHost, workers: Workers, folder: Path
) -> None:
    worker = start(workers, vhost, folder)
    (folder / "shop.py").write_text("def handle(message) return")
    eventually(lambda: "SyntaxError" in worker.log)

    write(folder, "new")

    publish(vhost, {"id": 1})
    eventually(lambda: worker.events_of("new") == [1])
    assert worker.stop() == 0


def test_other_files_do_not_restart_the_worker(vhost: VirtualHost, workers: Workers, folder: Path) -> None:
    worker = start(workers, vhost, folder)

    (folder / "result.json").write_text("{}")
    write(folder, "new")

    eventually(lambda: worker.count_log("Starting.") == 2)
    assert "result.json" not in worker.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_signal_ends_both_processes(
    vhost: VirtualHost, workers: Workers, folder: Path, number: signal.Signals
) -> None:
    worker = start(workers, vhost, folder)

    for process in [worker.process.pid] + (children(worker) if number is signal.SIGINT else []):
        os.kill(process, number)

    assert worker.wait() == 0
    assert worker.count_log("Shut down.") == 1


class Busy:
    """The process of a worker whose handler goes on. Meanwhile its supervisor gets SIGTERM twice."""

    def __init__(self, _command: object, **_: object) -> None:
        self.seen: list[str] = []

    def terminate(self) -> None:
        self.seen.append("terminated")

    def wait(self) -> int:
        for _ in range(2):
            self.seen.append("SIGTERM")
            signal.raise_signal(signal.SIGTERM)
        return 0


@pytest.fixture
def own_signals() -> Iterator[None]:
    """The test may set signal handlers."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("own_signals")
def test_first_sigterm_during_a_restart_leaves_handlers_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second signal that a worker gets cancels its handlers, and the third one kills it."""
    monkeypatch.setattr(subprocess, "Popen", Busy)
    worker = reload._Worker()
    worker.restart([])
    busy: Any = worker.process

    worker.restart(["shop.py"])

    assert busy.seen == ["terminated", "SIGTERM", "SIGTERM", "terminated"]
    assert worker.process is busy, "no other worker begins"


def test_worker_ends_when_its_supervisor_is_killed(
    vhost: VirtualHost, workers: Workers, folder: Path
) -> None:
    worker = start(workers, vhost, folder)

    worker.kill()

    eventually(lambda: worker.count_log("Shut down.") == 1)


def children(worker: Worker) -> list[int]:
    """The processes that a terminal sends Ctrl-C to as well."""
    task = Path(f"/proc/{worker.process.pid}/task/{worker.process.pid}/children")
    return [int(number) for number in task.read_text().split()]


def test_missing_library_is_named() -> None:
    script = "import sys; sys.modules['watchfiles'] = None; from workqueue.cli.main import main; main(sys.argv[1:])"
    arguments = ["run", "shop:handle", "--queue", "jobs", "--reload"]

    said = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )

    assert said.returncode == 2
    assert "--reload needs the library watchfiles: pip install 'workqueue-operator[reload]'." in said.stderr
