"""The programs of docs/library.md and docs/idempotency.md, and the tests of the tutorials, run unchanged."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from redis import Redis

from tests.support.rabbitmq import VirtualHost
from tests.support.tiers import some_slow
from tests.support.wait import eventually
from tests.support.worker import Worker, Workers, publish, take_all

ROOT: Final = Path(__file__).parents[2]
PATIENCE: Final = 60.0


def block(page: str, marker: str) -> str:
    """The only Python block of a page with this text."""
    text = (ROOT / "docs" / page).read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    (found,) = [one for one in blocks if marker in one]
    return str(found)


Start = Callable[..., Worker]


@pytest.fixture
def start(vhost: VirtualHost, workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Start a worker with a program of a page, in the folder of the test."""

    def start(program: str, function: str, *arguments: str) -> Worker:
        (tmp_path / "program.py").write_text(program.replace('connect("', f'connect("{tmp_path}/'))
        worker = workers.start(
            vhost.url,
            *arguments,
            handler=f"program:{function}",
            environment={"PYTHONPATH": f"{tmp_path}:worker", "WORKQUEUE_URL": vhost.url},
        )
        eventually(lambda: vhost.exists("jobs") and worker.status()["consuming"], PATIENCE)
        return worker

    return start


isolations = pytest.mark.parametrize("isolation", ["Thread", "Process"])


def test_typed_handler_gets_valid_pictures_only(vhost: VirtualHost, start: Start) -> None:
    worker = start(block("library.md", "class Picture"), "resize")

    publish(vhost, {"name": "sea", "width": 200}, {"name": "sea", "width": 0})

    eventually(lambda: worker.outcomes() == {"acked": 1, "dead_lettered": 1}, PATIENCE)
    assert "sea to 200 pixels, attempt 1" in worker.log
    [(properties, _)] = take_all(vhost, "jobs.dead")
    said = properties.headers["x-workqueue-failure-message"]
    assert said == "The body is not a valid Picture: width: Input should be greater than 0."
    assert said in (ROOT / "docs/library.md").read_text().replace("\n", " ")


@isolations
def test_lifespan_shares_a_database(vhost: VirtualHost, start: Start, tmp_path: Path, isolation: str) -> None:
    worker = start(
        block("library.md", "pictures.db"), "measure", "--isolation", isolation, "--concurrency", "2"
    )

    publish(vhost, b"four", b"seven77", headers={"name": "sea"})

    eventually(lambda: worker.outcomes() == {"acked": 2}, PATIENCE)
    with closing(sqlite3.connect(tmp_path / "pictures.db")) as database:
        assert sorted(database.execute("SELECT * FROM sizes")) == [("sea", 4), ("sea", 7)]
    assert worker.stop(60) == 0


@isolations
def test_lifespan_shares_a_publisher(vhost: VirtualHost, start: Start, isolation: str) -> None:
    with vhost.connect() as connection:
        connection.channel().queue_declare("emails", durable=True)
    worker = start(
        block("library.md", "AsyncPublisher()"), "order", "--isolation", isolation, "--concurrency", "5"
    )

    publish(vhost, *({"number": number} for number in range(5)))

    eventually(lambda: worker.outcomes() == {"acked": 5}, PATIENCE)
    ids = sorted(properties.message_id for properties, _ in take_all(vhost, "emails"))
    assert ids == [f"email-{number}" for number in range(5)]
    assert worker.stop(60) == 0


DJANGO: Final = """
import django
from django.conf import settings
settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": __file__ + ".sqlite3"}})
django.setup()
"""
USES_DJANGO: Final = """
from django.db import connection
def handle(message):
    print("new connection" if connection.connection is None else "old connection", flush=True)
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
"""


def test_middleware_gives_each_message_a_fresh_connection_of_django(vhost: VirtualHost, start: Start) -> None:
    program = DJANGO + block("library.md", "close_old_connections") + USES_DJANGO
    worker = start(program, "handle", "--isolation", "Process")

    publish(vhost, b"1", b"2", b"3")

    eventually(lambda: worker.outcomes() == {"acked": 3}, PATIENCE)
    assert (worker.log.count("new connection"), worker.log.count("old connection")) == (3, 0)


SENTRY: Final = """
import functools, json
import sentry_sdk
class Printed(sentry_sdk.transport.Transport):
    def capture_envelope(self, envelope):
        event = envelope.get_event()
        if event:
            print("EVENT", event["exception"]["values"][-1]["type"], json.dumps(event["tags"]), flush=True)
sentry_sdk.init = functools.partial(sentry_sdk.init, dsn="https://key@sentry.invalid/1", transport=Printed)
"""
FAILS: Final = """
def handle(message):
    raise ValueError("it went wrong")
"""


@isolations
def test_failure_hook_reports_each_dead_letter_once_to_sentry(
    vhost: VirtualHost, start: Start, isolation: str
) -> None:
    program = SENTRY + block("library.md", "sentry_sdk") + FAILS
    worker = start(program, "handle", "--isolation", isolation, "--max-attempts", "2")

    publish(vhost, b"1", message_id="m-1")

    eventually(lambda: worker.outcomes() == {"retried": 1, "dead_lettered": 1}, PATIENCE)
    [event] = re.findall(r"EVENT (\w+) ({.*?})", worker.log.replace('\\"', '"'))
    assert event == ("ValueError", '{"queue": "jobs", "message_id": "m-1"}')


def test_reply_is_the_sum(vhost: VirtualHost, start: Start) -> None:
    with vhost.connect() as connection:
        connection.channel().queue_declare("answers", durable=True)
    worker = start(block("library.md", "The program that asked is gone"), "add")

    publish(vhost, b"[1, 2]", reply_to="answers", correlation_id="7")
    publish(vhost, b"[1, 2]", reply_to="gone", correlation_id="8")

    eventually(lambda: worker.outcomes() == {"acked": 2}, PATIENCE)
    [(properties, body)] = take_all(vhost, "answers")
    assert (properties.correlation_id, body) == ("7", b'{"sum":3}')
    assert worker.log.count("The program that asked is gone.") == 1


def run_pytest(folder: Path, *files: str) -> str:
    """Run the tests of a user, with the plugin as the package's entry point loads it."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "workqueue.pytest_plugin", *files],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "worker"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_tests_of_the_page_pass(tmp_path: Path) -> None:
    (tmp_path / "test_add.py").write_text(block("library.md", "workqueue.testing import Ack"))

    assert "4 passed" in run_pytest(tmp_path, "test_add.py")


def test_tests_of_the_tutorial_pass(tmp_path: Path) -> None:
    (tmp_path / "invoices.py").write_text(block("tutorial.md", "# invoices.py"))
    (tmp_path / "test_invoices.py").write_text(block("tutorial.md", "# test_invoices.py"))

    assert "3 passed" in run_pytest(tmp_path, "test_invoices.py")


def test_tests_of_the_production_handler_pass_before_and_after_its_fix(tmp_path: Path) -> None:
    page = "production-handler.md"
    for name in ("bank", "payments", "test_payments"):
        (tmp_path / f"{name}.py").write_text(block(page, f"# {name}.py"))
    (fix,) = re.findall(
        r"^sed -i .* payments.py test_payments.py$", (ROOT / "docs" / page).read_text(), re.MULTILINE
    )

    assert "4 passed" in run_pytest(tmp_path, "test_payments.py")
    subprocess.run(["bash", "-c", fix], cwd=tmp_path, check=True)
    assert "4 passed" in run_pytest(tmp_path, "test_payments.py")
    assert "amount" not in (tmp_path / "payments.py").read_text()


def test_entry_point_of_the_pytest_plugin_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    [name] = project["entry-points"]["pytest11"].values()

    assert hasattr(import_module(name), "run_handler")


# -- idempotency ----------------------------------------------------------------------------------

DIES_ONCE: Final = """
import os, pathlib
@workqueue.middleware
def dies_once_before_the_acknowledgement(message, call_next):
    call_next(message)
    mark = pathlib.Path(__file__).with_name("died")
    if not mark.exists():
        mark.touch()
        os._exit(70)
"""
DEPOSIT: Final = {"account": "ada", "cents": 500}


@pytest.fixture
def accounts(postgresql: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[Any]]]:
    """Return the rows of the table `accounts`, which no other test has written."""
    monkeypatch.setenv("DATABASE_URL", postgresql)
    with psycopg.connect(postgresql, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS done, accounts")
        yield lambda: connection.execute("SELECT * FROM accounts").fetchall()


@pytest.mark.parametrize("isolation", some_slow(["Process", "Thread"], {"Thread"}))
def test_work_is_done_once_although_its_worker_dies_before_the_acknowledgement(
    vhost: VirtualHost, start: Start, tmp_path: Path, accounts: Callable[[], list[Any]], isolation: str
) -> None:
    program = block("idempotency.md", "ConnectionPool") + DIES_ONCE
    worker = start(program, "deposit", "--isolation", isolation)
    publish(vhost, DEPOSIT, message_id="m-1")
    eventually((tmp_path / "died").exists, PATIENCE)
    assert accounts() == [("ada", 500)]
    if isolation == "Thread":
        assert worker.wait(60) == 70
        worker = start(program, "deposit", "--isolation", isolation)

    eventually(lambda: worker.outcomes()["acked"] == 1, PATIENCE)

    assert accounts() == [("ada", 500)]


def test_work_is_done_once_although_its_message_is_published_often(
    vhost: VirtualHost, start: Start, accounts: Callable[[], list[Any]]
) -> None:
    worker = start(block("idempotency.md", "ConnectionPool"), "deposit", "--concurrency", "4")

    publish(vhost, *[DEPOSIT] * 20, message_id="m-1")
    publish(vhost, DEPOSIT, message_id="m-2")
    publish(vhost, DEPOSIT)

    eventually(lambda: worker.outcomes() == {"acked": 21, "dead_lettered": 1}, PATIENCE)
    assert accounts() == [("ada", 1000)]


def test_email_is_sent_once_although_its_message_is_published_often(
    vhost: VirtualHost, start: Start, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_server)
    worker = start(block("idempotency.md", "from redis import"), "send_email")

    publish(vhost, *[b"ada"] * 5, message_id="m-1")
    publish(vhost, b"bob", message_id="m-2")

    eventually(lambda: worker.outcomes() == {"acked": 6}, PATIENCE)
    assert re.findall("email to .*", worker.log) == ["email to ada", "email to bob"]


def test_email_waits_for_another_attempt_that_has_begun(
    vhost: VirtualHost, start: Start, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_server)
    program = block("idempotency.md", "from redis import").replace("LEASE_SECONDS = 60", "LEASE_SECONDS = 2")
    worker = start(program, "send_email")
    with Redis.from_url(redis_server) as notes:
        notes.set("email:begun", "begun", ex=2)  # by a worker that has died

    publish(vhost, b"ada", message_id="begun")

    eventually(lambda: worker.outcomes()["acked"] == 1, PATIENCE)
    assert worker.log.count("email to ada") == 1
