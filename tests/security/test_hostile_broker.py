"""Any server may listen on RabbitMQ's port: worker and operator report it, stay small, and recover."""

from __future__ import annotations

import asyncio
import logging
import random
import struct
import tracemalloc
from collections.abc import Callable
from typing import Final

import pytest
from pika import spec

from tests.support.brokers import probe
from tests.support.hostilebroker import Peer, hostile_broker, long_string, raw_frame, raw_method
from tests.support.process import memory
from tests.support.rabbitmq import VirtualHost
from tests.support.tiers import some_slow
from tests.support.wait import eventually, until
from tests.support.worker import Workers, publish
from workqueue.contract.topology import QueueSettings, plan
from workqueue_operator.api.reasons import Reason
from workqueue_operator.errors import ReconcileError

MORE_MEMORY: Final = 64 * 1024 * 1024
LARGEST_LOG: Final = 256 * 1024

RANDOM = random.Random(7).randbytes(65_536)
HEADER, BODY, HEARTBEAT = spec.FRAME_HEADER, spec.FRAME_BODY, spec.FRAME_HEARTBEAT


def table(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def deep(levels: int) -> bytes:
    value = b"V"
    for _ in range(levels):
        value = b"F" + table(b"\x01a" + value)
    return table(b"\x01a" + value)


def deliver(tag: bytes, routing_key: bytes = b"jobs") -> bytes:
    short = [bytes([len(text)]) + text for text in (tag, b"", routing_key)]
    return short[0] + struct.pack(">Q", 1) + b"\x00" + short[1] + short[2]


def content(size: int) -> bytes:
    return struct.pack(">HHQH", spec.Basic.INDEX, 0, size, 0)


# Before the connection is open ------------------------------------------------------------------------


def endless_frame(peer: Peer) -> None:
    peer.send(struct.pack(">BHI", spec.FRAME_METHOD, 0, 0xFFFF_FFF0))
    peer.endlessly(b"\0" * 65_536)


def endless_heartbeats(peer: Peer) -> None:
    peer.endlessly(raw_frame(HEARTBEAT, 0, b"") * 1000)


def huge_properties(peer: Peer) -> None:
    peer.start(table(b"\x01aS" + long_string(b"x" * 4_000_000)))


def deep_properties(peer: Peer) -> None:
    peer.start(deep(10_000))


def closed_with_a_megabyte(peer: Peer) -> None:
    peer.start()
    text = b"x" * 1_048_576
    peer.send(raw_method(0, spec.Connection.Close.INDEX, b"\x01\x40" + b"\xff" + text + b"\0\0\0\0"))


def closed_with_control_codes(peer: Peer) -> None:
    peer.start()
    text = b"\x1b[2J\r\nforged\xff" * 15
    fields = b"\x01\x40" + bytes([len(text)]) + text + b"\0\0\0\0"
    peer.send(raw_method(0, spec.Connection.Close.INDEX, fields))


BEFORE: dict[str, Callable[[Peer], None]] = {
    "it says nothing": lambda peer: None,
    "it hangs up": lambda peer: peer.connection.close(),
    "random bytes": lambda peer: peer.send(RANDOM),
    "random bytes without end": lambda peer: peer.endlessly(RANDOM),
    "an HTTP server": lambda peer: peer.send(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"),
    "another protocol version without end": lambda peer: peer.endlessly(b"AMQP\x00\x01\x00\x00" * 1000),
    "a frame of four gigabytes": endless_frame,
    "heartbeats without end": endless_heartbeats,
    "server properties of 4 MB": huge_properties,
    "server properties 10,000 deep": deep_properties,
    "a frame without its end": lambda peer: peer.send(raw_frame(spec.FRAME_METHOD, 0, b"\0" * 20, b"\0")),
    "a method that does not exist": lambda peer: peer.send(raw_method(0, 0x7777_7777, b"")),
    "frames of at most one byte": lambda peer: peer.open(largest=1),
    "a goodbye of a megabyte": closed_with_a_megabyte,
    "a goodbye with control codes": closed_with_control_codes,
}

# After it -----------------------------------------------------------------------------------------------


def message_without_end(peer: Peer) -> None:
    channel = peer.open_channel()
    peer.send(raw_method(channel, spec.Basic.Deliver.INDEX, deliver(b"unknown")))
    peer.send(raw_frame(HEADER, channel, content(2**63)))
    peer.endlessly(raw_frame(BODY, channel, b"x" * 65_536))


def unknown_consumer(peer: Peer) -> None:
    channel = peer.open_channel()
    for _ in range(1000):
        peer.send(
            raw_method(channel, spec.Basic.Deliver.INDEX, deliver(b"unknown", b"\xff")),
            raw_frame(HEADER, channel, content(1)),
            raw_frame(BODY, channel, b"x"),
        )
    peer.connection.close()


def unknown_channel(peer: Peer) -> None:
    peer.open_channel()
    peer.endlessly(raw_method(999, spec.Basic.Deliver.INDEX, deliver(b"unknown")) * 100)


def answers_to_nothing(peer: Peer) -> None:
    channel = peer.open_channel()
    for answer in (
        spec.Basic.ConsumeOk("unknown"),
        spec.Basic.CancelOk("unknown"),
        spec.Basic.Cancel("unknown"),
        spec.Queue.DeclareOk("other", 7, 7),
        spec.Basic.Ack(77, True),
    ):
        peer.say(channel, answer)
    peer.connection.close()


def closed_channels(peer: Peer) -> None:
    peer.open()
    while True:
        channel, _ = peer.method(spec.Channel.Open)
        peer.say(channel, spec.Channel.OpenOk())
        peer.say(channel, spec.Channel.Close(506, "x" * 255, 0, 0))


def body_before_its_header(peer: Peer) -> None:
    channel = peer.open_channel()
    peer.send(raw_frame(BODY, channel, b"x"), raw_frame(HEADER, channel, content(1)))


AFTER: dict[str, Callable[[Peer], None]] = {
    "it goes silent": lambda peer: peer.open(heartbeat=1),
    "a single channel": lambda peer: peer.open(channels=1),
    "random bytes": lambda peer: (peer.open(), peer.send(RANDOM), None)[-1],
    "a message without end": message_without_end,
    "messages for an unknown consumer": unknown_consumer,
    "frames for a channel that is not open": unknown_channel,
    "answers to what was not asked": answers_to_nothing,
    "every channel is closed again": closed_channels,
    "a body before its header": body_before_its_header,
}

SCRIPTS = {f"before it is open: {name}": script for name, script in BEFORE.items()} | {
    f"after it is open: {name}": script for name, script in AFTER.items()
}
SLOW = {
    "before it is open: it says nothing",
    "before it is open: another protocol version without end",
    "before it is open: heartbeats without end",
    "before it is open: a goodbye of a megabyte",
    "after it is open: it goes silent",
    "after it is open: a single channel",
    "after it is open: messages for an unknown consumer",
    "after it is open: answers to what was not asked",
    "after it is open: every channel is closed again",
    "after it is open: frames for a channel that is not open",
    "after it is open: a body before its header",
    "before it is open: server properties 10,000 deep",
}
"""Worker or operator waits for a timeout or between attempts, for 10 to 30 s, or another row is as hard."""

scripts = pytest.mark.parametrize("title", some_slow(SCRIPTS, SLOW))


@scripts
def test_worker_survives_hostile_broker(vhost: VirtualHost, workers: Workers, title: str) -> None:
    """It survives, reports the error, and works as soon as RabbitMQ is there."""
    script = SCRIPTS[title]
    with hostile_broker(script, vhost.broker.port) as broker:
        url = vhost.url.replace(f":{vhost.broker.port}/", f":{broker.port}/")
        worker = workers.start(url, "--concurrency", "3", "--heartbeat", "10")
        eventually(lambda: worker.request("/readyz")[0] == 200)
        before = memory(worker.process.pid, "VmRSS")
        eventually(lambda: broker.connections >= 2 or script is closed_channels, 60)
        eventually(lambda: any(entry["level"] == "warning" for entry in worker.log_entries))
        assert worker.request("/livez")[0] == 200
        assert memory(worker.process.pid, "VmHWM") - before < MORE_MEMORY
        broker.heal()
        eventually(lambda: worker.status()["consuming"], 60)
        publish(vhost, {"id": 1})
        eventually(lambda: worker.events_of("end") == [1])
        assert len(worker.log) < LARGEST_LOG
        assert all(character.isprintable() for character in worker.log.replace("\n", ""))


@scripts
async def test_operator_survives_hostile_broker(
    vhost: VirtualHost, title: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its one connection to that broker fails with a reason, the loop serves others, and it reconnects."""
    caplog.set_level(logging.CRITICAL, "pika")  # as the process does it
    with hostile_broker(SCRIPTS[title], vhost.broker.port) as hostile:
        url = vhost.url.replace(f":{vhost.broker.port}/", f":{hostile.port}/")
        tracemalloc.start()
        try:
            async with probe(url) as broker, asyncio.timeout(120):
                problem = await first_trouble(broker.ready, lambda: broker.counts("jobs"))
                assert problem.reason in {
                    Reason.BROKER_UNREACHABLE,
                    Reason.BROKER_TIMEOUT,
                    Reason.QUEUE_REFUSED,
                }
                assert len(problem.message) < 1_000
                await until(lambda: hostile.connections >= 2, 60)
                assert tracemalloc.get_traced_memory()[1] < MORE_MEMORY
                hostile.heal()
                await until(lambda: hostile.passed_on > 0 and broker.connected, 60)
                await broker.declare(plan(QueueSettings("jobs")))
                assert await broker.install_doorbell("jobs")
        finally:
            tracemalloc.stop()
        assert len(caplog.text) < LARGEST_LOG


async def first_trouble(*asks: Callable[[], object]) -> ReconcileError:
    """Send requests until one fails."""
    while True:
        for ask in asks:
            try:
                await ask()  # type: ignore[misc]
            except ReconcileError as problem:
                return problem
            except Exception as error:
                raise AssertionError(f"no trouble, but {error!r}") from error
