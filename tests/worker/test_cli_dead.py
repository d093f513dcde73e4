"""`workqueue dead`, `peek` and `stats`, as people run them."""

import os
import signal
import subprocess
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.commands import started, workqueue
from tests.support.ports import free_port
from tests.support.wait import eventually
from workqueue.amqp.outgoing import Outgoing
from workqueue.amqp.publish_pipeline import PublishPipeline
from workqueue.amqp.session import Received
from workqueue.contract import dead_letters, durations, topology
from workqueue.contract.binding import from_url
from workqueue.contract.properties import Properties
from workqueue.contract.topology import BrokerVersion, QueueSettings


def fill(vhost, *outgoings, settings=None):
    """Declare the work queue jobs, and publish."""
    with PublishPipeline(lambda: from_url(vhost.url), "test") as publisher:
        publisher.declare_plan(topology.plan(settings or QueueSettings("jobs"))).result()
        for future in [publisher.publish(outgoing) for outgoing in outgoings]:
            future.result()


def letter(name, reason="Exception", age=0, **properties):
    """A dead letter in the worker's format."""
    headers = {
        "mine": name,
        "x-workqueue-attempt": 5,
        "x-workqueue-failure-reason": reason,
        "x-workqueue-failure-message": f"{name} failed\nbadly",
        "x-workqueue-failure-traceback": "Traceback ...",
        "x-workqueue-failed-at": (datetime.now(UTC) - timedelta(seconds=age)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "x-workqueue-worker": "pod-1",
        **properties.pop("headers", {}),
    }
    return Outgoing("jobs.dead", name.encode(), headers=headers, message_id=name, **properties)


def taken(vhost, queue):
    """All messages of a queue, by id."""
    with vhost.connect() as connection:
        arriving = connection.channel().consume(queue, auto_ack=True)
        found = [next(arriving)[1:] for _ in range(vhost.depth(queue).ready)]
    return {properties.message_id: (properties, body) for properties, body in found}


def dead(vhost, action, *arguments, queue="jobs"):
    return workqueue("dead", action, "--queue", queue, *arguments, url=vhost.url)


def test_dead_list_shows_reason_and_time_and_takes_nothing(every_vhost):
    fill(every_vhost, letter("a", "Rejected"), letter("b", "TimedOut", age=7200))
    done = dead(every_vhost, "list")
    assert (done.code, done.err) == (0, "")
    first, second, third, last = done.out.splitlines()
    assert first.split() == ["ID", "FAILED", "AT", "(UTC)", "ATTEMPTS", "REASON", "MESSAGE"]
    assert second.split()[0] == "a"
    assert second.split()[3:] == ["5", "Rejected", "a", "failed\\nbadly"]
    assert third.split()[4] == "TimedOut"
    assert last == "2 of 2 dead letters of jobs."
    eventually(lambda: every_vhost.depth("jobs.dead") == (2, 0))
    document = dead(every_vhost, "list", "--json", "--reason", "timedout").json
    assert (document["queue"], document["total"], [one["id"] for one in document["messages"]]) == (
        "jobs",
        2,
        ["b"],
    )
    assert document["messages"][0] | {"failedAt": ""} == {
        "id": "b",
        "reason": "TimedOut",
        "message": "b failed\nbadly",
        "attempts": 5,
        "failedAt": "",
        "worker": "pod-1",
        "size": 1,
    }


def test_dead_letter_of_rabbitmq_shows_its_reason(every_vhost):
    fill(
        every_vhost,
        Outgoing("jobs", b"x", message_id="a", headers={"x-workqueue-failure-reason": "Exception"}),
    )
    with every_vhost.connect() as connection:
        channel = connection.channel()
        tag = eventually(lambda: (got := channel.basic_get("jobs"))[0] and got[0].delivery_tag)
        channel.basic_reject(tag, requeue=False)
    eventually(lambda: every_vhost.depth("jobs.dead").ready == 1)
    [one] = dead(every_vhost, "list", "--json").json["messages"]
    assert (one["reason"], one["message"]) == ("Rejected", "")
    assert abs(datetime.fromisoformat(one["failedAt"]) - datetime.now(UTC)) < timedelta(minutes=2)


def test_dead_show_prints_everything_and_takes_nothing(vhost):
    fill(vhost, letter("a"), letter("b", headers={"n": 7}))
    done = dead(vhost, "show", "b")
    assert done.code == 0
    for line in (
        "id: b",
        "reason: Exception",
        "  n: 7",
        "  x-workqueue-failure-traceback: Traceback ...",
        "body (1 byte):",
    ):
        assert line in done.out.splitlines()
    assert dead(vhost, "show").out.startswith("id: a\n")
    document = dead(vhost, "show", "b", "--json").json
    assert (document["body"], document["traceback"], document["headers"]["mine"]) == (
        "b",
        "Traceback ...",
        "b",
    )
    missing = dead(vhost, "show", "c")
    assert (missing.code, missing.err) == (
        1,
        "workqueue dead: jobs.dead holds no message whose id is 'c' or begins with it. `dead list` shows the ids.\n",
    )
    eventually(lambda: vhost.depth("jobs.dead") == (2, 0))


def test_beginning_of_an_id_shows_its_only_message(vhost):
    fill(vhost, letter("order-17"), letter("order-18"), letter("order-1"), letter("mail-5"))

    assert dead(vhost, "show", "mail").out.startswith("id: mail-5\n")
    assert dead(vhost, "show", "order-1").out.startswith("id: order-1\n"), "a whole id is never ambiguous"

    ambiguous = dead(vhost, "show", "order")
    first, head, *rows = ambiguous.err.splitlines()
    assert (ambiguous.code, ambiguous.out) == (1, "")
    assert first == "workqueue dead: 3 ids in jobs.dead begin with 'order'. Give more of the id:"
    assert head.startswith("ID ")
    assert [row.split()[0] for row in rows] == ["order-17", "order-18", "order-1"]
    assert dead(vhost, "show", "order", "--json").json["error"].startswith("3 ids in jobs.dead begin")
    eventually(lambda: vhost.depth("jobs.dead") == (4, 0))


def test_long_message_is_whole_in_a_pipe(vhost):
    sentence = "the customer's address has no country, " * 20
    fill(vhost, letter("a", headers={"x-workqueue-failure-message": f"{sentence}\nsecond line"}))

    done = workqueue("dead", "list", "--queue", "jobs", url=vhost.url, COLUMNS="80")

    assert done.out.splitlines()[1].endswith(f"{sentence}\\nsecond line")


def without_time(headers):
    """The headers without the time of the replay, up to which no cancel concerns the message."""
    return {name: value for name, value in headers.items() if name != "x-workqueue-cancels-until"}


def test_replay_restores_message_as_published(every_vhost):
    original = {
        "priority": 3,
        "correlation_id": "c",
        "content_type": "text/x",
        "timestamp": 1_700_000_000,
        "headers": {
            "x-workqueue-original-expiration": "3600000",
            "x-workqueue-original-cc": ["other"],
            "x-death": [{"queue": "jobs.retry.last", "reason": "expired"}],
            "x-workqueue-due-at": 1_700_000_000_000,
        },
    }
    fill(every_vhost, letter("a", **original))
    done = dead(every_vhost, "replay")
    assert (done.code, done.out, done.err) == (0, "1 message replayed to jobs.\n", "")
    eventually(lambda: every_vhost.depth("jobs.dead") == (0, 0))
    properties, body = taken(every_vhost, "jobs")["a"]
    assert body == b"a"
    # CC stays preserved: it would send copies to other queues a second time. The handler sees it restored.
    assert without_time(properties.headers) == {"mine": "a", "x-workqueue-original-cc": ["other"]}
    assert (properties.priority, properties.correlation_id, properties.content_type) == (3, "c", "text/x")
    assert (properties.expiration, properties.timestamp, properties.delivery_mode) == (
        "3600000",
        1_700_000_000,
        2,
    )


def test_replay_can_keep_the_attempts(vhost):
    fill(vhost, letter("a"))
    assert dead(vhost, "replay", "--keep-attempts").code == 0
    assert without_time(taken(vhost, "jobs")["a"][0].headers) == {"mine": "a", "x-workqueue-attempt": 5}


FILTERS = [
    ("by reason", ["--reason", "Rejected"], {"b", "c"}),
    ("by two reasons", ["--reason", "rejected", "--reason", "timedout"], {"b", "c", "d"}),
    ("by age", ["--older-than", "1h"], {"c"}),
    ("by both", ["--reason", "Exception", "--older-than", "1h"], set()),
    ("by id", ["--id", "a", "--id", "d"], {"a", "d"}),
    ("by number", ["-n", "2"], {"a", "b"}),
]


@pytest.mark.parametrize(
    ("arguments", "chosen"), [row[1:] for row in FILTERS], ids=[row[0] for row in FILTERS]
)
def test_replay_takes_only_selected_messages(vhost, arguments, chosen):
    fill(
        vhost,
        letter("a"),
        letter("b", "Rejected"),
        letter("c", "Rejected", age=7200),
        letter("d", "TimedOut", age=60),
    )
    done = dead(vhost, "replay", "--json", *arguments)
    assert (done.code, done.json) == (0, {"queue": "jobs", "replayed": len(chosen), "errors": []})
    assert set(taken(vhost, "jobs")) == chosen
    assert set(taken(vhost, "jobs.dead")) == {"a", "b", "c", "d"} - chosen


def test_replay_to_full_queue_moves_what_fits(every_vhost):
    names = [f"m{number}" for number in range(50)]
    fill(every_vhost, *map(letter, names), settings=QueueSettings("jobs", max_length=3))
    done = dead(every_vhost, "replay", "--json")
    assert done.code == 1
    assert done.json["errors"]
    assert "The other messages are still in the dead-letter queue." in done.err
    moved, kept = taken(every_vhost, "jobs"), taken(every_vhost, "jobs.dead")
    assert len(moved) == done.json["replayed"] < 50
    assert sorted([*moved, *kept]) == sorted(names)


def test_replay_to_missing_queue_moves_nothing(vhost):
    fill(vhost, letter("a"))
    with vhost.connect() as connection:
        connection.channel().queue_delete("jobs")
    done = dead(vhost, "replay")
    assert (done.code, done.err) == (
        1,
        "workqueue dead: The queue jobs does not exist: apply its WorkQueue first. Nothing was moved.\n",
    )
    eventually(lambda: vhost.depth("jobs.dead") == (1, 0))


def test_killed_replay_loses_nothing(every_vhost):
    names = {f"m{number}" for number in range(3000)}
    fill(every_vhost, *map(letter, names))
    with started(
        ("dead", "replay", "--queue", "jobs"), every_vhost.url, stdout=subprocess.DEVNULL
    ) as command:
        eventually(lambda: every_vhost.depth("jobs").ready > 50 or command.poll() is not None)
        os.kill(command.pid, signal.SIGKILL)
    eventually(lambda: every_vhost.depth("jobs.dead").unacknowledged == 0)
    moved, kept = taken(every_vhost, "jobs"), taken(every_vhost, "jobs.dead")
    assert moved
    assert set(moved) | set(kept) == names
    eventually(lambda: every_vhost.depth("jobs") == every_vhost.depth("jobs.dead") == (0, 0))


def test_replay_takes_only_initially_present_messages(vhost):
    """A handler that rejects immediately does not keep it running endlessly."""
    fill(vhost, *(letter(f"m{number}") for number in range(300)))
    with started(("dead", "replay", "--queue", "jobs"), vhost.url, stdout=subprocess.PIPE) as command:
        with vhost.connect() as connection:
            channel = connection.channel()
            while command.poll() is None:
                method, _, _ = channel.basic_get("jobs")
                if method:
                    channel.basic_reject(method.delivery_tag, requeue=False)
        assert command.stdout.read() == b"300 messages replayed to jobs.\n"


def shared(name, owner):
    """A dead letter in a queue that several work queues share."""
    return letter(name, headers={"x-workqueue-queue": owner})._replace(routing_key="failed")


def fill_shared(vhost):
    """Two dead letters of jobs, and one of another queue between them; one of both was given up by RabbitMQ."""
    with vhost.connect() as connection:
        connection.channel().queue_declare("failed", durable=True, arguments={"x-queue-type": "quorum"})
    settings = QueueSettings("jobs", dead_letter_queue="failed")
    fill(vhost, shared("a", "jobs"), shared("b", "mails"), settings=settings)
    with PublishPipeline(lambda: from_url(vhost.url), "test") as publisher:
        publisher.publish(Outgoing("jobs", b"c", message_id="c", expiration="1")).result()
    eventually(lambda: vhost.depth("failed").ready == 3)


SHARED = ("--dead-letter-queue", "failed")


def test_shared_dead_letter_queue_shows_only_letters_of_the_queue(every_vhost):
    fill_shared(every_vhost)

    done = dead(every_vhost, "list", *SHARED)
    assert [line.split()[0] for line in done.out.splitlines()] == ["ID", "a", "c", "2"]
    assert done.out.splitlines()[-1] == "2 of 3 dead letters of failed."
    assert dead(every_vhost, "show", "b", *SHARED).code == 1
    eventually(lambda: every_vhost.depth("failed") == (3, 0))


@pytest.mark.parametrize("action", ["replay", "purge"])
def test_shared_dead_letter_queue_keeps_letters_of_other_queues(every_vhost, action):
    fill_shared(every_vhost)

    assert dead(every_vhost, action, *(["--yes"] if action == "purge" else []), *SHARED).code == 0

    eventually(lambda: every_vhost.depth("failed") == (1, 0))
    assert list(taken(every_vhost, "failed")) == ["b"]
    eventually(lambda: every_vhost.depth("jobs").ready == (2 if action == "replay" else 0))


def test_purge_asks_and_drops_selected_messages(vhost):
    fill(vhost, letter("a"), letter("b", "Rejected"))
    done = dead(vhost, "purge")
    assert (done.code, done.err) == (2, "Nothing was dropped. Use --yes to drop without confirmation.\n")
    eventually(lambda: vhost.depth("jobs.dead").ready == 2)
    assert dead(vhost, "purge", "--yes", "--reason", "Rejected").out == "1 dead letter of jobs dropped.\n"
    eventually(lambda: vhost.depth("jobs.dead") == (1, 0))
    assert dead(vhost, "purge", "--yes", "--json").json == {"queue": "jobs", "dropped": 1}
    eventually(lambda: vhost.depth("jobs.dead") == (0, 0))
    assert dead(vhost, "list").out == "0 of 0 dead letters of jobs.\n"


def test_purge_keeps_dead_letters_that_came_after_the_prompt(vhost):
    fill(vhost, letter("counted"))
    terminal, question = os.openpty()
    with started(
        ("dead", "purge", "--queue", "jobs"),
        vhost.url,
        stdin=question,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as command:
        asked = command.stderr.read(len("Drop all 1 dead letters of jobs? This cannot be undone. [y/N] "))
        fill(vhost, letter("died since"))
        os.write(terminal, b"y\n")
        assert command.stdout.read() == b"1 dead letter of jobs dropped.\n"
    os.close(terminal)
    os.close(question)

    assert asked == b"Drop all 1 dead letters of jobs? This cannot be undone. [y/N] "
    assert list(taken(vhost, "jobs.dead")) == ["died since"]


@pytest.mark.parametrize("number", ["-3", "0", "x", "1.5"])
def test_peek_refuses_invalid_message_count(number):
    done = workqueue("peek", "--queue", "jobs", "-n", number)

    assert done.code == 2
    assert f"argument -n: '{number}' is not a whole number from 1" in done.err


@pytest.mark.parametrize(
    "command",
    [("stats",), ("peek",), ("dead", "list"), ("send", "x")],
    ids=["stats", "peek", "dead", "send"],
)
def test_broker_error_is_printed_as_json(command):
    done = workqueue(*command, "--queue", "jobs", "--json", url=f"amqp://localhost:{free_port()}/")

    assert done.code == 1
    assert list(done.json) == ["error"]
    assert done.json["error"] in done.err
    assert "cannot be used" in done.json["error"]


def test_description_keeps_names_of_the_summary():
    assert "RabbitMQ's confirmation" in workqueue("send", "--help").out


@pytest.mark.parametrize("action", ["list", "show", "replay", "purge"])
def test_missing_dead_letter_queue_is_reported(vhost, action):
    done = dead(vhost, action, *(["--yes"] if action == "purge" else []), queue="nope")
    assert (done.code, done.err) == (
        1,
        "workqueue dead: The queue nope.dead does not exist: is nope the name of the work queue?\n",
    )


def test_peek_shows_the_first_messages_and_loses_none(every_vhost):
    fill(every_vhost, *(Outgoing("jobs", b"%d" % n, message_id=f"m{n}", headers={"n": n}) for n in range(5)))
    done = workqueue("peek", "--queue", "jobs", "-n", "2", url=every_vhost.url)
    assert done.code == 0
    assert done.out.splitlines()[0] == "message 1 of 5, id: m0"
    assert "message 2 of 5, id: m1" in done.out
    counts = every_vhost.broker.series != "4.3"
    assert ("counts as one delivery" in done.err) is counts
    document = workqueue("peek", "--queue", "jobs", "-n", "9", "--json", url=every_vhost.url).json
    assert document["ready"] == 5
    assert sorted(one["body"] for one in document["messages"]) == ["0", "1", "2", "3", "4"]
    eventually(lambda: every_vhost.depth("jobs") == (5, 0))
    for _ in range(3):
        workqueue("peek", "--queue", "jobs", "-n", "5", url=every_vhost.url)
    eventually(lambda: every_vhost.depth("jobs") == (5, 0))


def test_peek_shows_binary_body(vhost):
    fill(vhost, Outgoing("jobs", b"\xff\x00"))
    assert "(2 bytes, not text)" in workqueue("peek", "--queue", "jobs", url=vhost.url).out
    assert (
        workqueue("peek", "--queue", "jobs", "--json", url=vhost.url).json["messages"][0]["bodyBase64"]
        == "/wA="
    )


def test_peek_at_empty_queue_reports_it(vhost):
    fill(vhost)
    assert workqueue("peek", "--queue", "jobs", url=vhost.url).out == "jobs has no ready message.\n"
    missing = workqueue("peek", "--queue", "nope", url=vhost.url)
    assert (missing.code, missing.err) == (1, "workqueue peek: The queue nope does not exist.\n")


def test_stats_counts_the_queue_and_its_related_queues(every_vhost):
    fill(every_vhost, Outgoing("jobs", b""), Outgoing("jobs", b""), letter("a"))
    with PublishPipeline(lambda: from_url(every_vhost.url), "test") as publisher:
        publisher.declare_plan(topology.delay_plan("jobs", topology.steps_from(topology.Step(500)))).result()
        for seconds in (60, 77):
            earlier = topology.delay_queue("jobs", topology.Step(4_096_000))._replace(
                name=f"jobs.retry.{seconds}s"
            )
            publisher.declare(earlier).result()
        publisher.publish_and_wait(Outgoing("jobs.retry.77s", b""))
    with every_vhost.connect() as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=1)
        channel.basic_consume("jobs", lambda *_: None)
        further = ("--delays", "77")
        done = workqueue("stats", "--queue", "jobs", *further, "--json", url=every_vhost.url)
    assert done.json == {
        "queue": "jobs",
        "exists": True,
        "priorities": BrokerVersion.parse(every_vhost.broker.series).priority_order,
        "queues": [
            {"name": "jobs", "ready": 1, "consumers": 1},
            {"name": "jobs.dead", "ready": 1, "consumers": 0},
            {"name": "jobs.retry.step.500ms", "ready": 0, "consumers": 0},
            {"name": "jobs.retry.last", "ready": 0, "consumers": 0},
            {"name": "jobs.retry.60s", "ready": 0, "consumers": 0},
            {"name": "jobs.retry.77s", "ready": 1, "consumers": 0},
        ],
    }
    lines = workqueue("stats", "--queue", "jobs", url=every_vhost.url).out.splitlines()
    assert lines[0].split() == ["QUEUE", "READY", "CONSUMERS"]
    assert lines[1].split() == ["jobs", "2", "0"]
    assert lines[-1].startswith(f"Priorities in a quorum queue of RabbitMQ {every_vhost.broker.series}: ")


def test_stats_of_missing_queue_reports_it(vhost):
    done = workqueue("stats", "--queue", "nope", "--json", url=vhost.url)
    assert (done.code, done.json["exists"], done.err) == (4, False, "The queue nope does not exist.\n")


def test_lost_connection_is_reported(vhost):
    fill(vhost, *(letter(f"m{number}") for number in range(2000)))
    with started(
        ("dead", "list", "--queue", "jobs", "-n", "5000"),
        vhost.url,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as command:
        eventually(lambda: vhost.depth("jobs.dead").unacknowledged > 0)
        vhost.broker.close_connections()
        assert command.wait() == 1
        assert b"The connection to RabbitMQ was lost" in command.stderr.read()
    eventually(lambda: vhost.depth("jobs.dead") == (2000, 0))


DURATIONS = [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200), ("7d", 604800)]


@pytest.mark.parametrize(("text", "seconds"), DURATIONS, ids=[row[0] for row in DURATIONS])
def test_duration_is_parsed(text, seconds):
    assert durations.duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "h", "1w", "-1s", "1.5h", "1 h", "9" * 10])
def test_invalid_duration_is_refused(text):
    with pytest.raises(ValueError, match="is not a time such as"):
        durations.duration(text)


def received(**headers):
    return Received(1, False, "", "jobs.dead", Properties(), headers, b"")


ODD_LETTERS = [
    ("no headers", {}, ("Unknown", None, 0)),
    ("a time that is none", {"x-workqueue-failed-at": "soon"}, ("Unknown", None, 0)),
    ("attempts that are no number", {"x-workqueue-attempt": "x"}, ("Unknown", None, 0)),
    ("a record of RabbitMQ's that is none", {"x-death": "x"}, ("Unknown", None, 0)),
    (
        "a death in another queue",
        {"x-death": [{"queue": "other", "reason": "expired"}]},
        ("Unknown", None, 0),
    ),
    (
        "a death in the work queue, after a failure that was retried",
        {
            "x-workqueue-failure-reason": "Exception",
            "x-workqueue-attempt": 2,
            "x-death": [{"queue": "jobs", "reason": "delivery_limit", "time": datetime(2026, 1, 1)}],  # noqa: DTZ001 - as pika has it
        },
        ("DeliveryLimit", datetime(2026, 1, 1, tzinfo=UTC), 2),
    ),
    ("a reason of a RabbitMQ to come", {"x-death": [{"queue": "jobs", "reason": "new"}]}, ("new", None, 0)),
]


@pytest.mark.parametrize(
    ("headers", "read"), [row[1:] for row in ODD_LETTERS], ids=[row[0] for row in ODD_LETTERS]
)
def test_dead_letter_with_any_headers_can_be_read(headers, read):
    found = dead_letters.read(received(**headers), "jobs")
    assert (found.reason, found.failed_at, found.attempts) == read
