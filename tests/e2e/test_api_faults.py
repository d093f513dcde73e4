"""The operator between a real API server that is made to misbehave and a real RabbitMQ.

It runs as a process of the test, so that it reaches the proxy and the broker on loopback. Its WorkQueues
never get a pod (no node matches), since these tests check only the operator's behaviour.
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import operatorprocess
from tests.support.apiproxy import ApiProxy, Fault, Request, api_proxy
from tests.support.kubernetes import kubectl, kubectl_json, temporary_namespace
from tests.support.ports import free_port
from tests.support.rabbitmq import Broker
from tests.support.wait import eventually

LEASE_LOST = 3


@dataclass
class Bench:
    """An operator process behind a proxy, a namespace, and a broker on loopback."""

    proxy: ApiProxy
    namespace: str
    broker: Broker
    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def create(self, name: str) -> str:
        """A WorkQueue that is Ready; returns the queue's name."""
        queue = f"{name}-{secrets.token_hex(3)}"
        body = {
            "apiVersion": "workqueue.dev/v1alpha1",
            "kind": "WorkQueue",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "connectionSecretRef": {"name": "rabbitmq"},
                "queue": {"name": queue},
                "worker": {
                    "image": "nothing:1",
                    "handler": {"python": "a:b"},
                    "nodeSelector": {"no-node": "has-this"},
                },
            },
        }
        kubectl("apply", "--filename=-", input=json.dumps(body))
        where = f"--namespace={self.namespace}"
        kubectl("wait", "--for=condition=Ready", f"wq/{name}", where, "--timeout=120s")
        eventually(lambda: self.consumers(queue) == 1, 60, "the doorbell is installed")
        return queue

    def consumers(self, queue: str) -> int:
        """Consumers of a queue: the doorbell."""
        with self.broker.connect() as connection:
            return int(connection.channel().queue_declare(queue, passive=True).method.consumer_count)

    def publish(self, queue: str) -> None:
        """One message."""
        with self.broker.connect() as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            channel.basic_publish("", queue, b"x", mandatory=True)

    def replicas(self, name: str) -> int:
        """spec.replicas of its Deployment."""
        where = f"--namespace={self.namespace}"
        return int(kubectl_json("get", "deployment", f"{name}-worker", where)["spec"]["replicas"])

    def get(self, path: str) -> str:
        """A page of the operator's endpoint."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as response:
            return str(response.read().decode())


@contextlib.contextmanager
def bench(
    broker: Broker,
    folder: Path,
    *,
    resync: float = 300,
    election: bool = False,
    fault: Fault | None = None,
) -> Iterator[Bench]:
    """An operator process, optionally with a fault from its start."""
    with (
        temporary_namespace("e2e-api") as namespace,
        api_proxy() as proxy,
        proxy.fault(fault) if fault else contextlib.nullcontext(),
    ):
        keys = {"uri": base64.b64encode(broker.url.encode()).decode()}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "rabbitmq"}, "data": keys}
        kubectl("create", "--filename=-", f"--namespace={namespace}", input=json.dumps(secret))
        port = free_port()
        log = folder / "operator.log"
        process = operatorprocess.start(
            log,
            proxy.write_kubeconfig(folder / "kubeconfig"),
            watch_namespaces=namespace,
            leader_election=election,
            pod_namespace=namespace,
            port=port,
            resync_seconds=resync,
            log_format="text",
        )
        try:
            yield Bench(proxy, namespace, broker, process, port, log)
        finally:
            process.terminate()
            process.wait(60)
            print(log.read_text()[-4000:])


EXPIRED = {
    "type": "ERROR",
    "object": {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410},
}
"""The API server's response to a watch from a version that is too old."""


class FirstList:
    """Refuses the first LIST of a process; the earlier one, of discovery, passes."""

    def __init__(self) -> None:
        self.asked = 0
        self.refuses = True

    def __call__(self, request: Request) -> bool:
        if not (request.lists and request.path.endswith("/deployments")):
            return False
        self.asked += 1
        return self.refuses and self.asked > 1


def holder(under_test: Bench) -> str:
    """The holder of the Lease; empty without one."""
    where = f"--namespace={under_test.namespace}"
    found = kubectl("get", "lease", "workqueue-operator", where, "--ignore-not-found", "--output=json")
    return str(json.loads(found)["spec"].get("holderIdentity") or "") if found else ""


def is_write(request: Request) -> bool:
    return request.method != "GET"


def is_write_of_the_count(request: Request) -> bool:
    return is_write(request) and request.path.endswith("/deployments/refused-worker/scale")


def is_watch(request: Request) -> bool:
    return request.watch


@pytest.mark.slow
@pytest.mark.usefixtures("crd")
def test_object_deleted_during_blind_watch_is_forgotten(rabbitmq: Broker, tmp_path: Path) -> None:
    """kopf lists again after a 410 but never reports deletions in the gap; the resync finds them."""
    with bench(rabbitmq, tmp_path, resync=3) as under_test:
        queue = under_test.create("ghost")
        with under_test.proxy.fault(Fault(is_watch, event=EXPIRED)):
            under_test.proxy.cut_watches()
            kubectl("delete", "wq", "ghost", f"--namespace={under_test.namespace}")
            eventually(lambda: under_test.consumers(queue) == 0, 60, "its doorbell is removed")
        eventually(lambda: 'workqueue="ghost"' not in under_test.get("/metrics"), 60, "and its metrics")


@pytest.mark.usefixtures("crd")
@pytest.mark.parametrize(
    "status", [409, *(pytest.param(one, marks=pytest.mark.slow) for one in (429, 500, 503))]
)
def test_refused_writes_are_retried(status: int, rabbitmq: Broker, tmp_path: Path) -> None:
    headers = (("Retry-After", "1"),) if status == 429 else ()
    with bench(rabbitmq, tmp_path) as under_test:
        queue = under_test.create("refused")
        with under_test.proxy.fault(Fault(is_write, status=status, headers=headers)):
            before = len(under_test.proxy.seen)
            under_test.publish(queue)
            refused = lambda: sum(map(is_write_of_the_count, under_test.proxy.seen[before:]))  # noqa: E731
            eventually(lambda: refused() >= 2, 60, "it was tried twice")
            assert under_test.replicas("refused") == 0
        eventually(lambda: under_test.replicas("refused") == 1, 120, "it goes through once it may")


@pytest.mark.slow
@pytest.mark.usefixtures("crd")
def test_slow_api_server_delays_but_breaks_nothing(rabbitmq: Broker, tmp_path: Path) -> None:
    with bench(rabbitmq, tmp_path) as under_test, under_test.proxy.fault(Fault(lambda _: True, delay=1.0)):
        queue = under_test.create("slow")
        under_test.publish(queue)
        eventually(lambda: under_test.replicas("slow") == 1, 120, "it wakes")


@pytest.mark.slow
@pytest.mark.usefixtures("crd")
def test_leader_that_cannot_renew_exits_and_stops_writing(rabbitmq: Broker, tmp_path: Path) -> None:
    """A hanging request must not keep a dead leader alive: every request times out."""
    with bench(rabbitmq, tmp_path, election=True) as under_test:
        queue = under_test.create("fenced")
        with under_test.proxy.fault(Fault(lambda _: True, status=0)):
            under_test.publish(queue)
            assert under_test.process.wait(120) == LEASE_LOST
        assert under_test.replicas("fenced") == 0


@pytest.mark.usefixtures("crd")
def test_liveness_is_independent_of_api_server(rabbitmq: Broker, tmp_path: Path) -> None:
    with bench(rabbitmq, tmp_path, resync=1) as under_test:
        under_test.create("alive")
        with under_test.proxy.fault(Fault(lambda _: True, status=503)):
            before = len(under_test.proxy.seen)
            eventually(lambda: len(under_test.proxy.seen) > before + 3, 60, "it has noticed")
            assert under_test.get("/livez") == "ok"


@pytest.mark.slow
@pytest.mark.usefixtures("crd")
@pytest.mark.parametrize(
    "stops",
    [
        pytest.param(False, id="until-it-is-answered"),
        pytest.param(True, id="until-the-process-is-stopped"),
    ],
)
def test_process_with_refused_first_list_retries_without_lease(
    stops: bool, rabbitmq: Broker, tmp_path: Path
) -> None:
    first = FirstList()
    fault = Fault(first, status=429, headers=(("Retry-After", "1"),))
    with bench(rabbitmq, tmp_path, election=True, fault=fault) as under_test:
        eventually(lambda: first.asked >= 4, 120, "it was retried")
        assert under_test.process.poll() is None
        assert holder(under_test) == "", "a process that knows everything need not wait for this one"
        if stops:
            under_test.process.terminate()
            assert under_test.process.wait(60) == 0
        else:
            first.refuses = False
            under_test.create("late")
            assert holder(under_test)
