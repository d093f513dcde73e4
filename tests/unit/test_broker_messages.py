"""The message when a connection ends: text from the broker or the system, no name of a Python class."""

from __future__ import annotations

import errno
import os
import socket

import pytest
from pika.exceptions import ConnectionClosedByBroker, StreamLostError

from workqueue_operator.broker.channel import describe_connection_error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        pytest.param(
            ConnectionClosedByBroker(320, "CONNECTION_FORCED - Node was put into maintenance mode"),
            "RabbitMQ closed it: 320 CONNECTION_FORCED - Node was put into maintenance mode",
            id="closed by RabbitMQ",
        ),
        pytest.param(StreamLostError("Transport indicated EOF"), "Transport indicated EOF", id="cut"),
        pytest.param(
            ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)),
            "Connection refused",
            id="refused",
        ),
        pytest.param(
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            "Name or service not known",
            id="no such host",
        ),
        pytest.param(TimeoutError(), "TimeoutError", id="without a word"),
    ],
)
def test_broker_message_is_decoded_for_people(error: Exception, words: str) -> None:
    assert describe_connection_error(error) == words
