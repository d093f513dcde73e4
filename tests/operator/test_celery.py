"""The Celery example of docs/scaling.md, with a real Celery: what the operator sees of foreign workers."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from hack.bench import environment
from tests.support.brokers import probe
from tests.support.rabbitmq import VirtualHost
from tests.support.wait import until
from workqueue.contract.binding import from_url
from workqueue_operator.api.reasons import Reason
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.broker import declare
from workqueue_operator.broker import management as managing
from workqueue_operator.broker.management import Management

PAGE = (Path(__file__).parents[2] / "docs/scaling.md").read_text()
SECTION = PAGE.partition("### Celery, worked through")[2]
HOLD = """
import pathlib, time
from tasks import app

@app.task
def hold(path):
    while not pathlib.Path(path).exists():
        time.sleep(0.01)
"""


def found(pattern: str) -> re.Match[str]:
    match = re.search(pattern, SECTION, re.DOTALL)
    assert match, pattern
    return match


def workqueue() -> WorkQueue:
    """The WorkQueue of the page."""
    (block,) = [one for one in re.findall(r"```yaml\n(.*?)```", SECTION, re.DOTALL) if "WorkQueue" in one]
    (body,) = [one for one in yaml.safe_load_all(block) if one["kind"] == "WorkQueue"]
    body["metadata"] |= {"namespace": "team", "uid": "u", "generation": 1}
    return WorkQueue.model_validate(body)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with the tasks of the page, and one that lasts until a file exists."""
    (tmp_path / "tasks.py").write_text(found(r"```python\n# tasks.py\n(.*?)```")[1])
    (tmp_path / "hold.py").write_text(HOLD)
    return tmp_path


@contextmanager
def celery(folder: Path, url: str) -> Iterator[subprocess.Popen[bytes]]:
    """The worker, started as on the page."""
    command = found(r"command: \[celery, (.*?)\]")[1].replace("tasks", "hold").split(", ")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [environment.python(), "-m", "celery", *command],
            **surroundings(folder, url),
            stdout=log,
            stderr=log,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait(20)


def surroundings(folder: Path, url: str) -> dict[str, Any]:
    return {"cwd": folder, "env": os.environ | {"BROKER_URL": url, "C_FORCE_ROOT": "1"}}


def publish(folder: Path, url: str, path: Path, count: int) -> None:
    program = f"import hold; [hold.hold.delay({str(path)!r}) for _ in range({count})]"
    subprocess.run([environment.python(), "-c", program], check=True, **surroundings(folder, url))


@pytest.mark.slow
async def test_celery_queue_is_used_unchanged_and_its_tasks_count_until_done(
    vhost: VirtualHost, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(managing, "FRESH", 0.0)
    configure, write, read = found(r"set_permissions celery '(.*?)' '(.*?)' '(.*?)'").groups()
    vhost.broker.add_user("celery", "c3l3ry", vhost.name, configure=configure, write=write, read=read)
    vhost.broker.evaluate('rabbit_auth_backend_internal:set_tags(<<"celery">>, [management], <<"test">>)')
    url = vhost.broker.url_of(vhost.name, "celery", "c3l3ry")
    binding = from_url(url)._replace(management_uri=vhost.broker.management_url)
    management, release = Management(), folder / "release"
    try:
        with celery(folder, vhost.url) as worker:
            async with probe(url) as broker:
                await broker.ready()
                publish(folder, vhost.url, release, 5)
                assert (await declare.declare(workqueue(), broker))[0].reason is Reason.USED_AS_IT_IS

                async def seen(ready: int, unacknowledged: int) -> bool:
                    in_hand = await management.unacknowledged(binding, "celery")
                    return ((await broker.counts("celery")).ready, in_hand) == (ready, unacknowledged)

                await until(lambda: seen(3, 2), seconds=60)
                # A scale-in sends SIGTERM: messages in handlers are finished, the rest stays in the queue.
                worker.terminate()
                release.touch()
                await until(lambda: worker.poll() is not None, seconds=60)
                assert worker.returncode == 0
                await until(lambda: seen(3, 0), seconds=60)
    finally:
        await management.close()
        vhost.broker.delete_user("celery")
