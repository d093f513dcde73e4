"""HTTP handlers: one POST per message, to a server in any language, usually a sidecar of the same pod.

The request body is the message's body, `Workqueue-` headers carry the rest, and the status code is the outcome. Each
message has its own connection: a kept one may be closed during a request, and then it is unknown whether the
    message was
handled.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from typing import Final
from urllib.parse import SplitResult, urlsplit

from workqueue.message import Message, Reject, Retry
from workqueue.worker.errors import HandlerLoadError
from workqueue.worker.handlers.handler import Handler
from workqueue.worker.handlers.outcome import HandlerFailed, HandlerTimeout, HandlerUnavailable

START_SECONDS: Final = 60.0
"""How long the server may take to listen after the worker has started."""

CONNECT_SECONDS: Final = 5.0

TRY_AGAIN: Final = frozenset(
    {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_EARLY,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.SERVICE_UNAVAILABLE,
    }
)

OVERLOADED: Final = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
"""With Retry-After, the server is overloaded, and the message is not at fault."""

ANSWER_CHARACTERS: Final = 500
TRACE_HEADERS: Final = ("traceparent", "tracestate")
"""The headers of W3C Trace Context. With them, the server's spans belong to the message's trace."""

_ANSWER_BYTES: Final = 65_536
_POLL_SECONDS: Final = 0.05


def load(url: str, pause: Callable[[float], bool], patience: float = START_SECONDS) -> Handler:
    """Wait until the server listens.

    Args:
        pause: waits some seconds, and returns True if the worker must stop.
        patience: how long to wait for the server, in seconds.

    Raises:
        HandlerLoadError: it does not listen in time, or the worker must stop.
    """
    target = urlsplit(url)
    deadline = time.monotonic() + patience
    while True:
        try:
            socket.create_connection(_address(target), timeout=1.0).close()
        except OSError as error:
            if time.monotonic() >= deadline:
                raise HandlerLoadError(
                    f"The handler {url} cannot be reached: {error or repr(error)} (tried for {patience:g} s)."
                ) from error
            if pause(_POLL_SECONDS):
                raise HandlerLoadError(f"Stopped while waiting for the handler {url}.") from error
        else:
            return Handler(url, partial(post, target))


def post(target: SplitResult, message: Message) -> None:
    """Send one message.

    Raises:
        Retry: 408, 425, 429 or 503, with the delay of Retry-After. 429 and 503 with it cost no attempt.
        Reject: any other 4xx.
        HandlerTimeout: no answer before the deadline.
        HandlerFailed: any other status except 2xx, or no answer.
        HandlerUnavailable: there is no connection, so nothing was sent.
    """
    connection = _connection(target, max(0.001, min(message.remaining, CONNECT_SECONDS)))
    path = f"{target.path or '/'}{f'?{target.query}' if target.query else ''}"
    try:
        connection.connect()
    except OSError as error:
        connection.close()
        raise HandlerUnavailable(f"{target.geturl()} cannot be reached: {error or repr(error)}") from error
    try:
        # Set after the connect: a message may wait for its server for hours, and must not keep each failed
        # connection.
        message.cancelled.on_set(partial(_hang_up, connection))
        connection.sock.settimeout(max(0.001, message.remaining))
        if message.cancelled:  # before there was a connection to close
            raise HandlerFailed(f"cancelled before {target.geturl()} was asked")
        connection.request("POST", path, message.body, request_headers(message))
        answer = connection.getresponse()
        text = answer.read(_ANSWER_BYTES).decode(errors="replace").strip()[:ANSWER_CHARACTERS]
    except (OSError, http.client.HTTPException) as error:
        # The timeouts of the worker and of the socket end at the same time, in any order.
        if message.remaining <= 0:
            raise HandlerTimeout(f"no answer from {target.geturl()} before the deadline") from error
        raise HandlerFailed(f"no answer from {target.geturl()}: {error!r}") from error
    finally:
        connection.close()
    said = f"status {answer.status} {answer.reason}{f': {text}' if text else ''}"
    if answer.status in TRY_AGAIN:
        after = retry_after(answer.getheader("Retry-After"), time.time())
        raise Retry(after, said, counts=after is None or answer.status not in OVERLOADED)
    if HTTPStatus.BAD_REQUEST <= answer.status < HTTPStatus.INTERNAL_SERVER_ERROR:
        raise Reject(said)
    if not HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
        raise HandlerFailed(said)


def request_headers(message: Message) -> dict[str, str]:
    """Return the headers of the request. `Workqueue-Headers` is JSON in ASCII."""
    properties = message.properties
    about = {
        "Content-Type": properties.content_type or "application/octet-stream",
        "Content-Encoding": properties.content_encoding,
        "Workqueue-Attempt": str(message.attempt),
        "Workqueue-Queue": message.queue,
        "Workqueue-Remaining-Seconds": f"{message.remaining:.3f}",
        "Workqueue-Message-Id": properties.message_id,
        "Workqueue-Correlation-Id": properties.correlation_id,
        "Workqueue-Type": properties.type,
        "Workqueue-Headers": json.dumps(dict(message.headers), default=_text),
        **{name: str(message.headers[name]) for name in TRACE_HEADERS if name in message.headers},
    }
    return {
        name: value.encode("ascii", "replace").decode().replace("\r", " ").replace("\n", " ")
        for name, value in about.items()
        if value is not None
    }


def retry_after(value: str | None, now: float) -> float | None:
    """Return the seconds to wait, from seconds or an HTTP date; None if missing or invalid.

    Args:
        now: Unix seconds.
    """
    if not value:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (TypeError, ValueError):
        return None


def _connection(target: SplitResult, timeout: float) -> http.client.HTTPConnection:
    host, port = _address(target)
    if target.scheme == "https":
        return http.client.HTTPSConnection(host, port, timeout=timeout, context=ssl.create_default_context())
    return http.client.HTTPConnection(host, port, timeout=timeout)


def _address(target: SplitResult) -> tuple[str, int]:
    return target.hostname or "", target.port or (443 if target.scheme == "https" else 80)


def _hang_up(connection: http.client.HTTPConnection) -> None:
    with contextlib.suppress(OSError, AttributeError):  # not connected yet, or closed already
        connection.sock.shutdown(socket.SHUT_RDWR)


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
