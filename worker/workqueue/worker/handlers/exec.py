"""Exec handlers: one process per message, in any language.

The body is on standard input, properties and headers are in the environment, and the exit code is the outcome. The
process has its own process group, so that nothing remains of it after it ends or times out. Its standard output and
standard error are the worker's; the tail of standard error is also kept for the failure header.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO, Final

from workqueue.message import Message, Reject, Retry
from workqueue.worker.errors import HandlerLoadError
from workqueue.worker.handlers.handler import Handler
from workqueue.worker.handlers.outcome import HandlerFailed, HandlerUnavailable
from workqueue.worker.supervisor import SupervisedProcess, describe_end

TAIL_BYTES: Final = 1_500
_PIPE_SECONDS: Final = 1.0

_NO_ROOM: Final = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
"""No process, memory or file descriptor is free. This is not the message's fault."""


def load(command: Sequence[str]) -> Handler:
    """Check that the command exists.

    Raises:
        HandlerLoadError: it does not exist, or is not executable.
    """
    if shutil.which(command[0]) is None:
        raise HandlerLoadError(
            f"The handler's command {command[0]!r} is not an executable file and is not on the PATH."
        )
    words = tuple(command)
    return Handler(shlex.join(words), lambda message: run(words, message))


def run(command: Sequence[str], message: Message) -> None:
    """Run the command for one message.

    Raises:
        Retry: exit code 75 (EX_TEMPFAIL).
        Reject: exit code 65 (EX_DATAERR).
        HandlerFailed: any other exit code but 0, or a signal.
        HandlerUnavailable: the machine has no resources for another process.
    """
    try:
        process = SupervisedProcess(
            command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(message)
        )
    except OSError as error:
        failed = HandlerUnavailable if error.errno in _NO_ROOM else HandlerFailed
        raise failed(f"The command cannot be started: {error}.") from error
    stdin, stderr = process.popen.stdin, process.popen.stderr
    assert stdin is not None and stderr is not None  # noqa: S101, PT018 - for the type checker
    message.cancelled.on_set(process.terminate)
    try:
        tail = _Tail(stderr)
        feeder = threading.Thread(target=_feed, args=(stdin, message.body), daemon=True)
        feeder.start()
    except RuntimeError as error:  # no thread is free
        with process.popen:  # closes its pipes
            process.kill()
            process.wait()
        raise HandlerFailed(f"The command was killed, since no thread could write to it: {error}.") from error
    code = process.wait()
    feeder.join(_PIPE_SECONDS)
    text = tail.read(_PIPE_SECONDS)
    if code == 0:
        return
    said = f": {text}" if text else ""
    if code == os.EX_TEMPFAIL:
        raise Retry(reason=f"exit code {code}{said}")
    if code == os.EX_DATAERR:
        raise Reject(f"exit code {code}{said}")
    raise HandlerFailed(f"{describe_end(code)}{said}")


def environment(message: Message) -> dict[str, str]:
    """Return the worker's environment plus variables for the message.

    A header is `WORKQUEUE_HEADER_<NAME>`, in capitals and with `_` for other characters than letters and digits. The
    headers of W3C Trace Context are also in TRACEPARENT and TRACESTATE, where OpenTelemetry reads them.
    """
    properties = message.properties
    about: dict[str, object] = {
        "ATTEMPT": message.attempt,
        "QUEUE": message.queue,
        "REDELIVERED": str(message.redelivered).lower(),
        "REMAINING_SECONDS": int(message.remaining),
        "MESSAGE_ID": properties.message_id,
        "CORRELATION_ID": properties.correlation_id,
        "CONTENT_TYPE": properties.content_type,
        "TYPE": properties.type,
    }
    # A process cannot be started with a NUL in its environment.
    added = {
        f"WORKQUEUE_MESSAGE_{key}": str(value).replace("\0", "")
        for key, value in about.items()
        if value is not None
    }
    for name, value in message.headers.items():
        text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
        added[f"WORKQUEUE_HEADER_{re.sub('[^A-Z0-9]', '_', name.upper())}"] = text.replace("\0", "")
    for name in ("TRACEPARENT", "TRACESTATE"):
        if (carried := added.get(f"WORKQUEUE_HEADER_{name}")) is not None:
            added[name] = carried
    return {**os.environ, **added}


class _Tail:
    """Forwards standard error, and keeps its end."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._kept = b""
        self._thread = threading.Thread(target=self._pump, daemon=True)
        self._thread.start()

    def read(self, timeout: float) -> str:
        """Return the last lines, after the other end is closed."""
        self._thread.join(timeout)
        return self._kept.decode(errors="replace").strip()

    def _pump(self) -> None:
        with self._pipe:
            while piece := os.read(self._pipe.fileno(), 65_536):
                self._kept = (self._kept + piece)[-TAIL_BYTES:]
                with contextlib.suppress(OSError, ValueError):
                    sys.stderr.buffer.write(piece)
                    sys.stderr.buffer.flush()


def _feed(pipe: IO[bytes], body: bytes) -> None:
    # A command may ignore its input. The pipe then breaks, which is not a failure.
    with contextlib.suppress(OSError):
        pipe.write(body)
    with contextlib.suppress(OSError):
        pipe.close()
