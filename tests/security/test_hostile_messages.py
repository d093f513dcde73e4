"""A hostile publisher: each of its messages is handled or dead-lettered and stops no worker.

Properties are sent as raw bytes, since ordinary clients refuse to write hostile ones.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import pika
import pytest

from tests.support.brokers import channel_of, probe, put
from tests.support.commands import workqueue
from tests.support.httpserver import say, server
from tests.support.rabbitmq import VirtualHost
from tests.support.tiers import some_slow
from tests.support.wait import eventually, until
from tests.support.worker import Workers, publish, take_all
from workqueue.contract.topology import QueueSettings, plan

HEADERS, MESSAGE_ID, CORRELATION_ID, TYPE, TIMESTAMP = 0x2000, 0x0080, 0x0400, 0x0020, 0x0040


class Raw(pika.BasicProperties):
    """Properties in wire format: the flags and the bytes after them."""

    def __init__(self, flags: int, content: bytes) -> None:
        super().__init__()
        self._raw = struct.pack(">H", flags) + content

    def encode(self) -> list[bytes]:
        return [self._raw]


def short(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def table(*fields: bytes) -> bytes:
    content = b"".join(fields)
    return struct.pack(">I", len(content)) + content


def text(value: bytes) -> bytes:
    return b"S" + struct.pack(">I", len(value)) + value


def headers(**fields: bytes) -> Raw:
    return Raw(HEADERS, table(*(short(name.encode()) + value for name, value in fields.items())))


def nested(depth: int, letter: bytes = b"F") -> bytes:
    """A table in a table, or a list in a list."""
    value = b"V"
    for _ in range(depth):
        value = b"F" + table(short(b"a") + value) if letter == b"F" else b"A" + table(value)
    return value


HOSTILE: dict[str, Raw] = {
    "a table of 3,000 tables, one in the other": headers(deep=nested(3_000)),
    "a list of 3,000 lists, one in the other": headers(deep=nested(3_000, b"A")),
    "a time 500 million years from now": headers(time=b"T" + struct.pack(">Q", 2**62)),
    "a message id that is no UTF-8": Raw(MESSAGE_ID, short(b"\xff\xfe")),
    "a message id of 255 bytes": Raw(MESSAGE_ID, short(b"i" * 255)),
    "a message id with NUL, line breaks and colours": Raw(MESSAGE_ID, short(b"a\0b\r\nc\x1b[31md")),
    "a header whose name is no UTF-8": Raw(HEADERS, table(short(b"\xff") + text(b"x"))),
    "a header without a name": Raw(HEADERS, table(short(b"") + text(b"x"))),
    "a header of 100 KiB": headers(huge=text(b"x" * 100_000)),
    "headers that fill the frame": headers(huge=text(b"x" * 130_900)),
    "10,000 headers": headers(**{f"h{number}": b"V" for number in range(10_000)}),
    "an attempt number that is the largest": headers(
        **{"x-workqueue-attempt": b"l" + struct.pack(">q", 2**63 - 1)}
    ),
    "an attempt number below zero": headers(**{"x-workqueue-attempt": b"l" + struct.pack(">q", -(2**63))}),
    "project headers of another type": headers(
        **{
            "x-workqueue-attempt": nested(2),
            "x-workqueue-original-expiration": nested(2),
            "x-workqueue-original-user-id": b"t\x01",
            "x-workqueue-original-cc": text(b"other"),
            "x-workqueue-failure-message": nested(2),
            "x-workqueue-failed-at": text(b"\x1b]0;title\x07"),
            "x-death": nested(2, b"A"),
        }
    ),
    "the largest time stamp": Raw(TIMESTAMP, struct.pack(">Q", 2**64 - 1)),
}


def send(vhost: VirtualHost, raw: pika.BasicProperties | None, *bodies: bytes, queue: str = "jobs") -> None:
    with vhost.connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for body in bodies:
            channel.basic_publish("", queue, body, raw, mandatory=True)


BY_DAY = {
    "a table of 3,000 tables, one in the other",
    "a message id with NUL, line breaks and colours",
    "a header whose name is no UTF-8",
    "headers that fill the frame",
    "an attempt number below zero",
}


@pytest.mark.parametrize("title", some_slow(HOSTILE, HOSTILE.keys() - BY_DAY))
def test_messages_with_hostile_properties_are_handled_or_dead_lettered(
    vhost: VirtualHost, workers: Workers, title: str
) -> None:
    """Each once in a message that succeeds, and once in a message that must be copied to other queues."""
    raw = HOSTILE[title]
    worker = workers.start(vhost.url, "--max-attempts", "2").wait_consuming()
    send(vhost, raw, b'{"id": "good"}', b'{"id": "bad", "do": "fail"}')
    publish(vhost, {"id": "after"})
    eventually(lambda: {"good", "after"} <= set(worker.events_of("end")))
    eventually(lambda: worker.outcomes()["dead_lettered"] == 1)
    assert worker.count_log("Connected to RabbitMQ.") <= 2, "for consuming and for publishing, once each"
    with_traceback = {entry["message"] for entry in worker.log_entries if "exception" in entry}
    assert with_traceback <= {"Message given up."}, "but for the handler's own exception"
    assert "\nTraceback" not in worker.log
    assert vhost.depth("jobs.dead") == (1, 0)


@pytest.mark.parametrize("title", HOSTILE)
async def test_hostile_properties_do_not_disturb_operator_connection(vhost: VirtualHost, title: str) -> None:
    """All queues of a broker depend on it."""
    async with probe(vhost.url) as broker, channel_of(vhost) as channel:
        await broker.ready()
        for queue in ("jobs", "others"):
            await broker.declare(plan(QueueSettings(queue)))
            assert await broker.install_doorbell(queue)
        send(vhost, HOSTILE[title], b"x")
        await until(lambda: broker.told.rings == ["jobs"])
        put(channel, "others", b"y")
        await until(lambda: broker.told.rings == ["jobs", "others"])
        assert broker.generation == 1


def test_bodies_of_any_size_and_kind_are_handled(vhost: VirtualHost, workers: Workers) -> None:
    """`Message.json()` rejects each as no JSON, and the message is dead-lettered immediately."""
    worker = workers.start(vhost.url).wait_consuming()
    hostile = [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 100_000,
        b"\0" * (12 * 1024 * 1024),
        bytes(range(256)) * 1000,
        b'"\\ud800',
        b"",
    ]
    send(vhost, None, *hostile)
    publish(vhost, {"id": "after"})
    eventually(lambda: worker.events_of("end") == ["after"])
    eventually(lambda: worker.outcomes() == {"acked": 1, "dead_lettered": len(hostile)})
    assert sorted(body for _, body in take_all(vhost, "jobs.dead")) == sorted(hostile)


INTO_THE_ENVIRONMENT = {
    "LD_PRELOAD": text(b"/tmp/evil.so"),
    "PATH": text(b"/tmp"),
    "PYTHONPATH": text(b"/tmp"),
    "a=b": text(b"equals"),
    "a\0b": text(b"nul in the name"),
    "nul": text(b"nul\0in the value"),
    "lines": text(b"one\nPATH=/tmp"),
    "BASH_FUNC_ls%%": text(b"() { :; }"),
    "bytes": b"x" + struct.pack(">I", 2) + b"\xff\xfe",
    "WORKQUEUE_URL": text(b"amqp://elsewhere"),
    "long": text(b"x" * 100_000),
}


def pairs(environment: bytes) -> dict[bytes, bytes]:
    """NAME=VALUE, each ended by NUL, as in the kernel and env."""
    parts = [pair.partition(b"=") for pair in environment.split(b"\0") if pair]
    return {name: value for name, _, value in parts}


def test_headers_reach_command_only_under_project_names(
    vhost: VirtualHost, workers: Workers, tmp_path: Path
) -> None:
    script = f"env -0 > {tmp_path}/env"
    worker = workers.start(vhost.url, "--exec", "sh", "-c", script, handler=None).wait_consuming()
    fields = (short(name.encode()) + value for name, value in INTO_THE_ENVIRONMENT.items())
    content = table(*fields) + short(b"id\0\n\xff")
    send(vhost, Raw(HEADERS | MESSAGE_ID, content), b"x")
    eventually(lambda: worker.outcomes() == {"acked": 1})
    found = pairs((tmp_path / "env").read_bytes())
    ours = {name for name in found if name.startswith((b"WORKQUEUE_HEADER_", b"WORKQUEUE_MESSAGE_"))}
    workers_own = pairs(Path(f"/proc/{worker.process.pid}/environ").read_bytes())
    the_shells = {b"_", b"PWD", b"OLDPWD", b"SHLVL"}
    assert found.keys() - ours - the_shells == workers_own.keys() - the_shells
    assert not {name for name in workers_own.keys() - the_shells if found[name] != workers_own[name]}
    assert all(re.fullmatch(rb"[A-Z0-9_]+", name) for name in ours)
    assert found[b"WORKQUEUE_HEADER_NUL"] == b"nulin the value"
    assert found[b"WORKQUEUE_MESSAGE_MESSAGE_ID"] == b"id\n\\xff"


def test_properties_reach_http_handler_as_single_header_lines(vhost: VirtualHost, workers: Workers) -> None:
    crlf = b"x\r\nInjected: yes\r\n\r\nPOST /admin HTTP/1.1\r\n"
    raw = Raw(
        0x8000 | HEADERS | CORRELATION_ID | MESSAGE_ID | TYPE,
        short(b"text/plain" + crlf)
        + table(short(b"Injected\r\nInjected") + text(crlf))
        + short(crlf)
        + short(b"\xff" + crlf)
        + short(crlf),
    )
    with server(say(200)) as requests:
        worker = workers.start(vhost.url, "--http", requests.url, handler=None).wait_consuming()
        send(vhost, raw, b"body")
        eventually(lambda: worker.outcomes() == {"acked": 1})
    [(seen, body)] = requests.seen
    assert body == b"body"
    assert not {name for name in seen if "inject" in name.lower()}
    assert json.loads(seen["Workqueue-Headers"]) == {"Injected\r\nInjected": crlf.decode()}


def test_message_cannot_forge_log_lines(vhost: VirtualHost, workers: Workers) -> None:
    """In both log formats a message id or a reason is one value in one line, without control codes."""
    for number, form in enumerate(("json", "text")):
        queue = f"jobs-{form}"
        worker = workers.start(vhost.url, "--max-attempts", "1", "--log-format", form, queue=queue)
        eventually(lambda worker=worker: "Connected to RabbitMQ" in worker.log)
        forged = "x\n23:59:59\tERROR\tforged\x1b[2J\x9b2J\u2028\u202eend"
        body = json.dumps({"id": 1, "do": "reject", "why": forged}).encode()
        eventually(lambda queue=queue: vhost.exists(queue) and vhost.exists(f"{queue}.dead"))
        send(vhost, Raw(MESSAGE_ID, short(forged.encode())), body, queue=queue)
        eventually(lambda worker=worker: "Message given up" in worker.log)
        [line] = [line for line in worker.log.split("\n") if "Message given up" in line]
        assert line.count("forged") == 2, number
        assert all(character.isprintable() for character in worker.log.replace("\n", ""))


def test_dead_letter_prints_no_control_codes_to_terminal(vhost: VirtualHost, workers: Workers) -> None:
    worker = workers.start(vhost.url, "--max-attempts", "1").wait_consuming()
    why = "line\x1b]0;title\x07\x1b[2J\x9b2J\r\u202e"
    body = json.dumps({"id": 1, "do": "reject", "why": why}).encode() + b" \x1b[31m"
    send(
        vhost,
        Raw(HEADERS | MESSAGE_ID, table(short(b"\x1b[2J\xff") + text(b"\x1b[2J")) + short(b"\xff\x1b[2J")),
        body[:-6],
    )
    send(vhost, headers(text=text(b"x")), b"\x1b[2J no json \x9b2J".decode("latin-1").encode())
    eventually(lambda: worker.outcomes() == {"dead_lettered": 2})
    for words in (("list",), ("show",), ("list", "--json"), ("show", "--json")):
        done = workqueue("dead", *words, "--queue", "jobs", url=vhost.url)
        assert done.code == 0, done.err
        assert all(character.isprintable() or character == "\n" for character in done.out), words
    done = workqueue("peek", "--queue", "jobs.dead", "-n", "2", url=vhost.url)
    assert all(character.isprintable() or character == "\n" for character in done.out)
    done = workqueue("dead", "replay", "--queue", "jobs", url=vhost.url)
    assert (done.code, done.out) == (0, "2 messages replayed to jobs.\n")
