"""Where the operator is tormented: a process of the test between two proxies, with real pods and a real RabbitMQ.

    operator process  -- ApiProxy -->  the cluster's API server
          |      \
          |       '----- Relay ----->  a RabbitMQ of any version on loopback
       asks workers                       |
          v                               |
    worker pods  ------- Relay -----------'

The operator runs in the cluster's network, so that it reaches pods as it would from a pod. Killing, freezing and
starting it again costs no pod start, and every one of its writes passes a proxy.
"""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pika
import pika.exceptions

from tests.faults.report import Report
from tests.support import clusternet, operatorprocess
from tests.support.apiproxy import ApiProxy, api_proxy
from tests.support.crash import CrashPoints
from tests.support.inside import Rabbit, drain
from tests.support.kubernetes import KubectlError, kubectl, temporary_namespace
from tests.support.ledger import Ledger
from tests.support.ports import free_port
from tests.support.rabbitmq import Broker
from tests.support.relay import Relay, relay_to
from tests.support.wait import eventually
from tests.support.workqueues import Lab, WorkQueueUnderTest, lab_in

Object = dict[str, Any]

START: Final = 90.0
"""Seconds that a process may take to start on a busy machine; what is promised begins afterwards."""

CONVERGE: Final = 60.0
"""Seconds within which everything is as the spec says once a fault is over."""

STAYS: Final = 1.5
"""Seconds for which it is watched that it stays so."""

NOWHERE: Final = {"no-node": "has-this"}
"""A nodeSelector with which pods stay Pending: for tests that look at the operator alone."""

BYSTANDER: Final = "the test itself"
"""The name of the test's own connections, which no fault is meant for."""


class BrokerOnLoopback(Rabbit):
    """A RabbitMQ of tests/support/rabbitmq.py as pods and operator see it: through a relay on the node's address."""

    def __init__(self, broker: Broker, relay: Relay, vhosts: ExitStack) -> None:
        super().__init__("nowhere")
        self.broker = broker
        self.host = clusternet.NODE_ADDRESS
        self.port = relay.port
        self._vhosts = vhosts

    def ctl(self, *arguments: str) -> str:
        return self.broker.ctl(*arguments)

    def add_vhost(self, name: str, user: str, password: str) -> None:
        self._vhosts.enter_context(self.broker.new_vhost(name))
        self.broker.add_user(user, password, name)
        self._vhosts.callback(self.broker.delete_user, user)

    def channel(self, vhost: str = "/", username: str = "guest", password: str = "guest") -> Any:
        parameters = pika.URLParameters(self.broker.url_of(vhost, username, password))
        parameters.heartbeat = 0
        parameters.client_properties = {"connection_name": BYSTANDER}
        channel = pika.BlockingConnection(parameters).channel()
        channel.confirm_delivery()
        return channel


class OperatorProcess:
    """`workqueue-operator` in the cluster's network, as often as it takes.

    Attributes:
        port: of its endpoint.
        restarts: how often it ended unasked.
    """

    _numbers = itertools.count(1)

    def __init__(self, kubeconfig: Path, namespace: str, log: Path, **settings: object) -> None:
        self._kubeconfig = kubeconfig
        self._namespace = namespace
        self.log = log
        self.settings = settings
        self.port = free_port()
        self.restarts = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, **settings: object) -> OperatorProcess:
        """Start it; `settings` are WORKQUEUE_* without the prefix, in small letters."""
        chosen: dict[str, object] = {
            "watch_namespaces": self._namespace,
            "leader_election": False,
            "pod_namespace": self._namespace,
            "pod_name": f"operator-{next(self._numbers)}",
            "port": self.port,
            "log_format": "text",
            "resync_seconds": 30,
            **self.settings,
            **settings,
        }
        command = clusternet.command(*operatorprocess.COMMAND)
        self._process = operatorprocess.start(self.log, self._kubeconfig, command, **chosen)
        return self

    def keep_alive(self) -> None:
        """Restart it if it has ended unasked, as the kubelet would; not after `leave`."""
        if self._process is not None and self._process.poll() is not None:
            self.restarts += 1
            self.start()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process as it runs, or as it ended."""
        assert self._process is not None, "the operator was not started"
        return self._process

    def wait_serving(self) -> OperatorProcess:
        """Wait until it says that it is ready."""
        eventually(self._is_ready, START, "the operator is ready")
        return self

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, (
            f"the operator ended with {self.process.returncode}:\n{self.tail()}"
        )
        with suppress(OSError, AssertionError):
            return clusternet.get(self.port, "/readyz") != ""
        return False

    def leads(self) -> bool:
        """Whether it says that it does."""
        with suppress(OSError):
            return "workqueue_leader 1.0" in self.get("/metrics")
        return False

    def get(self, path: str) -> str:
        """A page of its endpoint."""
        return clusternet.get(self.port, path)

    def kill(self) -> None:
        """SIGKILL, and it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def leave(self) -> None:
        """SIGKILL, for good: an operator in the cluster does the work."""
        self.kill()
        self._process = None

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        self.process.terminate()
        return self.process.wait(20)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """SIGSTOP while the context lasts."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def tail(self, lines: int = 25) -> str:
        """The end of its log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


@dataclass
class Site:
    """One namespace with an operator of its own."""

    lab: Lab
    proxy: ApiProxy
    relay: Relay
    crash: CrashPoints
    operator: OperatorProcess
    broker: Broker
    report: Report
    _names: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def namespace(self) -> str:
        """Of everything here."""
        return self.lab.namespace

    def workqueue(self, **changes: Any) -> WorkQueueUnderTest:
        """A WorkQueue with a name of its own, not applied; it scales in at once."""
        scaling = {"scaleInDelaySeconds": 0, **changes.pop("scaling", {})}
        return self.lab.workqueue(f"w{next(self._names)}", scaling=scaling, **changes)

    def ready(self, **changes: Any) -> WorkQueueUnderTest:
        """A WorkQueue that sleeps already."""
        workqueue = self.workqueue(**changes).apply()
        self.wait_converged(lambda: self.asleep(workqueue))
        return workqueue

    def asleep(self, workqueue: WorkQueueUnderTest) -> bool:
        """Whether it is Ready, has no worker, and its doorbell is installed."""
        queue = workqueue.queue_name
        return self.converged(workqueue, 0) and self.consumers(queue) == 1

    def consumers(self, queue: str) -> int:
        """How many consumers a queue has; -1: there is no such queue."""
        try:
            return int(self.lab.channel.queue_declare(queue, passive=True).method.consumer_count)
        except pika.exceptions.ChannelClosedByBroker:
            return -1

    @contextmanager
    def flowing(
        self, workqueue: WorkQueueUnderTest, ledger: Ledger, pause: float = 0.1, **job: Any
    ) -> Iterator[None]:
        """Messages keep coming while the context lasts; all that were confirmed are in the ledger."""
        stop = threading.Event()
        job = {"seconds": 0.2, **job}

        def run() -> None:
            rabbit, lab = self.lab.rabbit, self.lab
            channel = rabbit.channel(lab.vhost, lab.vhost, lab.password)
            for number in itertools.count(len(ledger.confirmed)):
                if stop.wait(pause):
                    break
                rabbit.publish(channel, workqueue.name, [{"id": number, **job}])
                ledger.sent(number)
            channel.connection.close()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def publish(self, workqueue: WorkQueueUnderTest, ledger: Ledger, count: int, **job: Any) -> None:
        """Publish so many jobs, each confirmed and in the ledger."""
        first = len(ledger.confirmed)
        numbers = range(first, first + count)
        workqueue.publish([{"id": number, **job} for number in numbers])
        for number in numbers:
            ledger.sent(number)

    def settle(self, workqueue: WorkQueueUnderTest, ledger: Ledger, seconds: float = 120) -> Ledger:
        """Wait until every confirmed message is done, dead or waiting where no worker runs; then count all."""
        queue = workqueue.queue_name
        queues = {ledger.read_waiting: queue, ledger.read_dead: f"{queue}.dead"}
        pending = bool(workqueue.body["spec"].get("worker", {}).get("nodeSelector"))
        channel = self.lab.channel

        def balanced() -> bool:
            ledger.read_events(drain(channel, f"{workqueue.name}.results"))
            for read, queue in queues.items():
                if pending or read == ledger.read_dead:
                    read(list(drain(channel, queue)))
            return not ledger.lost

        with suppress(TimeoutError):  # the ledger says what is missing, in better words
            eventually(balanced, seconds, "every message ended")
        return ledger

    def converged(self, workqueue: WorkQueueUnderTest, replicas: int | None = None) -> bool:
        """Whether the WorkQueue is Ready for its present spec, with so many workers."""
        body = workqueue.get()
        status = body.get("status", {})
        ready = {c["type"]: c["status"] for c in status.get("conditions", [])}.get("Ready")
        if ready != "True" or status.get("observedGeneration") != body["metadata"]["generation"]:
            return False
        return replicas is None or workqueue.replicas() == replicas

    def wait_converged(self, condition: Callable[[], object], since: float | None = None) -> float:
        """Wait until something holds, and stays so; the seconds from `since` until it held."""
        begun = time.monotonic() if since is None else since
        held_at: list[float] = []

        def stays() -> bool:
            self.operator.keep_alive()
            if not _holds(condition):
                held_at.clear()
                return False
            held_at.append(time.monotonic())
            return time.monotonic() - held_at[0] >= STAYS

        try:
            eventually(stays, CONVERGE, "everything is as the spec says")
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.operator.tail()}") from None
        return held_at[0] - begun


def _holds(condition: Callable[[], object]) -> bool:
    with suppress(KubectlError):  # not there yet
        return bool(condition())
    return False


@contextmanager
def site(broker: Broker, folder: Path, report: Report, **settings: object) -> Iterator[Site]:
    """A namespace, a virtual host and an operator (not started) of their own.

    Args:
        settings: of the operator, as `OperatorProcess.start` takes them.
    """
    crash = CrashPoints()
    with (
        relay_to(clusternet.listen(clusternet.NODE_ADDRESS), broker.port, crash) as relay,
        ExitStack() as vhosts,
        temporary_namespace("faults", pod_security="restricted") as namespace,
        api_proxy(clusternet.listen(), crash) as proxy,
        lab_in(namespace, BrokerOnLoopback(broker, relay, vhosts)) as lab,
    ):
        kubeconfig = proxy.write_kubeconfig(folder / "kubeconfig")
        operator = OperatorProcess(kubeconfig, namespace, folder / "operator.log", **settings)
        try:
            yield Site(lab, proxy, relay, crash, operator, broker, report)
        finally:
            with suppress(KubectlError):
                release_all(namespace)
            operator.kill()


@contextmanager
def second_operator(
    site: Site, folder: Path, **settings: object
) -> Iterator[tuple[OperatorProcess, ApiProxy]]:
    """Another process beside the site's own, behind a proxy of its own: (process, proxy)."""
    with api_proxy(clusternet.listen()) as proxy:
        kubeconfig = proxy.write_kubeconfig(folder / "second")
        operator = OperatorProcess(kubeconfig, site.namespace, folder / "second.log", **settings)
        try:
            yield operator, proxy
        finally:
            operator.kill()


def release_all(namespace: str) -> None:
    """Let WorkQueues go whose operator is gone: nothing may keep the namespace."""
    where = f"--namespace={namespace}"
    for name in kubectl("get", "wq", where, "--output=name").split():
        patch = json.dumps({"metadata": {"finalizers": None}})
        kubectl("patch", name, where, "--type=merge", f"--patch={patch}")
