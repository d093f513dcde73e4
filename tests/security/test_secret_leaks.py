"""Plant odd passwords, provoke every error, and search all readable output for the passwords."""

from __future__ import annotations

import base64
import json
import secrets
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, quote_plus

import pytest

from tests.support.commands import kubectl_workqueue, workqueue
from tests.support.kubernetes import apply, kubeconfig, kubectl, kubectl_json, temporary_namespace
from tests.support.operatorprocess import operator_process
from tests.support.rabbitmq import VirtualHost
from tests.support.wait import eventually
from tests.support.worker import Workers, publish, take_all

Object = dict[str, Any]
CLOSED_PORT: Final = 9


def planted(name: str) -> str:
    """A unique password, with characters that URLs, JSON and shells must escape."""
    return f"{name}-{secrets.token_hex(8)}@:/%#?&\"'$ü"


def forms(password: str) -> set[str]:
    """The encodings in which it could leak."""
    plain = password.encode()
    found = {
        password,
        quote(password, safe=""),
        quote(password),
        quote_plus(password),
        json.dumps(password)[1:-1],
        repr(password)[1:-1],
        repr(plain)[2:-1],
        plain.hex(),
        # The part that needs no escape anywhere.
        password.partition("@")[0],
    }
    for before in range(3):  # base64 of something longer that contains it, at each of three offsets
        coded = base64.b64encode(b"x" * before + plain).decode()
        start = -(-before * 8 // 6)
        found.add(coded[start : start + 16])
        urlsafe = base64.urlsafe_b64encode(b"x" * before + plain).decode()
        found.add(urlsafe[start : start + 16])
    return found


class Plants:
    """The passwords of one test, and all output."""

    def __init__(self) -> None:
        self._passwords: dict[str, str] = {}
        self.said: dict[str, str] = {}

    def new(self, name: str) -> str:
        password = self._passwords[name] = planted(name)
        return password

    def hear(self, where: str, text: str) -> None:
        self.said[where] = text

    @property
    def leaks(self) -> list[str]:
        return [
            f"{name} in {where}: ...{text[max(0, text.index(form) - 200) : text.index(form) + 80]}..."
            for name, password in self._passwords.items()
            for form in forms(password)
            for where, text in self.said.items()
            if form in text
        ]


def test_secret_search_finds_every_encoding() -> None:
    """Without this, the tests below would prove nothing."""
    for leak in (
        lambda password: f"amqp://user:{quote(password, safe='')}@host/",
        lambda password: f"Authorization: Basic {base64.b64encode(f'user:{password}'.encode()).decode()}",
        lambda password: base64.b64encode(f"\0me\0{password}".encode()).decode(),
        lambda password: json.dumps({"a": password}),
        lambda password: repr([password]),
        lambda password: f"port could not be cast to integer value as {password.partition('@')[0]!r}",
    ):
        plants = Plants()
        plants.hear("here", leak(plants.new("search")))
        assert plants.leaks


BAD_URIS: Final = {
    "port": "amqp://user:{quoted}@127.0.0.1:{quoted}/",
    "no-host": "amqp://user:{quoted}",
    "unquoted": "amqp://user:{plain}@127.0.0.1:5672/",
    "scheme": "http://user:{quoted}@127.0.0.1:5672/",
    "brackets": "amqp://user:{quoted}@[127.0.0.1:5672/",
    "no-scheme": "user:{quoted}@127.0.0.1:5672",
    "path": "amqp://127.0.0.1:5672/{quoted}@x",
}


def uris(plants: Plants) -> dict[str, str]:
    made = {}
    for name, form in BAD_URIS.items():
        password = plants.new(name)
        made[name] = form.format(plain=password, quoted=quote(password, safe=""))
    return made


# -- the worker and the command line -------------------------------------------------------------------


@pytest.mark.slow
def test_worker_and_commands_reveal_no_password(vhost: VirtualHost, workers: Workers, tmp_path: Path) -> None:
    plants, broker = Plants(), vhost.broker
    good, user = plants.new("good"), vhost.name
    broker.add_user(user, good, vhost.name)
    urls = uris(plants) | {
        "good": broker.url_of(vhost.name, user, good),
        "wrong": broker.url_of(vhost.name, user, plants.new("wrong")),
        "tls": broker.url_of(vhost.name, user, plants.new("tls"), tls=True),
        "down": f"amqp://planted:{quote(plants.new('down'), safe='')}@127.0.0.1:{CLOSED_PORT}/",
        "elsewhere": broker.url_of("no-such-host", user, good),
    }
    started = {name: workers.start(None, environment={"WORKQUEUE_URL": url}) for name, url in urls.items()}
    folder = tmp_path / "binding"
    folder.mkdir()
    for key, value in {"host": "127.0.0.1", "username": user, "port": plants.new("as-port")}.items():
        (folder / key).write_text(value)
    (folder / "tls.key").write_text(
        f"-----BEGIN PRIVATE KEY-----\n{plants.new('key')}\n-----END PRIVATE KEY-----"
    )
    started["folder"] = workers.start(None, "--binding", str(folder))
    eventually(lambda: started["folder"].process.poll() is not None, 60)
    (folder / "port").write_text(str(broker.tls_port))
    (folder / "tls.crt").write_text("-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----")
    started["certificate"] = workers.start(None, "--binding", str(folder))
    eventually(lambda: vhost.exists("jobs"), 60)
    publish(vhost, {"id": 1, "do": "fail"}, {"id": 2, "do": "reject"})
    eventually(lambda: started["good"].outcomes()["dead_lettered"] >= 1, 60)
    for name in ("wrong", "tls", "down", "elsewhere"):
        eventually(lambda name=name: started[name].status()["lastError"], 60)
    broker.close_connections("closed by a test")
    eventually(lambda: started["good"].count_log("Connection to RabbitMQ lost; connecting again."))
    for name, worker in started.items():
        if worker.process.poll() is None:
            with suppress(AssertionError):
                plants.hear(f"/status of {name}", json.dumps(worker.request("/status")[1]))
                plants.hear(f"/metrics of {name}", str(worker.request("/metrics")[1]))
            worker.stop()
        plants.hear(f"the log of {name}", worker.log)
        if worker.termination_log.exists():
            plants.hear(f"the termination message of {name}", worker.termination_log.read_text())
    plants.hear("dead letters", str([properties.headers for properties, _ in take_all(vhost, "jobs.dead")]))
    for name, url in urls.items():
        for words in (("stats", "jobs"), ("peek", "--queue", "jobs"), ("send", "--queue", "jobs", "x")):
            done = workqueue(*words, *(("--timeout", "2") if words[0] == "send" else ()), url=url)
            plants.hear(f"{words[0]} {name}", done.out + done.err)
    assert not plants.leaks
    assert "ACCESS_REFUSED" in plants.said["the log of wrong"], "it came as far as that"
    assert "has no host" in plants.said["the log of no-host"] or "port" in plants.said["the log of no-host"]


# -- the operator --------------------------------------------------------------------------------------


def body(name: str, **spec: Any) -> Object:
    worker = {"image": "nothing:1", "handler": {"python": "a:b"}, "nodeSelector": {"no-node": "has-this"}}
    return {
        "apiVersion": "workqueue.dev/v1alpha1",
        "kind": "WorkQueue",
        "metadata": {"name": name},
        "spec": {
            "connectionSecretRef": {"name": name},
            **({} if "workloadRef" in spec else {"worker": worker}),
            **spec,
        },
    }


@pytest.mark.slow
def test_operator_reveals_no_password(vhost: VirtualHost, tmp_path: Path) -> None:
    plants, broker = Plants(), vhost.broker
    good, user, log = plants.new("good"), vhost.name, tmp_path / "operator.log"
    broker.add_user(user, good, vhost.name)
    uri = broker.url_of(vhost.name, user, good)
    in_address = quote(plants.new("in-address"), safe="")
    pem = f"-----BEGIN PRIVATE KEY-----\n{plants.new('key')}\n-----END PRIVATE KEY-----"
    bound: dict[str, dict[str, str]] = {name: {"uri": bad} for name, bad in uris(plants).items()} | {
        "good": {"uri": uri},
        "wrong": {"uri": broker.url_of(vhost.name, user, plants.new("wrong"))},
        "tls": {"uri": broker.url_of(vhost.name, user, plants.new("tls"), tls=True)},
        "down": {
            "host": "127.0.0.1",
            "port": str(CLOSED_PORT),
            "username": user,
            "password": plants.new("down"),
        },
        "as-port": {"host": "127.0.0.1", "username": user, "port": plants.new("as-port")},
        "key": {"uri": uri.replace("amqp:", "amqps:"), "tls.crt": "none", "tls.key": pem},
        "managed-refused": {
            "uri": uri,
            "management-uri": f"http://x:{in_address}@127.0.0.1:{broker.management_port}",
        },
        "managed-nonsense": {"uri": uri, "management-uri": f"http://x:{plants.new('unquoted')}@127.0.0.1"},
        "managed-down": {"uri": uri, "management-uri": f"http://127.0.0.1:{CLOSED_PORT}"},
    }
    with temporary_namespace("security-plants") as namespace:
        apply(
            *(
                {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": keys}
                for name, keys in bound.items()
            ),
            *(body(name) for name in bound if not name.startswith("managed")),
            *(
                body(name, workloadRef={"name": name}, scaling={"scaleInDelaySeconds": 0})
                for name in bound
                if name.startswith("managed")
            ),
            *(deployment(name) for name in bound if name.startswith("managed")),
            namespace=namespace,
        )
        with operator_process(log, namespace) as port:
            where = f"--namespace={namespace}"

            def reasons() -> dict[str, set[str]]:
                return {
                    one["metadata"]["name"]: {
                        c["reason"] for c in one.get("status", {}).get("conditions", ())
                    }
                    for one in kubectl_json("get", "wq", where)["items"]
                }

            expected = {
                "wrong": "AuthenticationFailed",
                "tls": "BrokerUnreachable",
                "down": "BrokerUnreachable",
                "unquoted": "SecretInvalid",
                "as-port": "SecretInvalid",
                "key": "SecretInvalid",
                "managed-refused": "UnacknowledgedUnknown",
                "managed-nonsense": "UnacknowledgedUnknown",
                "managed-down": "UnacknowledgedUnknown",
            }

            def missing() -> dict[str, set[str]]:
                seen = reasons()
                return {name: seen[name] for name, reason in expected.items() if reason not in seen[name]}

            with suppress(TimeoutError):
                eventually(lambda: not missing(), 120)
            assert not missing()
            broker.close_connections("closed by a test")
            eventually(lambda: "was lost" in log.read_text(), 20, "the connection was lost")
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                plants.hear("/metrics", answer.read().decode())
            plants.hear(
                "the resources", kubectl("get", "wq,events,deployments,pods,pdb", where, "--output=yaml")
            )
            plants.hear("kubectl describe", kubectl("describe", "wq", where))
            for name in ("good", "wrong", "tls", "down", "unquoted", "as-port", "key"):
                for words in (("status", name), ("send", name, "x"), ("dead", "list", name)):
                    plants.hear(f"kubectl workqueue {' '.join(words)}", plugin(*words, where))
            plants.hear("kubectl workqueue top", plugin("top", "--once", where))

        plants.hear("the log", log.read_text())
    assert "AuthenticationFailed" in plants.said["the log"]
    assert '"level": "debug"' in plants.said["the log"]
    assert "ACCESS_REFUSED" in plants.said["kubectl workqueue send wrong x"], "it came as far as that"
    assert not plants.leaks


def plugin(*words: str) -> str:
    """All output of the kubectl plugin."""
    done = kubectl_workqueue(*words, KUBECONFIG=str(kubeconfig()))
    return done.out + done.err


def deployment(name: str) -> Object:
    labels = {"app": name}
    spec = {"containers": [{"name": "celery", "image": "nothing:1"}], "nodeSelector": {"no-node": "has-this"}}
    pod = {"metadata": {"labels": labels}, "spec": spec}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": pod},
    }
