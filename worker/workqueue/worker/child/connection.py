"""A process's connections to its worker: a socket for frames, and a pipe for cancellations."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from workqueue.worker.ending import CLOSING_SECONDS, HOOKS_SECONDS
from workqueue.worker.executors.frames import HEAD, KINDS, TOKEN, Kind

SMALL_BYTES: Final = 2**16
"""Fields and body of at most this size are read together."""

ORPHAN_SECONDS: Final = CLOSING_SECONDS + HOOKS_SECONDS + 2.0
"""How long a process may go on after its worker is gone."""


class Connection:
    """The socket to the worker. Both directions block, since the worker never does."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """Return its file descriptor."""
        return self._socket.fileno()

    def receive(self) -> tuple[Kind, int, bytes, bytes] | None:
        """Return kind, token, fields and body of the next frame, or None at the end."""
        head = self._read(HEAD.size)
        if len(head) < HEAD.size:
            return None
        kind, token, size, body = HEAD.unpack(head)
        if size + body <= SMALL_BYTES:
            both = self._read(size + body)
            return KINDS[kind], token, both[:size], both[size:]
        return KINDS[kind], token, self._read(size), self._read(body)

    def send(self, frame: bytes) -> None:
        """Send a frame."""
        with self._lock:
            self._socket.sendall(frame)

    def _read(self, size: int) -> bytes:
        """Read `size` bytes into one object, without a copy, unless a signal interrupts the call."""
        if not size:
            return b""
        data = self._socket.recv(size, socket.MSG_WAITALL)
        if len(data) == size or not data:
            return data
        pieces = [data]
        while (left := size - sum(map(len, pieces))) and (
            data := self._socket.recv(left, socket.MSG_WAITALL)
        ):
            pieces.append(data)
        return b"".join(pieces)


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
