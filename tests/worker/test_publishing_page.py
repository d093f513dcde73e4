"""The programs of docs/publishing.md run as they are printed."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import django
import pytest
from django.conf import settings
from django.db import connection
from django.test import RequestFactory
from fastapi.testclient import TestClient

from tests.support.rabbitmq import VirtualHost

ROOT: Final = Path(__file__).parents[2]


def blocks(page: str) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def block(page: str, marker: str) -> str:
    """The only block with this text."""
    (found,) = [one for one in blocks(page) if marker in one]
    return found


@pytest.fixture
def run(vhost: VirtualHost, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Run a program as a module, with the broker of the test in place of the one on this machine."""
    with vhost.connect() as to_broker:
        channel = to_broker.channel()
        channel.queue_declare("thumbnails", durable=True)
    monkeypatch.setenv("WORKQUEUE_URL", vhost.url)

    def run(program: str) -> ModuleType:
        module = ModuleType("program")
        monkeypatch.setitem(sys.modules, "program", module)
        local = program.replace("amqp://guest:guest@localhost:5672/", vhost.url)
        exec(compile(local, "program", "exec"), module.__dict__)
        return module

    return run


Run = Callable[[str], Any]


def test_first_program_publishes(run: Run, vhost: VirtualHost) -> None:
    run(next(one for one in blocks("docs/publishing.md") if "Publisher(" in one))
    assert vhost.depth("thumbnails").ready == 1


def test_many_messages_are_published(run: Run, vhost: VirtualHost) -> None:
    run(block("docs/publishing.md", "PublishManyError"))
    assert vhost.depth("thumbnails").ready == 10_000


def test_many_messages_to_missing_queue_are_all_to_publish_again(
    run: Run, vhost: VirtualHost, capsys: pytest.CaptureFixture[str]
) -> None:
    with vhost.connect() as to_broker:
        to_broker.channel().queue_delete("thumbnails")
    run(block("docs/publishing.md", "PublishManyError"))
    assert capsys.readouterr().out.startswith("10000 messages have to be published again: ")


def test_fastapi_application_publishes(run: Run, vhost: VirtualHost) -> None:
    app = run(block("docs/publishing.md", "FastAPI(")).app
    with TestClient(app) as client:
        answer = client.post("/jobs/7")
    assert answer.status_code == 202
    assert answer.json()["job"]
    assert vhost.depth("thumbnails").ready == 1


def test_django_view_publishes_after_commit(run: Run, vhost: VirtualHost) -> None:
    if not settings.configured:
        database = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
        settings.configure(DATABASES={"default": database})
        django.setup()
    view = run(block("docs/publishing.md", "django"))
    try:
        assert view.resize(RequestFactory().post("/"), 7).status_code == 202
    finally:
        view.publisher.close()
        connection.close()
    assert vhost.depth("thumbnails").ready == 1
