"""A process's connections to its worker: a socket for messages, and pipes for its answers and for cancellations."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from workqueue.worker.ending import CLOSING_SECONDS, HOOKS_SECONDS
from workqueue.worker.executors.frames import HEAD, KINDS, TOKEN, Kind

FIRST_BYTES: Final = 2**12
"""A frame of at most this size is usually read with one call."""

ORPHAN_SECONDS: Final = CLOSING_SECONDS + HOOKS_SECONDS + 2.0
"""How long a process may go on after its worker is gone."""


class Connection:
    """Messages from the worker, and answers to it. Both directions block, since the worker never does.

    Args:
        messages: file descriptor of the socket.
        answers: file descriptor of the pipe.

    Attributes:
        received: what was read of the frames after the last one.
    """

    def __init__(self, messages: int, answers: int) -> None:
        self.received = b""
        self._socket = socket.socket(fileno=messages)
        self._socket.set_inheritable(False)
        os.set_inheritable(answers, False)
        self._answers = answers
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """Return the file descriptor for messages."""
        return self._socket.fileno()

    def receive(self) -> tuple[Kind, int, bytes, bytes] | None:
        """Return kind, token, fields and body of the next frame, or None at the end."""
        data = self.received or self._socket.recv(FIRST_BYTES)
        if len(data) < HEAD.size:
            data = self._complete(data, HEAD.size)
            if len(data) < HEAD.size:
                return None
        kind, token, size, body_size = HEAD.unpack_from(data)
        body = HEAD.size + size
        end = body + body_size
        self.received = data[end:]
        if len(data) >= end:
            return KINDS[kind], token, data[HEAD.size : body], data[body:end]
        fields = self._complete(data[HEAD.size : body], size)
        return KINDS[kind], token, fields, self._complete(data[body:], body_size)

    def send(self, frame: bytes) -> None:
        """Send a frame."""
        with self._lock:
            sent = os.write(self._answers, frame)
            while sent < len(frame):
                sent += os.write(self._answers, frame[sent:])

    def _complete(self, begin: bytes, size: int) -> bytes:
        """Return `size` bytes that begin with these, or fewer at the end.

        BytesIO gives away the object that it has written, so a large body is not copied.
        """
        have = len(begin)
        if have == size:
            return begin
        whole = io.BytesIO(bytes(size))
        with whole.getbuffer() as view:
            view[:have] = begin
            while have < size and (
                count := self._socket.recv_into(view[have:], size - have, socket.MSG_WAITALL)
            ):
                have += count
        whole.truncate(have)
        return whole.getvalue()


class Cancellations:
    """Reads from a pipe which messages are cancelled, and whether the worker is gone.

    Args:
        descriptor: of the pipe.
    """

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._descriptor = descriptor
        self._cancelled: set[int] = set()
        self._on_cancel: Callable[[int], None] = lambda _token: None
        threading.Thread(target=self._live, name="cancellations", daemon=True).start()

    def deliver_to(self, on_cancel: Callable[[int], None]) -> None:
        """Call a function with each token from now on, in a thread."""
        self._on_cancel = on_cancel

    def is_cancelled(self, token: int) -> bool:
        """Whether a message was cancelled, perhaps before it was read. Asked once per message."""
        if token not in self._cancelled:
            return False
        self._cancelled.discard(token)
        return True

    def _live(self) -> None:
        with contextlib.suppress(OSError):  # the handler has closed all descriptors
            while data := os.read(self._descriptor, TOKEN.size):
                (token,) = TOKEN.unpack(data)
                self._cancelled.add(token)
                self._on_cancel(token)
        time.sleep(ORPHAN_SECONDS)
        os.killpg(0, signal.SIGKILL)
