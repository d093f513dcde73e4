"""The pure parts of `kubectl workqueue`: options, sentences, broker access, completion."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shlex
import stat
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from rich.console import Console

from workqueue.amqp.outgoing import Outgoing
from workqueue.contract.handler_times import bucket_of
from workqueue_kubectl import broker_access, cli, completion, explain
from workqueue_kubectl.broker_access import InClusterTarget
from workqueue_kubectl.cluster import Cluster, Found
from workqueue_kubectl.commands import cancel, dead, recurring, top
from workqueue_kubectl.commands.status import Overview, _as_json, _lines
from workqueue_kubectl.errors import KubectlError, PluginError
from workqueue_kubectl.explain import Seen
from workqueue_kubectl.kubectl import Kubectl
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.scaling.wait import HandlerTimes

INWARD = "for 60 s. Idle workers stop first; busy workers finish their messages."
WAITING = (
    "40 waiting and 3 in handlers need 3 replicas "
    "(new ones to start within 30 s, with 1.83 s per message on average)."
)
DRAINING = (
    "100 waiting and 3 in handlers need 3 replicas (to finish in 60 s, with 1.5 s per message and 0.2 new messages "
    "per second)."
)
MONDAY_MORNING = datetime(2026, 11, 23, 6, 0, tzinfo=UTC)


def workqueue(desired: int | None = 2, messages: int | None = 14, **spec: Any) -> WorkQueue:
    scaling = {
        "maxReplicas": 10,
        "messagesPerReplica": 10,
        "scaleInDelaySeconds": 60,
        **spec.pop("scaling", {}),
    }
    reason, status = spec.pop("scaled", ("AsExpected", "True"))
    retrying = spec.pop("retrying", None)
    body = {
        "metadata": {"name": "thumbs", "namespace": "shop"},
        "spec": {
            "connectionSecretRef": {"name": "rabbitmq"},
            "worker": {"image": "thumbs:1", "handler": {"python": "a:b"}, **spec.pop("worker", {})},
            "scaling": {name: value for name, value in scaling.items() if value is not None},
            **spec,
        },
        "status": {
            "desiredReplicas": desired,
            "messages": messages,
            "retrying": retrying,
            "conditions": [
                {"type": "ScalingActive", "status": status, "reason": reason, "message": "So it is."}
            ],
        },
    }
    return WorkQueue.model_validate(body)


SENTENCES = [
    pytest.param(
        workqueue(),
        Seen(2),
        ["AsExpected: So it is.", "14 waiting and 2 in handlers need 2 replicas (10 messages per replica)."],
        [
            "Up: immediately at 21 messages or more, waiting and in handlers.",
            f"Down: at 10 messages or fewer {INWARD}",
        ],
        id="by messages per replica",
    ),
    pytest.param(
        workqueue(desired=10, messages=400, scaled=("AtMaximum", "True")),
        Seen(10),
        [
            "AtMaximum: So it is.",
            "400 waiting and 10 in handlers need 41 replicas (10 messages per replica).",
            "scaling.maxReplicas is 10.",
        ],
        [
            "Up: not possible, scaling.maxReplicas is 10.",
            f"Down: at 90 messages or fewer {INWARD}",
        ],
        id="at the maximum",
    ),
    pytest.param(
        workqueue(desired=1, messages=0, scaling={"minReplicas": 1}),
        Seen(0),
        [
            "AsExpected: So it is.",
            "0 waiting and 0 in handlers need 0 replicas (10 messages per replica).",
            "scaling.minReplicas is 1.",
        ],
        [
            "Up: immediately at 11 messages or more, waiting and in handlers.",
            "Down: not possible, the minimum is 1.",
        ],
        id="at the minimum",
    ),
    pytest.param(
        workqueue(desired=0, messages=0),
        Seen(0),
        ["AsExpected: So it is.", "0 waiting and 0 in handlers need 0 replicas (10 messages per replica)."],
        [
            "Up: immediately at 1 message or more, waiting and in handlers.",
            "Down: not possible, the count is 0.",
        ],
        id="at none",
    ),
    pytest.param(
        workqueue(desired=0, messages=0),
        Seen(0, in_stopping_workers=1),
        [
            "AsExpected: So it is.",
            "0 waiting and 0 in handlers need 0 replicas (10 messages per replica).",
            "1 message more in stopping workers, which need no new worker.",
        ],
        [
            "Up: immediately at 1 message or more, waiting and in handlers.",
            "Down: not possible, the count is 0.",
        ],
        id="a worker that shuts down with a message in hand",
    ),
    pytest.param(
        workqueue(desired=0, messages=0, retrying=2),
        Seen(0),
        [
            "AsExpected: So it is.",
            "0 waiting and 0 in handlers need 0 replicas (10 messages per replica).",
            "2 messages in delay queues until the next attempt.",
        ],
        [
            "Up: immediately at 1 message or more, waiting and in handlers.",
            "Down: not possible, the count is 0.",
        ],
        id="messages that wait for a retry",
    ),
    pytest.param(
        workqueue(desired=3, messages=100, scaling={"messagesPerReplica": None, "targetDrainSeconds": 60}),
        Seen(3, handler_seconds=1.5, arrivals_per_second=0.2),
        [
            "AsExpected: So it is.",
            DRAINING,
        ],
        [
            "Up: immediately at 109 messages or more waiting, at the same speed and rate.",
            f"Down: at 68 messages or fewer waiting {INWARD}",
        ],
        id="by the time to drain",
    ),
    pytest.param(
        workqueue(desired=3, messages=40, scaling={"messagesPerReplica": None, "maxWaitSeconds": 30}),
        Seen(3, busy_seconds=[1.0] * 3, handler_times=HandlerTimes({bucket_of(2.0): 9})),
        [
            "AsExpected: So it is.",
            WAITING,
        ],
        [
            "Up: immediately at 48 messages or more waiting, at the same speed and rate.",
            f"Down: at 31 messages or fewer waiting {INWARD}",
        ],
        id="by the waiting time",
    ),
    pytest.param(
        workqueue(),
        Seen(None),
        ["AsExpected: So it is.", "The number of messages in handlers is currently unknown."],
        [
            "Up: immediately at 21 messages or more, waiting and in handlers.",
            f"Down: at 10 messages or fewer {INWARD}",
        ],
        id="a worker that could not be asked is no idle one",
    ),
    pytest.param(
        workqueue(scaled=("BrokerUnreachable", "False")),
        Seen(0),
        ["BrokerUnreachable: So it is."],
        ["Nothing until BrokerUnreachable is resolved."],
        id="the broker is away",
    ),
    pytest.param(
        workqueue(replicas=7, scaled=("Pinned", "False")),
        Seen(0),
        ["Pinned: So it is."],
        ["To resume scaling: `kubectl workqueue scale thumbs --release`."],
        id="pinned",
    ),
    pytest.param(
        workqueue(suspend=True, scaled=("Suspended", "False")),
        Seen(0),
        ["Suspended: So it is."],
        ["To resume scaling: `kubectl workqueue resume thumbs`."],
        id="paused",
    ),
]


@pytest.mark.parametrize(("shown", "seen", "why", "changes"), SENTENCES)
def test_status_explains_count_and_next_change(
    shown: WorkQueue, seen: Seen, why: list[str], changes: list[str]
) -> None:
    assert explain.why(shown, seen, MONDAY_MORNING) == why
    assert explain.what_would_change_it(shown, seen, MONDAY_MORNING) == changes


def test_explained_bounds_match_operator_decisions() -> None:
    by_messages = workqueue(desired=4, messages=20)
    by_time = workqueue(
        desired=4, messages=200, scaling={"messagesPerReplica": None, "targetDrainSeconds": 60}
    )
    by_wait = workqueue(desired=4, messages=20, scaling={"messagesPerReplica": None, "maxWaitSeconds": 30})
    for shown, seen in (
        (by_wait, Seen(0, handler_seconds=0.7)),
        (by_messages, Seen(0)),
        (by_time, Seen(0, handler_seconds=0.7, arrivals_per_second=1.3)),
    ):
        up, down = explain.what_would_change_it(shown, seen, MONDAY_MORNING)
        least, most = (int(next(word for word in line.split() if word.isdecimal())) for line in (up, down))
        assert [explain._wanted(shown, count, seen) for count in (least - 1, least)] == [4, 5]
        assert [explain._wanted(shown, count, seen) for count in (most, most + 1)] == [3, 4]


def test_next_schedule_change_is_in_schedule_time_zone() -> None:
    schedule = {
        "name": "office hours",
        "start": "45 7 * * 1-5",
        "end": "0 18 * * 1-5",
        "timeZone": "Europe/Berlin",
        "minReplicas": 5,
    }
    shown = workqueue(scaling={"schedules": [schedule]})
    begins = explain.next_change(shown, MONDAY_MORNING)
    assert begins is not None
    assert begins.sentence == (
        "The schedule 'office hours' begins at Mon 23 Nov 07:45 Europe/Berlin. The minimum is then 5 replicas."
    )
    ends = explain.next_change(shown, MONDAY_MORNING + timedelta(hours=3))
    assert ends is not None
    assert ends.sentence == (
        "The schedule 'office hours' ends at Mon 23 Nov 18:00 Europe/Berlin. The minimum is then 0 replicas."
    )
    assert "Down: not possible, the minimum is 5." in explain.what_would_change_it(
        workqueue(desired=5, scaling={"schedules": [schedule]}), Seen(0), MONDAY_MORNING + timedelta(hours=3)
    )
    broken = {**schedule, "timeZone": "Europe/Berlinn"}
    assert explain.next_change(workqueue(scaling={"schedules": [broken, schedule]}), MONDAY_MORNING) == begins
    assert explain.next_change(workqueue(), MONDAY_MORNING) is None


HOSTS = [
    ("rabbitmq", InClusterTarget("shop", "service/rabbitmq")),
    ("rabbitmq.queues", InClusterTarget("queues", "service/rabbitmq")),
    ("rabbitmq.queues.svc", InClusterTarget("queues", "service/rabbitmq")),
    ("rabbitmq.queues.svc.cluster.local.", InClusterTarget("queues", "service/rabbitmq")),
    ("rabbit-0.nodes.queues.svc", InClusterTarget("queues", "pod/rabbit-0")),
    ("rabbit-0.nodes.queues.svc.my.domain", InClusterTarget("queues", "pod/rabbit-0")),
    ("rabbit.example.com", None),
    ("10.0.0.7", None),
    ("fd00::7", None),
]


@pytest.mark.parametrize(("host", "place"), HOSTS, ids=[host for host, _ in HOSTS])
def test_host_name_is_resolved_to_in_cluster_target(host: str, place: InClusterTarget | None) -> None:
    assert broker_access.candidates(host, "shop") == place


def test_kubectl_options_may_stand_anywhere_but_messages_stay_unchanged() -> None:
    ours, rest = cli.split(["send", "-n", "shop", "mail", "--context=x", "--header", "a=b", "--", "-n", "-A"])
    assert (ours.namespace, ours.context, ours.all_namespaces) == ("shop", "x", False)
    assert rest == ["send", "mail", "--header", "a=b", "--", "-n", "-A"]
    assert cli.flags(ours) == ["--context=x"]


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["scale", "mail"], id="neither a number nor --release"),
        pytest.param(["scale", "mail", "3", "--release"], id="both"),
        pytest.param(["scale", "mail", "-1"], id="a negative number"),
        pytest.param(["top", "--interval", "0"], id="an interval of zero"),
        pytest.param(["dead", "list", "mail", "--direct", "--through", "pod"], id="two ways to the broker"),
        pytest.param(["dead", "list", "mail", "--forward", "rabbitmq"], id="a Service without its namespace"),
        pytest.param(["nothing"], id="no such command"),
        pytest.param(["top", "-o", "table"], id="another output"),
        pytest.param(["send", "mail", "x", "-o", "name"], id="an output that the command does not have"),
    ],
)
def test_wrong_arguments_end_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_missing_kubectl_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert cli.main(["top"]) == 1
    assert capsys.readouterr().err == (
        "kubectl workqueue top: kubectl is not in the PATH. Install it, or add its folder to PATH.\n"
    )


@pytest.fixture
def fake_kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kubectl that knows two WorkQueues in the namespace shop, and nothing else."""
    program = tmp_path / "kubectl"
    program.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        "  *namespaces/shop/workqueues)"
        """ echo '{"items": [{"metadata": {"name": "mail"}}, {"metadata": {"name": "thumbs"}}]}' ;;\n"""
        "  *minify*) printf shop ;;\n"
        "  *) echo 'Error from server (Forbidden): you may not' >&2; exit 1 ;;\n"
        "esac\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return program


COMPLETIONS = [
    (["s"], ["scale", "send", "status", ":4"]),
    (["dead", ""], ["list", "purge", "replay", "show", ":4"]),
    (["dead", "list", ""], ["mail", "thumbs", ":4"]),
    (["status", "m"], ["mail", ":4"]),
    (["status", "-n", "shop", "t"], ["thumbs", ":4"]),
    (["status", "mail", ""], [":4"]),
    (["status", "-n", "elsewhere", ""], [":4"]),
    (["top", "--in"], ["--interval", ":4"]),
    (["dead", "list", "mail", "--re"], ["--reason", "--request-timeout", ":4"]),
    (["send", "mail", "--files", ""], [":0"]),
    (["top", "-o", ""], ["json", "name", "wide", "yaml", ":4"]),
    (["send", "mail", "-o", ""], ["json", "yaml", ":4"]),
]


@pytest.mark.parametrize(
    ("words", "proposals"), COMPLETIONS, ids=[" ".join(words) for words, _ in COMPLETIONS]
)
def test_completion_offers_commands_and_workqueues(
    words: list[str], proposals: list[str], fake_kubectl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert completion.main(words) == 0
    assert capsys.readouterr().out.split() == proposals


def test_kubectl_refusal_is_passed_on_verbatim(
    fake_kubectl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["top", "-A"]) == 1
    assert capsys.readouterr().err == "kubectl workqueue top: Error from server (Forbidden): you may not\n"


def test_failed_port_forward_reports_why_and_leaves_no_process(fake_kubectl: Path) -> None:
    with pytest.raises(Exception, match="you may not"), Kubectl().forwarded("shop", "service/x", 5672):
        pytest.fail("it was not forwarded")


def test_help_lists_and_describes_every_command() -> None:
    parser = cli.build([])
    assert set(completion._subcommands(parser) or ()) == set(cli.COMMANDS)
    for command in cli.COMMANDS:
        described = completion._subcommands(cli.build([command]))
        assert described is not None
        assert isinstance(described[command], argparse.ArgumentParser)


DOCS = sorted(Path(__file__).parents[2].glob("docs/**/*.md"))


def typed() -> list[str]:
    """Every `kubectl workqueue` command in the documentation."""
    lines = (line.strip().removeprefix("$ ") for page in DOCS for line in page.read_text().splitlines())
    return sorted({line.partition(" < ")[0] for line in lines if line.startswith("kubectl workqueue ")})


@pytest.mark.parametrize("line", typed())
def test_documented_plugin_commands_parse(line: str) -> None:
    _, rest = cli.split(shlex.split(line)[2:])
    parsed = cli.build(word for word in rest if not word.startswith("-")).parse_args(rest)
    assert parsed.command in cli.COMMANDS


def test_limit_bounds_the_maximum_and_is_named() -> None:
    limited = workqueue(desired=3, messages=100, limits={"concurrency": 5}, worker={"concurrency": 2})
    assert top._as_json(Found(limited))["maxReplicas"] == 3
    sentence = "limits.concurrency is 5, which 3 replicas can use up."
    assert sentence in explain.why(limited, Seen(in_handlers=5), MONDAY_MORNING)
    statuses = {"a": {"busy": 2, "waitingForToken": 2}, "b": {"busy": 0}}
    picture = Overview(Found(limited), [], statuses, [], MONDAY_MORNING)
    assert "Limit       5 at the same time, 2 waiting in workers" in _lines(picture)


def test_rate_limit_bounds_the_count_and_is_named() -> None:
    limited = workqueue(desired=3, messages=100, limits={"ratePerSecond": 10, "concurrency": 50})
    seen = Seen(in_handlers=3, handler_seconds=0.2)

    sentence = "limits.ratePerSecond is 10, which 3 replicas can use up."

    assert sentence in explain.why(limited, seen, MONDAY_MORNING)
    assert explain.what_would_change_it(limited, seen, MONDAY_MORNING)[0] == f"Up: not possible, {sentence}"
    picture = Overview(Found(limited), [], {"a": {"busy": 2, "waitingForToken": 2}}, [], MONDAY_MORNING)
    assert "Limit       50 at the same time and 10 per second, 2 waiting in workers" in _lines(picture)


def test_with_a_single_active_consumer_one_worker_is_the_most() -> None:
    turns = workqueue(queue={"singleActiveConsumer": True}, scaling={"minReplicas": 2})
    found = Found(turns)
    assert top._row(found, MONDAY_MORNING)[top._HEAD.index("MAX")] == "1"
    assert top._as_json(found)["maxReplicas"] == 1
    picture = Overview(found, [], {}, [], MONDAY_MORNING)
    assert "Bounds      1 to 1 replica" in _lines(picture)
    assert _as_json(picture)["maxReplicas"] == 1


@pytest.mark.parametrize("name", [None, "failed"], ids=["own", "existing"])
def test_dead_letters_are_read_where_the_workqueue_sends_them(
    name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = workqueue(queue={} if name is None else {"deadLetterQueue": name})
    monkeypatch.setattr(broker_access, "connect", lambda *_: nullcontext())
    monkeypatch.setattr(dead.dead, "run", lambda arguments: 0)
    arguments = argparse.Namespace(name="thumbs")
    cluster: Any = SimpleNamespace(workqueue=lambda _: found)

    assert dead.run(cluster, arguments) == 0

    assert (arguments.queue, arguments.dead_letter_queue) == ("thumbs", name)


def test_cancel_uses_the_queue_of_the_workqueue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_access, "connect", lambda *_: nullcontext())
    monkeypatch.setattr(cancel.cancel, "run", lambda arguments: 0)
    cluster: Any = SimpleNamespace(workqueue=lambda _: workqueue(queue={"name": "pictures"}))
    arguments = cli.build(["cancel"]).parse_args(["cancel", "thumbs", "one", "two", "--discard"])

    assert cancel.run(cluster, arguments) == 0
    assert (arguments.queue, arguments.ids, arguments.discard) == ("pictures", ["one", "two"], True)


@pytest.mark.parametrize("name", ["workqueue.workqueue.dev/mail", "../pods", "", "Mail"])
@pytest.mark.parametrize("command", ["status", "pause"])
def test_name_that_no_workqueue_can_have_is_refused(
    command: str, name: str, fake_kubectl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, name]) == 1
    assert f"{name!r} cannot be the name of a WorkQueue" in capsys.readouterr().err


def test_answer_that_is_not_json_is_a_sentence(
    fake_kubectl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_kubectl.write_text("#!/bin/sh\necho '<html>Sign in</html>'\n")

    assert cli.main(["top", "-A"]) == 1
    assert "with something else than JSON" in capsys.readouterr().err


def test_unknown_recurring_message_names_those_that_exist() -> None:
    found = workqueue(recurring=[{"name": "nightly", "everySeconds": 60}])
    cluster: Any = SimpleNamespace(workqueue=lambda _: found)

    with pytest.raises(PluginError, match="There are: nightly"):
        recurring.run(cluster, argparse.Namespace(name="thumbs", trigger="daily", json=False))


def test_triggers_of_the_same_second_have_different_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise an idempotent handler would take the second message for a redelivery of the first."""
    found = workqueue(recurring=[{"name": "nightly", "everySeconds": 60}])
    cluster: Any = SimpleNamespace(workqueue=lambda _: found)
    published: list[Outgoing] = []
    pipeline = SimpleNamespace(connection=None, publish_and_wait=published.append)
    monkeypatch.setattr(broker_access, "connect", lambda *_: nullcontext())
    monkeypatch.setattr(recurring, "wait_until_open", lambda *_: None)
    monkeypatch.setattr(recurring, "PublishPipeline", lambda *_: nullcontext(pipeline))

    for _ in range(2):
        recurring.run(cluster, argparse.Namespace(name="thumbs", trigger="nightly", json=False))

    assert len({message.message_id for message in published}) == 2


SLOT = "2026-01-01T01:30:00Z"


class Shop:
    """A kubectl with the WorkQueues of one namespace."""

    def __init__(self, *items: dict[str, Any]) -> None:
        self.items = list(items)
        self.changes: list[dict[str, Any]] = []
        self.down = False

    def get(self, path: str, **_: str) -> dict[str, Any]:
        if self.down:
            raise KubectlError("Unable to connect to the server.")
        if path.endswith("/workqueues"):
            return {"items": self.items}
        if "/workqueues/" in path:
            return self.items[0]
        return {"items": []}

    def merge(self, *words: Any) -> None:
        self.changes.append(words[-1])

    def namespace(self) -> str:
        return "shop"


def body(name: str = "thumbs", seen: int = 3, **status: Any) -> dict[str, Any]:
    written = (datetime.now(UTC) - timedelta(minutes=4)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "metadata": {
            "name": name,
            "namespace": "shop",
            "generation": 3,
            "managedFields": [{"manager": "workqueue-operator-status", "time": written}],
        },
        "spec": {
            "connectionSecretRef": {"name": "rabbitmq"},
            "worker": {"image": "thumbs:1", "handler": {"python": "a:b"}},
        },
        "status": {
            "observedGeneration": seen,
            "messages": 26,
            "readyReplicas": 1,
            "desiredReplicas": 0,
            **status,
        },
    }


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Shop:
    made = Shop(body())
    monkeypatch.setattr(cli, "Kubectl", lambda _: made)
    return made


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(words) == 0
    return capsys.readouterr().out


def row_of(text: str) -> dict[str, str]:
    head, row = (line.split() for line in text.splitlines()[:2])
    return dict(zip(head, row, strict=True))


def test_worker_that_leaves_is_counted_as_leaving(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    row = row_of(printed(capsys, "top"))

    assert (row["WORKERS"], row["LEAVING"]) == ("0/0", "1")
    assert row["UPDATED"].startswith("4m")


def test_number_older_than_the_spec_is_marked(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    assert row_of(printed(capsys, "top"))["MESSAGES"] == "26"

    shop.items = [body(seen=2)]

    assert row_of(printed(capsys, "top"))["MESSAGES"] == "~26"
    text = printed(capsys, "status", "thumbs")
    assert "Messages    ~26 waiting, ? retrying" in text
    assert "ago, before the last change of the spec. ~ marks its numbers" in text
    assert '"stale": true' in printed(capsys, "top", "-o", "json")


def test_top_keeps_last_numbers_marked_while_the_api_server_is_away(shop: Shop) -> None:
    screen = top._Screen(Cluster(shop), argparse.Namespace(everywhere=False))  # type: ignore[arg-type]

    def lines() -> str:
        return "\n".join(str(part) for part in screen.now().renderables)  # type: ignore[union-attr]

    assert " 26 " in lines()
    shop.down = True

    assert "Unable to connect to the server. Read 0s ago:" in lines()
    assert " ~26 " in lines()


@pytest.mark.parametrize(
    ("edge", "missing"),
    [(200, set()), (80, {"MAX", "UPDATED", "LEAVING", "RETRYING"})],
    ids=["wide", "narrow"],
)
def test_narrow_terminal_leaves_out_columns_not_numbers(
    edge: int, missing: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(top.output, "terminal_width", lambda: edge)
    found = Found(WorkQueue.model_validate(body("a-name-of-some-length", messages=123456)))

    head, row = top._table([found]).splitlines()

    assert set(top._HEAD) - set(head.split()) == missing
    assert "123456" in row
    assert len(row) <= edge


def test_outputs_are_those_of_kubectl(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    assert yaml.safe_load(printed(capsys, "top", "-o", "yaml")) == json.loads(
        printed(capsys, "top", "-o", "json")
    )
    assert printed(capsys, "top", "-o", "name") == "workqueue.workqueue.dev/thumbs\n"
    assert "QUEUE" in printed(capsys, "top", "-o", "wide").splitlines()[0]
    assert printed(capsys, "pause", "thumbs", "-o", "name") == "workqueue.workqueue.dev/thumbs\n"
    assert shop.changes == [{"spec": {"suspend": True}}]


def test_failure_is_a_document_too(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.down = True

    assert cli.main(["top", "-o", "yaml"]) == 1

    assert yaml.safe_load(capsys.readouterr().out) == {"error": "Unable to connect to the server."}


def test_live_table_has_no_colour_with_no_color(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = io.StringIO()
    screen = top._Screen(Cluster(shop), argparse.Namespace(everywhere=False))  # type: ignore[arg-type]
    shop.down = True

    Console(file=text, force_terminal=True, width=200).print(screen.now())

    assert "Unable to connect" in text.getvalue()
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", text.getvalue())


def test_every_command_can_print_a_document() -> None:
    assert cli.FORMS.keys() == cli.COMMANDS.keys()


def test_recurring_messages_are_shown_with_last_and_next_slot(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.items = [
        body(recurring=[{"name": "nightly", "schedule": "", **dict.fromkeys(("slot", "published"), SLOT)}])
    ]
    shop.items[0]["spec"]["recurring"] = [
        {"name": "nightly", "cron": "30 2 * * *", "timeZone": "Europe/Berlin", "missed": "One"},
        {"name": "paused", "everySeconds": 60, "suspend": True},
    ]

    nightly, paused = json.loads(printed(capsys, "recurring", "thumbs", "-o", "json"))["recurring"]

    assert (nightly["schedule"], nightly["last"], nightly["missed"]) == (
        "30 2 * * * Europe/Berlin",
        SLOT,
        "One",
    )
    assert nightly["next"].endswith(":30:00Z")
    assert (paused["schedule"], paused["last"], paused["next"]) == ("every 60 s", "-", "suspended")
