"""`kubectl workqueue` as users run it: by kubectl, against the real cluster and its RabbitMQ."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.kubernetes import PROGRAMS, kubeconfig, kubectl
from tests.support.wait import eventually
from tests.support.workqueues import Lab, WorkQueueUnderTest

SECONDS: Final = 240
ATTENTIVE: Final = (
    sys.executable,
    "-c",
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])",
)
"""Receives Ctrl-C even where the tests run in the background with SIGINT ignored."""

PLUGINS: Final = Path(sysconfig.get_path("scripts"))


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The document on standard output."""
        return json.loads(self.out)


def environment() -> dict[str, str]:
    """kubectl, the plugin beside it, and the cluster under test as the only one there is."""
    path = os.pathsep.join([str(PROGRAMS), str(PLUGINS), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "KUBECONFIG": str(kubeconfig()), "COLUMNS": "250"}


@pytest.fixture(scope="module")
def run(lab: Lab) -> Any:
    """Run `kubectl workqueue` in the lab's namespace."""

    def run_plugin(*words: str, stdin: str = "", namespace: str = lab.namespace) -> Done:
        done = subprocess.run(
            ["kubectl", "workqueue", *words, f"--namespace={namespace}"]
            if "--" not in words
            else ["kubectl", "workqueue", f"--namespace={namespace}", *words],
            input=stdin,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run_plugin


@pytest.fixture(scope="module")
def workqueue(lab: Lab) -> Iterator[WorkQueueUnderTest]:
    """A WorkQueue that scales in late, so that a worker stays for inspection."""
    made = lab.workqueue(
        "plugin",
        worker={"handler": {"python": "jobs:moody"}},
        scaling={"scaleInDelaySeconds": 300},
    )
    yield made.apply().wait_ready()
    made.delete()


@pytest.mark.slow
def test_send_reaches_in_cluster_broker_with_secret_credentials(
    run: Any, workqueue: WorkQueueUnderTest
) -> None:
    sent = run("send", "plugin", '{"id": "a"}', "--header", "shop=1", "-o", "json")
    assert (sent.code, sent.err) == (0, "")
    assert sent.json == {"confirmed": 1, "failed": [], "complete": True}
    lines = '{"id": "b"}\n{"id": "c"}\n'
    assert run("send", "plugin", "--stdin", stdin=lines).out == "2 messages of 2 confirmed.\n"
    assert sorted(result["id"] for result in workqueue.results(3)) == ["a", "b", "c"]


@pytest.mark.slow
def test_dead_letters_can_be_listed_shown_replayed_and_purged(
    run: Any, workqueue: WorkQueueUnderTest
) -> None:
    workqueue.publish([{"id": number, "reject": True} for number in range(3)])
    eventually(
        lambda: run("dead", "list", "plugin", "-o", "json").json["total"] == 3, 120, "three dead letters"
    )
    listed = run("dead", "list", "plugin", "--reason", "Rejected", "--limit", "2")
    assert listed.out.splitlines()[-1] == "2 of 3 dead letters of plugin."
    assert "the test asked for it" in listed.out
    letter = run("dead", "list", "plugin", "-o", "json").json["messages"][0]["id"]
    assert run("dead", "show", "plugin", letter, "-o", "json").json["reason"] == "Rejected"
    assert run("dead", "show", "plugin", letter, "-o", "yaml").out.startswith(f"id: {letter}\n")
    assert run("dead", "show", "plugin", letter[:-1], "-o", "json").json["id"] == letter
    assert run("dead", "replay", "plugin", "--id", letter).out == "1 message replayed to plugin.\n"
    # It is rejected again.
    eventually(lambda: run("dead", "list", "plugin", "-o", "json").json["total"] == 3, 120, "it came back")
    refused = run("dead", "purge", "plugin")
    assert (refused.code, "--yes" in refused.err) == (2, True)
    assert run("dead", "purge", "plugin", "--yes", "-o", "json").json == {"queue": "plugin", "dropped": 3}


@pytest.mark.slow
def test_delayed_message_is_cancelled_by_its_id(run: Any, workqueue: WorkQueueUnderTest) -> None:
    # A busy machine may need half of the delay until the cancel.
    run("send", "plugin", '{"id": "unwanted"}', "--delay", "60")
    [waiting] = run("delayed", "list", "plugin", "-o", "json").json["messages"]

    done = run("cancel", "plugin", waiting["id"], "-o", "json")

    assert (done.code, done.json["queue"], done.json["cancelled"]) == (0, "plugin", [waiting["id"]])
    dead = eventually(
        lambda: run("dead", "list", "plugin", "--reason", "Cancelled", "-o", "json").json["messages"],
        240,
        "the message is a dead letter",
    )
    assert [letter["id"] for letter in dead] == [waiting["id"]]
    run("dead", "purge", "plugin", "--yes")


@pytest.mark.slow
def test_status_explains_count_and_what_would_change_it(run: Any, workqueue: WorkQueueUnderTest) -> None:
    workqueue.publish([{"id": "busy", "seconds": 1}])
    assert [result["id"] for result in workqueue.results(1)] == ["busy"]
    document = eventually(
        lambda: (
            (found := run("status", "plugin", "-o", "json").json)
            and found["inHandlers"] == 0
            and found["status"].get("messages") == 0
            and len(found["pods"]) == found["status"].get("desiredReplicas")
            and {pod["state"] for pod in found["pods"]} == {"idle"}
            and {"Declared", "Backlog"} <= {event["reason"] for event in found["events"]}
            and found
        ),
        120,
        "all is done, and every worker is idle",
    )
    replicas = document["status"]["desiredReplicas"]
    assert document["why"][-1] == "0 waiting and 0 in handlers need 0 replicas (2 messages per replica)."
    assert document["whatWouldChangeIt"][0] == (
        f"Up: immediately at {2 * replicas + 1} messages or more, waiting and in handlers."
    )
    assert "300 s" in document["whatWouldChangeIt"][1]
    assert all(pod["worker"]["queue"] == "plugin" for pod in document["pods"])
    text = run("status", "plugin").out
    for title in ("CONDITION", f"Why the count is {replicas}", "What would change it", "POD", "EVENT"):
        assert title in text
    assert re.search(r"plugin-worker-\S+ +idle +0/1", text)


def test_top_without_terminal_prints_once(run: Any, workqueue: WorkQueueUnderTest) -> None:
    done = run("top")
    head, *rows = done.out.splitlines()
    assert head.split() == [
        "NAMESPACE", "NAME", "READY", "MESSAGES", "RETRYING", "WORKERS", "LEAVING", "BUSY", "MAX", "DEAD", "SCALING",
        "UPDATED",
    ]  # fmt: skip
    mine = [row.split() for row in rows if row.split()[1] == "plugin"]
    assert mine[0][:2] == [workqueue.lab.namespace, "plugin"]
    document = {one["name"]: one for one in run("top", "-A", "-o", "json").json}
    assert document["plugin"]["maxReplicas"] == 5
    assert document["plugin"]["statusWritten"], "the API server says when the operator wrote it"
    assert "workqueue.workqueue.dev/plugin" in run("top", "-o", "name").out.splitlines()
    assert "\x1b" not in done.out


def test_printed_name_is_one_for_kubectl(run: Any, workqueue: WorkQueueUnderTest) -> None:
    name = run("status", "plugin", "-o", "name").out.strip()
    assert kubectl("get", name, f"--namespace={workqueue.lab.namespace}", "--output=name").strip() == name


def test_top_refreshes_on_a_terminal_until_ctrl_c(lab: Lab, workqueue: WorkQueueUnderTest) -> None:
    primary, secondary = pty.openpty()
    process = subprocess.Popen(
        [*ATTENTIVE, "kubectl", "workqueue", "top", f"--namespace={lab.namespace}", "--interval=0.3"],
        stdin=secondary,
        stdout=secondary,
        stderr=secondary,
        env={**environment(), "TERM": "xterm", "LINES": "40"},
        start_new_session=True,
    )
    os.close(secondary)
    shown: list[str] = []

    def follow() -> None:
        with suppress(OSError):
            while piece := os.read(primary, 65536):
                shown.append(piece.decode(errors="replace"))

    reading = threading.Thread(target=follow)
    reading.start()
    try:
        eventually(lambda: "".join(shown).count("MESSAGES") >= 3, 120, "the table has come three times")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        reading.join()
        os.close(primary)
    text = "".join(shown)
    assert "plugin" in text
    assert text.index("\x1b[?1049h") < text.index("MESSAGES"), "on a screen of its own"
    assert "\x1b[?1049l" in text, "and what was there before comes back"


def test_pause_resume_scale_and_release_change_the_workqueue(run: Any, workqueue: WorkQueueUnderTest) -> None:
    assert run("pause", "plugin").out.startswith("plugin is paused: ")
    workqueue.wait_condition("Ready", "False", "Suspended")
    assert run("status", "plugin", "-o", "json").json["whatWouldChangeIt"] == [
        "To resume scaling: `kubectl workqueue resume plugin`."
    ]
    assert run("resume", "plugin").out == "plugin is resumed.\n"
    workqueue.wait_ready()
    assert run("scale", "plugin", "2", "-o", "json").json["replicas"] == 2
    workqueue.wait_condition("ScalingActive", "False", "Pinned")
    eventually(lambda: workqueue.replicas() == 2, 120, "two, as was asked for")
    assert run("scale", "plugin", "--release").out == "plugin is released. Scaling resumes.\n"
    workqueue.wait_condition("ScalingActive", "True")
    assert "replicas" not in workqueue.get()["spec"]


def test_cluster_internal_broker_is_reached_through_worker(run: Any, workqueue: WorkQueueUnderTest) -> None:
    workqueue.publish([{"id": "through", "seconds": 0}])
    pod = eventually(
        lambda: next(
            (
                pod["name"]
                for pod in run("status", "plugin", "-o", "json").json["pods"]
                if pod["state"] == "idle"
            ),
            "",
        ),
        120,
        "a worker is idle",
    )
    through = run("send", "plugin", '{"id": "relayed"}', "--through", pod)
    assert (through.code, through.out) == (0, "1 message of 1 confirmed.\n"), through.err
    assert sorted(result["id"] for result in workqueue.results(2)) == ["relayed", "through"]


def test_unresolvable_broker_name_gives_advice(run: Any, workqueue: WorkQueueUnderTest) -> None:
    done = run("send", "plugin", "x", "--direct")
    assert (done.code, done.out) == (1, "")
    assert "RabbitMQ at amqp://rabbitmq.e2e-rabbitmq" in done.err
    assert (
        "from this machine. If only the cluster can connect to it, use --through POD to connect from a pod"
        in done.err
    )


def test_refused_login_error_names_the_route(run: Any, lab: Lab) -> None:
    lab.secret("wrong", password="wrong")
    refused = lab.workqueue("refused", connectionSecretRef={"name": "wrong"}).apply()
    done = run("dead", "list", "refused")
    assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 1)
    assert "ACCESS_REFUSED" in done.err
    assert f"Tried {lab.rabbit.host}:5672 by kubectl port-forward to service/rabbitmq" in done.err
    refused.delete()


def test_broker_service_can_be_overridden(run: Any, lab: Lab, workqueue: WorkQueueUnderTest) -> None:
    sent = run(
        "dead", "list", "plugin", "--forward", f"{lab.rabbit.namespace}/{lab.rabbit.name}", "-o", "json"
    )
    assert (sent.code, sent.json["queue"]) == (0, "plugin")
    done = run("dead", "list", "plugin", "--forward", f"{lab.rabbit.namespace}/nobody")
    assert done.code == 1
    assert "kubectl port-forward to service/nobody" in done.err
    assert '"nobody" not found' in done.err


WRONG = [
    pytest.param(
        ["status", "nobody"],
        "has no WorkQueue 'nobody'. List all with `kubectl get wq -A`; choose a namespace with -n.",
        id="status-of-missing-workqueue",
    ),
    pytest.param(["pause", "nobody"], "has no WorkQueue 'nobody'", id="pause-of-missing-workqueue"),
    pytest.param(["send", "nobody", "x"], "has no WorkQueue 'nobody'", id="send-to-missing-workqueue"),
    pytest.param(["top", "--context=other"], 'context "other" does not exist', id="missing-context"),
    pytest.param(
        ["top", "--as=stranger"], 'User "stranger" cannot list resource "workqueues"', id="missing-right"
    ),
    pytest.param(
        ["send", "plugin", "x", "--as=system:serviceaccount:default:default"],
        "cannot get resource",
        id="missing-right-to-credentials",
    ),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG)
def test_plugin_errors_give_advice(
    run: Any, workqueue: WorkQueueUnderTest, words: list[str], sentence: str
) -> None:
    done = run(*words)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"kubectl workqueue {words[0]}: ")
    assert sentence in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.slow
def test_workqueue_reader_sees_workers_and_events_as_unknown(
    run: Any, lab: Lab, workqueue: WorkQueueUnderTest
) -> None:
    where = f"--namespace={lab.namespace}"
    kubectl("create", "role", "looker", "--verb=get,list", "--resource=workqueues.workqueue.dev,pods", where)
    kubectl("create", "rolebinding", "looker", "--role=looker", "--user=looker", where)
    workqueue.publish([{"id": "look"}])
    eventually(lambda: workqueue.status().get("readyReplicas", 0) >= 1, 120, "a worker is Ready")
    done = eventually(
        lambda: (shown := run("status", "plugin", "--as=looker")).code == 0 and shown,
        60,
        "the role is in force",
    )
    assert "The number of messages in handlers is currently unknown." in done.out
    assert "?: the worker did not answer. Check that you may get pods/proxy." in done.out
    assert "Events are not shown: you lack the permission" in done.out
    refused = run("dead", "list", "plugin", "--as=looker")
    assert refused.code == 1
    assert "Reading the credentials in the Secret 'rabbitmq'" in refused.err


def test_kubectl_completes_workqueue_names(lab: Lab, workqueue: WorkQueueUnderTest) -> None:
    done = subprocess.run(
        ["kubectl", "__complete", "workqueue", "status", f"--namespace={lab.namespace}", "plu"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    assert done.stdout.splitlines()[0] == "plugin"


def test_installed_plugin_is_the_project_plugin() -> None:
    listed = subprocess.run(
        ["kubectl", "plugin", "list", "--name-only"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "kubectl-workqueue" in listed.stdout.split()
    assert Path(sys.executable).parent == PLUGINS
