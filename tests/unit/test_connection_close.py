"""A connection that is closed before it is open."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator

import pytest

from workqueue.amqp.connection import Connection
from workqueue.contract.binding import from_url


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_close_during_the_handshake_is_quick_and_logs_no_error(
    silent: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"amqp://127.0.0.1:{silent.getsockname()[1]}/"
    connection = Connection(lambda: from_url(url), "test")
    connection.start()
    with silent.accept()[0] as accepted:
        assert accepted.recv(4) == b"AMQP"

        begun = time.monotonic()
        connection.close(timeout=30)

    assert time.monotonic() - begun < 15
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
