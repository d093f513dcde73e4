"""The kubectl plugin and the kubectl that it runs: warnings, encodings, namespaces, and answers of other programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.wait import eventually
from workqueue_kubectl import cli, cluster, completion, dependent, kubectl
from workqueue_kubectl.cluster import Cluster
from workqueue_kubectl.commands import top
from workqueue_kubectl.errors import KubectlError, PluginError
from workqueue_kubectl.kubectl import Kubectl

WARNING = "E1128 05:12:03.1 memcache.go:287] couldn't get resource list for metrics.k8s.io/v1beta1"


def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """Put a kubectl into the PATH; return the file into which it writes its arguments."""
    program, words = tmp_path / "kubectl", tmp_path / "words"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {words}\n{script}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return words


def test_port_forward_begins_after_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(
        tmp_path,
        monkeypatch,
        f'echo "{WARNING}" >&2\necho "Forwarding from 127.0.0.1:40123 -> 5672"\nexec sleep 600',
    )
    with Kubectl().forwarded("shop", "service/rabbitmq", 5672) as port:
        assert port == 40123


def test_port_forward_that_ends_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, monkeypatch, f'echo "{WARNING}" >&2\necho "error: no running pod" >&2\nexit 1')
    with (
        pytest.raises(KubectlError, match=r"^error: no running pod$"),
        Kubectl().forwarded("shop", "pod/x", 5672),
    ):
        pytest.fail("it was not forwarded")


def test_call_ends_after_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, monkeypatch, "exec sleep 600")
    patient = Kubectl()
    patient.patience = 0.1
    with pytest.raises(KubectlError, match=r"^kubectl has not answered for 0\.1 s\.$"):
        patient.get("/x")


def test_live_table_limits_the_time_of_an_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it would show old numbers without a mark while the API server does not answer."""
    fake(tmp_path, monkeypatch, """echo '{"items": []}'""")
    seen: list[float | None] = []

    def read(self: Kubectl, *_: str, **__: str) -> dict[str, list[object]]:
        seen.append(self.patience)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return {"items": []}

    monkeypatch.setattr(Kubectl, "get", read)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert cli.main(["top", "-A"]) == 0
    assert seen == [None, top.UPDATE_SECONDS]


def test_worker_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one whose node is down."""
    monkeypatch.setattr(cluster, "WORKER_SECONDS", 0.1)
    fake(tmp_path, monkeypatch, "exec sleep 600")
    patient = Kubectl()
    assert Cluster(patient).worker_statuses("shop", ["a", "b"]) == {}
    assert patient.patience is None


UNICODE = """\
import sys
from workqueue_kubectl.kubectl import Kubectl
assert Kubectl().get("/x") == {"data": "caf\\u00e9 \\u6f22"}, Kubectl().get("/x")
"""


def test_answers_are_utf_8_whatever_the_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, monkeypatch, """printf '{"data": "caf\\303\\251 \\346\\274\\242"}'""")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", UNICODE], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_refusal_that_is_not_utf_8_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(tmp_path, monkeypatch, "printf 'acc\\350s refus\\351 \\033[2J' >&2; exit 1")
    assert cli.main(["top", "-A"]) == 1
    assert capsys.readouterr().err == "kubectl workqueue top: acc\ufffds refus\ufffd \\u001b[2J\n"


@pytest.mark.parametrize("kind", [("json",), ("yaml",)])
def test_failure_is_printed_for_a_terminal_without_unicode(
    kind: tuple[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, monkeypatch, "printf 'acc\\303\\250s \\342\\200\\246' >&2; exit 1")
    words = [sys.executable, "-m", "workqueue_kubectl", "top", "-A", "-o", *kind]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(words, env=environment, capture_output=True, check=False)
    assert done.returncode == 1
    shown = {"json": rb'{"error": "acc\u00e8s \u2026"}', "yaml": rb'error: "acc\xE8s \u2026"'}
    assert done.stdout.strip() == shown[kind[0]]
    assert b"Traceback" not in done.stderr


def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a pod of the namespace jobs."""
    folder = tmp_path / "account"
    folder.mkdir()
    (folder / "token").write_text("x")
    (folder / "namespace").write_text("jobs\n")
    monkeypatch.setattr(kubectl, "ACCOUNT", folder)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.delenv("POD_NAMESPACE", raising=False)


@pytest.mark.parametrize(
    ("script", "namespace"),
    [
        ("echo 'error: current-context must exist in order to minify' >&2; exit 1", "jobs"),
        ("printf ''", "jobs"),
        ("printf shop", "shop"),
    ],
    ids=["no-kubeconfig", "context-without-namespace", "context-with-namespace"],
)
def test_pod_uses_its_own_namespace_as_kubectl_does(
    script: str, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, monkeypatch, script)
    account(tmp_path, monkeypatch)
    assert Kubectl().namespace() == namespace


def test_machine_without_a_context_uses_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, monkeypatch, "exit 1")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert Kubectl().namespace() == "default"


def test_empty_namespace_is_that_of_the_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with `-n "$UNSET"`."""
    words = fake(
        tmp_path, monkeypatch, """case "$*" in *minify*) printf shop ;; *) echo '{"items": []}' ;; esac"""
    )
    assert cli.main(["top", "-n", ""]) == 0
    assert "/namespaces/shop/workqueues" in words.read_text()
    assert capsys.readouterr().out == "There is no WorkQueue in the namespace shop.\n"


def test_namespace_cannot_change_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = fake(tmp_path, monkeypatch, "exit 1")
    with pytest.raises(PluginError, match="cannot be the name of a namespace"):
        Cluster(Kubectl(), "shop/../mail").workqueues(everywhere=False)
    assert not words.exists()


def test_each_group_is_impersonated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = fake(tmp_path, monkeypatch, """echo '{"items": []}'""")
    assert cli.main(["top", "-A", "--as", "ann", "--as-group", "a", "--as-group=b"]) == 0
    assert "--as=ann --as-group=a --as-group=b" in words.read_text()


def test_completion_of_a_namespace_asks_the_cluster_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = fake(tmp_path, monkeypatch, """echo '{"items": []}'""")
    completion.main(["top", "--context", "staging", "-n", ""])
    assert words.read_text() == "--context=staging get --raw=/api/v1/namespaces\n"


STATUS: dict[str, Any] = {"slots": 2, "busy": 1, "handled": 7, "connected": True}


@pytest.mark.parametrize(
    ("answer", "is_one"),
    [
        (STATUS, True),
        (STATUS | {"recentHandlerSeconds": None, "handlerTimes": {"-3": 4}}, True),
        ([], False),
        ({}, False),
        (STATUS | {"busy": "1"}, False),
        (STATUS | {"busy": float("inf")}, False),
        (STATUS | {"recentHandlerSeconds": "x"}, False),
        (STATUS | {"handlerTimes": [1]}, False),
        (STATUS | {"handlerTimes": {"x": 1}}, False),
        (STATUS | {"lastError": 1}, False),
    ],
)
def test_answer_of_another_program_is_no_status(
    answer: Any, is_one: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake(tmp_path, monkeypatch, "exit 1")
    monkeypatch.setattr(Kubectl, "get", lambda *_, **__: answer)
    assert Cluster(Kubectl()).worker_statuses("shop", ["p"]) == ({"p": answer} if is_one else {})


FORWARDING = """\
import os, signal, sys
from workqueue_kubectl.kubectl import Kubectl
open_path = {
    "port-forward": lambda: Kubectl().forwarded("shop", "service/rabbitmq", 5672),
    "exec": lambda: Kubectl().relayed("shop", "worker", "rabbitmq", 5672),
}
with open_path[sys.argv[1]]() as port:
    if sys.argv[1] == "exec":
        import socket
        connection = socket.create_connection(("127.0.0.1", port))
        assert connection.recv(1)
    os.kill(os.getpid(), int(sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("command", "said"),
    [("port-forward", "Forwarding from 127.0.0.1:40123 -> 5672"), ("exec", "x")],
    ids=["port-forward", "relay"],
)
@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP], ids=["killed", "terminated", "closed-terminal"]
)
def test_path_to_rabbitmq_ends_with_the_plugin(
    command: str, said: str, number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = tmp_path / "ended"
    fake(
        tmp_path, monkeypatch, f"trap 'touch {ended}; exit' TERM\necho '{said}'\nwhile :; do sleep 0.05; done"
    )

    done = subprocess.run([sys.executable, "-c", FORWARDING, command, str(number.value)], check=False)

    assert done.returncode == -number
    eventually(ended.exists)


def test_path_to_rabbitmq_that_ignores_the_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dependent, "STOP_SECONDS", 0.2)
    fake(
        tmp_path,
        monkeypatch,
        "trap '' TERM\necho 'Forwarding from 127.0.0.1:1 -> 2'\nwhile :; do sleep 0.05; done",
    )

    with Kubectl().forwarded("shop", "service/rabbitmq", 5672):
        pass
