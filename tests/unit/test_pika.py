"""pika in the worker: not patched, and refused with a reason if it lacks a private name."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

import pika
import pika.exceptions
import pytest
from packaging.specifiers import SpecifierSet
from pika import data
from pika.channel import Channel
from pika.connection import Connection as PikaConnection

from tests.support.wait import eventually
from workqueue.amqp import pika_private
from workqueue.amqp.connection import Connection
from workqueue.contract.binding import from_url

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("owner", "name"),
    [(PikaConnection, "_read_frame"), (Channel, "_handle_content_frame")],
    ids=["of-a-connection", "of-a-channel"],
)
def test_pika_without_a_private_name_is_refused(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    monkeypatch.delattr(owner, name)

    with pytest.raises(ImportError) as caught:
        pika_private.check()

    assert str(caught.value) == (
        f"pika {pika.__version__} cannot be used: it lacks {owner.__module__}.{owner.__name__}.{name}."
        " Install pika~=1.4.4."
    )


def test_pika_without_a_private_attribute_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        """A channel that keeps cancelled consumers under another name."""

        _handle_content_frame = None

        def __init__(self) -> None:
            self._cancelled_tags: set[str] = set()
            self._consumers = None
            self._content_assembler = None

    monkeypatch.setattr("pika.channel.Channel", Other)

    with pytest.raises(ImportError, match=r"it lacks pika\.channel\.Channel\._cancelled\. Install"):
        pika_private.check()


def test_supported_pika_version_is_the_required_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert pika_private.SUPPORTED in project["dependencies"]
    supported = SpecifierSet(pika_private.SUPPORTED.removeprefix("pika"))
    for lock in ("requirements.lock", "requirements-dev.lock"):
        [locked] = re.findall(r"(?m)^pika==(\S+)", (ROOT / lock).read_text())
        assert locked in supported, lock


def test_pika_is_not_patched() -> None:
    for name, member in vars(data).items():
        assert getattr(member, "__module__", "pika") != "workqueue.amqp.field_table", name
    assert data.decode_value.__module__ == data.decode_table.__module__ == "pika.data"
    assert logging.getLogger("pika").level == logging.NOTSET


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"], ids=["refused", "name-not-found"])
def test_pika_logs_for_user_connections_only(caplog: pytest.LogCaptureFixture, host: str) -> None:
    caplog.set_level(logging.INFO)
    url = f"amqp://{host}:1"
    connection = Connection(lambda: from_url(url), "test")

    connection.start()
    try:
        eventually(lambda: connection.last_error, 60)
    finally:
        connection.close()
    assert not [record for record in caplog.records if record.name.startswith("pika")]

    with pytest.raises((pika.exceptions.AMQPError, OSError)):
        pika.BlockingConnection(pika.URLParameters(url))
    assert [record for record in caplog.records if record.name.startswith("pika")]


USES_ASYNCIO: Final = """
import sys
from workqueue.amqp.pika_import import import_pika

import_pika()
assert "asyncio" not in sys.modules

import asyncio, pika
from pika.adapters.asyncio_connection import AsyncioConnection

loop = asyncio.new_event_loop()
AsyncioConnection(
    pika.ConnectionParameters("127.0.0.1", 1), on_open_error_callback=lambda *_: loop.stop(), custom_ioloop=loop
)
loop.run_forever()
"""


USED_DURING_THE_IMPORT: Final = """
import sys
from workqueue.amqp import pika_import

pika_import.import_module = lambda name: __import__("asyncio.events").run if name == "pika" else __import__(name)
pika_import.import_pika()

import asyncio
assert sys.modules["asyncio"] is asyncio and asyncio.events.__name__ == "asyncio.events"
"""


USES_TLS: Final = """
import sys
from workqueue.amqp.pika_import import import_pika

import_pika()
assert "ssl" not in sys.modules

from pika import connection, SSLOptions, URLParameters
assert not isinstance(None, connection.ssl.SSLContext) and "ssl" not in sys.modules

assert URLParameters("amqps://localhost").ssl_options.context.check_hostname

import ssl
assert connection.ssl.SSLContext is ssl.SSLContext and connection.ssl.SSLError is ssl.SSLError
SSLOptions(ssl.create_default_context())
"""


@pytest.mark.parametrize(
    "code",
    [USES_ASYNCIO, USED_DURING_THE_IMPORT, USES_TLS],
    ids=["asyncio-later", "asyncio-during-the-import", "tls"],
)
def test_what_pika_was_imported_without_works(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
