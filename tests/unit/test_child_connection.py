"""A process's connection to its worker: what arrives is what was sent, whatever the pieces."""

from __future__ import annotations

import os
import socket
import threading
import tracemalloc
from collections.abc import Iterator

import pytest

from workqueue.worker.child.connection import FIRST_BYTES, Connection
from workqueue.worker.executors.frames import HEAD, Kind

LARGE = 2**26


class Pair:
    """A connection, and the worker's ends of its socket and pipe."""

    def __init__(self) -> None:
        self.worker, theirs = socket.socketpair()
        self.answers, answers = os.pipe()
        self.connection = Connection(theirs.detach(), answers)
        self._descriptor = answers

    def close(self) -> None:
        self.worker.close()
        self.connection._socket.close()
        os.close(self.answers)
        os.close(self._descriptor)


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def packed(token: int, fields: bytes, body: bytes) -> bytes:
    return HEAD.pack(Kind.MESSAGE, token, len(fields), len(body)) + fields + body


SIZES = {
    "empty": (b"", b""),
    "small": (b"fields", b"body"),
    "as-large-as-the-first-read": (b"f" * (FIRST_BYTES - HEAD.size - 4), b"body"),
    "body-beyond-the-first-read": (b"fields", bytes(range(256)) * 64),
    "fields-beyond-the-first-read": (bytes(range(256)) * 64, b"body"),
}


@pytest.mark.parametrize(("fields", "body"), SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("before", [b"", packed(6, b"", b"another")], ids=["alone", "after-another"])
def test_frame_arrives_as_it_was_sent(pair: Pair, fields: bytes, body: bytes, before: bytes) -> None:
    pair.worker.sendall(before + packed(7, fields, body) + packed(8, b"", b"next"))

    if before:
        assert pair.connection.receive() == (Kind.MESSAGE, 6, b"", b"another")
    assert pair.connection.receive() == (Kind.MESSAGE, 7, fields, body)
    assert pair.connection.receive() == (Kind.MESSAGE, 8, b"", b"next")
    assert not pair.connection.received


@pytest.mark.parametrize("size", [1, 10, HEAD.size, HEAD.size + 3, FIRST_BYTES])
def test_frame_in_pieces_is_read_whole(pair: Pair, size: int) -> None:
    data = packed(7, b"fields", b"x" * 2 * FIRST_BYTES)

    def send() -> None:
        for start in range(0, len(data), size):
            pair.worker.sendall(data[start : start + size])

    sender = threading.Thread(target=send)
    sender.start()
    received = pair.connection.receive()
    sender.join()

    assert received == (Kind.MESSAGE, 7, b"fields", b"x" * 2 * FIRST_BYTES)


def test_worker_that_is_gone_is_the_end(pair: Pair) -> None:
    pair.worker.sendall(packed(7, b"fields", b"body")[:10])
    pair.worker.close()

    assert pair.connection.receive() is None


def test_large_body_is_in_memory_once(pair: Pair) -> None:
    frame = packed(7, b"fields", b"x" * LARGE)
    sender = threading.Thread(target=pair.worker.sendall, args=[frame])
    sender.start()

    tracemalloc.start()
    received = pair.connection.receive()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    sender.join()

    assert received == (Kind.MESSAGE, 7, b"fields", frame[-LARGE:])
    assert most < 1.5 * LARGE


def test_answer_is_written_whole(pair: Pair) -> None:
    answer = b"y" * 2**20
    sender = threading.Thread(target=pair.connection.send, args=[answer])
    sender.start()
    received = b""
    while len(received) < len(answer):
        received += os.read(pair.answers, 2**16)
    sender.join()

    assert received == answer
