"""`workqueue send`, as people run it."""

# ruff: noqa: E501 - a table reads best with a row a line

import json
import os
import pty
import signal
import subprocess
from contextlib import suppress

import pytest

from tests.support.commands import COMMAND, environment, started, workqueue
from tests.support.wait import eventually


@pytest.fixture
def hello(vhost):
    """A virtual host with the queue hello."""
    with vhost.connect() as connection:
        connection.channel().queue_declare("hello", durable=True, arguments={"x-queue-type": "quorum"})
    return vhost


def sent(vhost, queue="hello"):
    with vhost.connect() as connection:
        arriving = connection.channel().consume(queue, auto_ack=True)
        return [next(arriving)[1:] for _ in range(vhost.depth(queue).ready)]


def bodies(vhost):
    return [body for _, body in sent(vhost)]


def test_send_declares_queue_on_a_new_broker(every_vhost):
    done = workqueue("send", "--queue", "hello", "--declare", "Hello World!", url=every_vhost.url)
    assert (done.code, done.out, done.err) == (0, "1 message of 1 confirmed.\n", "")
    assert every_vhost.exists("hello.dead")
    [(properties, body)] = sent(every_vhost)
    assert body == b"Hello World!"
    assert (properties.delivery_mode, properties.content_type) == (2, "text/plain")
    assert properties.message_id
    assert properties.timestamp


def test_send_options_become_properties(hello):
    done = workqueue(
        *("send", "--queue", "hello", "a", "b", "--header", "k=v", "--header", "e=x=y"),
        *("--priority", "3", "--content-type", "text/x", "--json"),
        url=hello.url,
    )
    assert done.code == 0
    assert done.json == {"confirmed": 2, "failed": [], "complete": True}
    for properties, _ in sent(hello):
        assert properties.headers == {"k": "v", "e": "x=y"}
        assert (properties.priority, properties.content_type) == (3, "text/x")


@pytest.mark.parametrize("flag", ["--stdin", "-"])
def test_send_publishes_one_message_per_input_line(hello, flag):
    done = workqueue("send", "--queue", "hello", flag, url=hello.url, stdin="one\ntwo\r\n\nü\nlast")
    assert (done.code, done.out) == (0, "5 messages of 5 confirmed.\n")
    assert bodies(hello) == [b"one", b"two", b"", "ü".encode(), b"last"]


def test_send_accepts_json_lines(hello, tmp_path):
    file = tmp_path / "jobs.jsonl"
    file.write_text(
        '{"body": "text", "id": "m1", "headers": {"n": 2, "t": "x"}, "priority": 7}\n\n'
        '{"body": {"a": [1, "ü"]}, "contentType": "application/x", "correlationId": "c"}\n'
        '{"body": {"a": 1}}\n{"bodyBase64": "AP8="}\n'
    )
    done = workqueue("send", "--queue", "hello", "--jsonl", str(file), "--header", "h=1", url=hello.url)
    assert (done.code, done.out) == (0, "4 messages of 4 confirmed.\n")
    (p1, b1), (p2, b2), (p3, b3), (p4, b4) = sent(hello)
    assert (p1.message_id, p1.headers, p1.priority, b1) == ("m1", {"h": "1", "n": 2, "t": "x"}, 7, b"text")
    assert (p2.content_type, p2.correlation_id, json.loads(b2)) == ("application/x", "c", {"a": [1, "ü"]})
    assert (p3.content_type, b3) == ("application/json", b'{"a": 1}')
    assert (p4.content_type, b4) == ("application/octet-stream", b"\x00\xff")


def test_send_publishes_one_message_per_file(hello, tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    (tmp_path / "b").write_bytes(bytes(300_000))
    done = workqueue(
        "send", "--queue", "hello", "--files", f"{tmp_path}/a.png", f"{tmp_path}/b", url=hello.url
    )
    assert (done.code, done.out) == (0, "2 messages of 2 confirmed.\n")
    (p1, b1), (p2, b2) = sent(hello)
    assert (p1.content_type, p1.headers, b1) == ("image/png", {"filename": "a.png"}, b"\x89PNG")
    assert (p2.content_type, p2.headers, b2) == (
        "application/octet-stream",
        {"filename": "b"},
        bytes(300_000),
    )


def test_send_delays_a_message(hello):
    done = workqueue("send", "--queue", "hello", "--delay", "1", "later", url=hello.url)
    assert (done.code, done.out) == (0, "1 message of 1 confirmed.\n")
    eventually(lambda: hello.depth("hello").ready == 1)
    assert hello.exists("hello.retry.step.1s")
    assert bodies(hello) == [b"later"]


def test_delayed_json_lines_keep_their_priorities(hello, tmp_path):
    file = tmp_path / "jobs.jsonl"
    file.write_text('{"body": "high", "priority": 7}\n{"body": "low", "priority": 1}\n{"body": "none"}\n')

    done = workqueue("send", "--queue", "hello", "--delay", "1", "--jsonl", str(file), url=hello.url)

    assert (done.code, done.out) == (0, "3 messages of 3 confirmed.\n")
    eventually(lambda: hello.depth("hello").ready == 3)
    found = {body: properties.priority for properties, body in sent(hello)}
    assert found == {b"high": 7, b"low": 1, b"none": None}


def test_send_publishes_to_an_exchange(hello):
    with hello.connect() as connection:
        channel = connection.channel()
        channel.exchange_declare("images", "topic", durable=True)
        channel.queue_bind("hello", "images", "thumb.*")
    place = ("send", "--exchange", "images", "--routing-key")
    assert workqueue(*place, "thumb.small", "x", url=hello.url).code == 0
    done = workqueue(*place, "other", "x", "y", "--json", url=hello.url)
    assert done.code == 1
    assert done.json["confirmed"] == 0
    assert [(one["message"], one["error"]) for one in done.json["failed"]] == [
        ("message 1", "Returned"),
        ("message 2", "Returned"),
    ]
    assert not done.json["complete"]


def test_send_to_missing_queue_fails(every_vhost):
    done = workqueue("send", "--queue", "nope", "x", url=every_vhost.url)
    assert done.code == 1
    assert done.out == "0 messages of 1 confirmed.\n"
    assert done.err == (
        "message 1: returned: queue nope does not exist: apply its WorkQueue or use --declare.\n"
    )


def test_endless_stream_to_missing_queue_ends(vhost, tmp_path):
    send = ("send", "--queue", "nope", "--stdin")
    errors = tmp_path / "stderr"
    with (
        errors.open("wb") as stderr,
        started(send, vhost.url, stdin=subprocess.PIPE, stderr=stderr) as command,
    ):
        with suppress(BrokenPipeError):
            while True:
                os.write(command.stdin.fileno(), b"x\n" * 1000)
        assert command.wait() == 1
    assert "Not everything was sent: stopped before line" in errors.read_text()


def test_messages_refused_by_full_queue_are_named(vhost):
    with vhost.connect() as connection:
        connection.channel().queue_declare(
            "full", durable=True, arguments={"x-max-length": 2, "x-overflow": "reject-publish"}
        )
    done = workqueue("send", "--queue", "full", *map(str, range(50)), "--json", url=vhost.url)
    assert done.code == 1
    failed = done.json["failed"]
    assert {one["error"] for one in failed} == {"Refused"}
    assert done.json["confirmed"] == 50 - len(failed) == vhost.depth("full").ready
    assert all(one["message"] in done.err for one in failed)


def test_sigterm_stops_send_and_reports_confirmed_messages(hello):
    with started(
        ("send", "--queue", "hello", "--stdin", "--json"),
        hello.url,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as command:
        command.stdin.write(b"".join(b"%d\n" % number for number in range(1000)))
        command.stdin.flush()
        eventually(lambda: hello.depth("hello").ready == 1000)
        with hello.broker.frozen():
            command.stdin.write(b"x\n" * 100)
            command.stdin.flush()
            os.kill(command.pid, signal.SIGTERM)
            out = command.stdout.read()
        assert command.wait() == 130
    report = json.loads(out)
    assert not report["complete"]
    assert {one["error"] for one in report["failed"]} <= {"Unconfirmed", "NotSent"}
    # RabbitMQ stores a message before it confirms it, so some of the 1000 may be unconfirmed.
    assert hello.depth("hello").ready >= report["confirmed"]
    assert report["confirmed"] + len(report["failed"]) >= 1000


def test_bad_json_line_in_file_is_found_before_sending(hello, tmp_path):
    file = tmp_path / "jobs.jsonl"
    file.write_text('{"body": 1}\n{"boddy": 2}\n')
    done = workqueue("send", "--queue", "hello", "--jsonl", str(file), url=hello.url)
    assert done.code == 2
    assert done.err.endswith(
        'error: line 2: it must be a JSON object with the key "body" or the key "bodyBase64". Nothing was sent.\n'
    )
    assert hello.depth("hello").ready == 0


def test_bad_json_line_in_stream_stops_send(hello):
    done = workqueue(
        "send", "--queue", "hello", "--jsonl", "-", url=hello.url, stdin='{"body": 1}\n[]\n{"body": 3}\n'
    )
    assert (done.code, done.out) == (1, "1 message of 1 confirmed.\n")
    assert "Not everything was sent: line 2: it must be" in done.err
    assert bodies(hello) == [b"1"]


BAD_LINES = [
    ("no JSON", "x", "Expecting value"),
    ("both bodies", '{"body": 1, "bodyBase64": ""}', "must be a JSON object with the key"),
    ("an unknown key", '{"body": 1, "prio": 1}', "unknown key 'prio'"),
    ("headers that are no object", '{"body": 1, "headers": 1}', "the key 'headers' must be an object"),
    ("a priority that is no number", '{"body": 1, "priority": true}', "the key 'priority' must be a number"),
    ("an id that is no string", '{"body": 1, "id": 1}', "the key 'id' must be a string"),
    ("base64 that is none", '{"bodyBase64": "?"}', "the key 'bodyBase64' must be base64"),
    ("base64 that is a number", '{"bodyBase64": 1}', "the key 'bodyBase64' must be base64"),
]


@pytest.mark.parametrize(("line", "words"), [row[1:] for row in BAD_LINES], ids=[row[0] for row in BAD_LINES])
def test_bad_json_line_is_named(line, words):
    from workqueue.amqp.outgoing import Outgoing
    from workqueue.cli.message_sources import InputError, from_json_lines

    with pytest.raises(InputError, match=r"^line 1: ") as caught:
        list(from_json_lines([line.encode()], Outgoing("q", b"")))
    assert words in str(caught.value)


BAD_USAGE = [
    ("no place", ["x"], "one of the arguments --queue --exchange is required"),
    ("two places", ["--queue", "q", "--exchange", "e", "x"], "not allowed with argument --queue"),
    ("an empty queue", ["--queue", "", "x"], "--queue is empty"),
    ("a routing key with a queue", ["--queue", "q", "--routing-key", "k", "x"], "--routing-key goes with --exchange"),
    ("declaring an exchange", ["--exchange", "e", "--declare", "x"], "--declare and --delay go with --queue"),
    ("no message", ["--queue", "q"], "give messages, or one of --stdin, --jsonl and --files"),
    ("two sources", ["--queue", "q", "x", "--stdin"], "give messages, or one of --stdin, --jsonl and --files"),
    ("a header without a value", ["--queue", "q", "x", "--header", "k"], "'k' is not NAME=VALUE"),
    ("a priority that is too high", ["--queue", "q", "x", "--priority", "256"], "'256' is not a number from 0 to 255"),
    ("a delay of nothing", ["--queue", "q", "x", "--delay", "0"], "'0' is not a number of seconds above 0, up to 2592000"),
    ("a delay that is too long", ["--queue", "q", "x", "--delay", "1e9"], "'1e9' is not a number of seconds above 0, up to 2592000"),
    ("a delay that is no number", ["--queue", "q", "x", "--delay", "nan"], "'nan' is not a number of seconds above 0, up to 2592000"),
    ("a timeout of nothing", ["--queue", "q", "x", "--timeout", "0"], "'0' is not a number of seconds above 0"),
    ("a timeout below zero", ["--queue", "q", "x", "--timeout", "-1"], "'-1' is not a number of seconds above 0"),
    ("a timeout that is no number", ["--queue", "q", "x", "--timeout", "nan"], "'nan' is not a number of seconds above 0"),
    ("a timeout without end", ["--queue", "q", "x", "--timeout", "inf"], "'inf' is not a number of seconds above 0"),
    ("a file that does not exist", ["--queue", "q", "--jsonl", "/nope"], "/nope cannot be read: No such file"),
    ("a bad URL", ["--queue", "q", "x", "--url", "http://h"], "it must start with amqp:// or amqps://"),
    ("a URL and a folder", ["--queue", "q", "x", "--url", "amqp://h", "--binding", "/b"], "--url or --binding, not both"),
    ("a folder that does not exist", ["--queue", "q", "x", "--binding", "/nope"], "The connection folder /nope cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"), [row[1:] for row in BAD_USAGE], ids=[row[0] for row in BAD_USAGE]
)
def test_bad_usage_exits_with_2_and_advice(capsys, monkeypatch, arguments, words):
    from workqueue.cli.main import main

    for name in ("WORKQUEUE_URL", "WORKQUEUE_BINDING", "SERVICE_BINDING_ROOT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as caught:
        main(["send", *arguments])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


UNREACHABLE = [
    (
        "no listener",
        "amqp://127.0.0.1:1/",
        r"RabbitMQ at amqp://127.0.0.1:1/ cannot be used: Connection refused",
    ),
]


def test_unreachable_broker_is_reported_without_waiting():
    done = workqueue("send", "--queue", "q", "--timeout", "3600", "x", url="amqp://127.0.0.1:1/")
    assert done.code == 1
    assert done.err.startswith(
        "workqueue send: RabbitMQ at amqp://127.0.0.1:1/ cannot be used: Connection refused"
    )


def test_wrong_password_is_reported_and_not_shown(vhost):
    url = vhost.broker.url_of(vhost.name, "guest", "s3cr3t")
    done = workqueue("send", "--queue", "q", "x", url=url)
    assert done.code == 1
    assert "ACCESS_REFUSED" in done.err
    assert "s3cr3t" not in done.out + done.err


def bind(folder, vhost):
    keys = {
        "type": "rabbitmq",
        "host": "127.0.0.1",
        "port": str(vhost.broker.port),
        "username": "guest",
        "password": "guest",
        "virtual-host": vhost.name,
    }
    folder.mkdir(parents=True)
    for key, value in keys.items():
        (folder / key).write_text(value)


def test_connection_flags_override_the_environment(hello, tmp_path):
    bind(tmp_path / "bindings/rabbitmq", hello)
    (tmp_path / "bindings/other").mkdir()
    (tmp_path / "bindings/other/type").write_text("postgresql")
    send = ("send", "--queue", "hello", "x")
    folder, wrong = str(tmp_path / "bindings/rabbitmq"), "amqp://127.0.0.1:1/"
    assert workqueue(*send, "--url", hello.url, WORKQUEUE_URL=wrong).code == 0
    assert workqueue(*send, "--binding", folder, WORKQUEUE_URL=wrong).code == 0
    assert workqueue(*send, WORKQUEUE_BINDING=folder).code == 0
    assert workqueue(*send, SERVICE_BINDING_ROOT=str(tmp_path / "bindings")).code == 0
    assert hello.depth("hello").ready == 4
    bind(tmp_path / "bindings/second", hello)
    done = workqueue(*send, SERVICE_BINDING_ROOT=str(tmp_path / "bindings"))
    assert done.code == 2
    assert (
        "must contain one binding of type rabbitmq, but contains rabbitmq, second. Choose one with WORKQUEUE_BINDING."
        in done.err
    )


def shown_on(terminal):
    """All that the only program of a terminal writes to it. A terminal that is not read blocks its program."""
    with suppress(OSError):  # the program has ended
        while data := os.read(terminal, 4096):
            yield data


@pytest.mark.parametrize("with_rich", [True, False], ids=["with rich", "without rich"])
def test_send_shows_progress_on_a_terminal(hello, tmp_path, with_rich):
    if not with_rich:
        (tmp_path / "rich.py").write_text("raise ImportError")
    parent, child = pty.openpty()
    env = environment(hello.url, TERM="xterm")
    env["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{env['PYTHONPATH']}"
    with subprocess.Popen(
        [*COMMAND, "send", "--queue", "hello", *map(str, range(20))],
        env=env,
        stdout=subprocess.PIPE,
        stderr=child,
    ) as command:
        os.close(child)
        shown = b"".join(shown_on(parent)).decode()
        out = command.stdout.read()
    os.close(parent)
    assert command.returncode == 0
    assert out == b"20 messages of 20 confirmed.\n"
    assert "sending" in shown
