"""Consume with a SelectConnection that passes each message to a process, and acknowledges its answer.

This is the least that handlers in processes cost: two wake-ups for each message. Each slot has a channel with
prefetch 1 and a process.
"""

from __future__ import annotations

import os
import socket
import time
from functools import partial
from typing import Any

import pika

from hack.bench.worker.consumers import arguments, tally

MOST_BYTES = 2**18


def main() -> None:
    """Consume until the process is killed."""
    asked = arguments.read()
    processes = [_start(asked.seconds) for _ in range(asked.slots)]

    def consume(messages: socket.socket, answers: int, channel: Any) -> None:
        def handle(_channel: Any, method: Any, _properties: Any, body: bytes) -> None:
            tags.append(method.delivery_tag)
            messages.sendall(body)

        def answered(_answers: int, _events: int) -> None:
            os.read(answers, 1)
            channel.basic_ack(tags.pop())

        tags: list[int] = []
        connection.ioloop.add_handler(answers, answered, connection.ioloop.READ)
        channel.basic_qos(prefetch_count=1)
        channel.basic_consume(asked.queue, handle)

    def opened(opened_connection: pika.SelectConnection) -> None:
        for messages, answers in processes:
            opened_connection.channel(on_open_callback=partial(consume, messages, answers))

    connection = pika.SelectConnection(pika.URLParameters(asked.url), on_open_callback=opened)
    connection.ioloop.start()


def _start(seconds: float) -> tuple[socket.socket, int]:
    """Start a process; return a socket for its messages and the descriptor of its answers."""
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MOST_BYTES)
    answers, answer = os.pipe()
    if os.fork():
        theirs.close()
        os.close(answer)
        return ours, answers
    ours.close()
    tick = tally.asked().tick
    while theirs.recv(MOST_BYTES):
        tick()
        if seconds:
            time.sleep(seconds)
        os.write(answer, b"\0")
    os._exit(0)


if __name__ == "__main__":
    main()
