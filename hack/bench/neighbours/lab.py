"""The control plane, RabbitMQ, the stub kubelet and the operator, in a network namespace of their own.

Everything ends with the context, and nothing reaches another network. The operator may be of another checkout.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pika
import yaml

from hack.bench.errors import BenchError
from hack.bench.neighbours import image
from hack.bench.neighbours.probe import Cycle, Task
from hack.cluster.checkout import CHECKOUT
from hack.cluster.commands import run
from tests.support import operatorprocess, process, stubkubelet
from tests.support.apiproxy import ApiProxy, api_proxy
from tests.support.controlplane import (
    ENDS_WITH_US,
    OPERATOR,
    Api,
    ApiError,
    ControlPlane,
    answers,
    metrics_of,
)
from tests.support.objects import merged
from tests.support.ownnetwork import own_network
from tests.support.rabbitmq import DEFAULT, Broker, installed, running
from tests.support.wait import eventually

Object = dict[str, Any]

MEMORY: Final = Path("/dev/shm")
"""etcd's data is there: on one disk with a broker that writes 16 MiB messages, it would be a neighbour itself."""

HEALTHY: Final = "healthy"
"""The name of the healthy WorkQueue, of its queue and of its namespace."""

SYSTEM: Final = "operator-system"
LEASE: Final = "workqueue-operator"
PORT: Final = 8080
PAGE_PORT: Final = 8081
DOORBELLS: Final = "workqueue_doorbells"
SECRET: Final = "rabbitmq"
THREADS: Final = 8
START_SECONDS: Final = 90.0
WAIT_SECONDS: Final = 240.0
SETTLED_SECONDS: Final = 3.0
PROBE_EVERY: Final = 10.0
PROBE_SECONDS: Final = 5.0
PROBE_FAILURES: Final = 3
"""As the chart's livenessProbe."""


@dataclass
class Life:
    """What happened to the operator's process during a measurement.

    Attributes:
        restarts: how often it ended, or a kubelet would have ended it.
        peak: the most memory that it held, in bytes.
        processor: seconds of processor time.
        seconds: the length of the measurement.
        lease_kept: whether the same process held the Lease from start to end.
    """

    restarts: int
    peak: int
    processor: float
    seconds: float
    lease_kept: bool


@dataclass
class Result:
    """The outcome of one row.

    Attributes:
        cycles: one for each wake. The last may be incomplete.
    """

    cycles: list[Cycle]
    life: Life


class Operator:
    """The operator's process, restarted as a kubelet would restart it."""

    _numbers = itertools.count(1)

    def __init__(
        self, checkout: Path, command: Sequence[str], kubeconfig: Path, log: Path, **settings: object
    ) -> None:
        self.restarts = 0
        self._checkout = checkout
        self._command = command
        self._kubeconfig = kubeconfig
        self._settings = settings
        self._log = log
        self._peak = 0
        self._spent = self._spent_before = 0.0
        self._process = self._begin()
        self._ended = threading.Event()
        self._kubelet = threading.Thread(target=self._keep_alive, daemon=True)

    def wait_ready(self) -> None:
        """Wait until it is Ready.

        Raises:
            BenchError: it ended.
        """

        def ready() -> bool:
            if self._process.poll() is not None:
                raise BenchError(f"The operator ended with {self._process.returncode}:\n{self.log_tail()}")
            return answers(f"http://127.0.0.1:{PORT}/readyz", PROBE_SECONDS)

        eventually(ready, START_SECONDS, "the operator is Ready")
        self._kubelet.start()

    def stop(self) -> None:
        """End it at once."""
        self._ended.set()
        self._process.kill()
        self._process.wait()
        if self._kubelet.is_alive():
            self._kubelet.join()

    @property
    def alive(self) -> bool:
        """Return whether it runs."""
        return self._process.poll() is None

    def life(self, seconds: float, *, lease_kept: bool) -> Life:
        """Return what has happened to it so far."""
        processor = self.processor()
        return Life(self.restarts, self._peak, processor, seconds, lease_kept)

    def processor(self) -> float:
        """Return the processor time of its processes, in seconds."""
        self._look()
        return self._spent_before + self._spent

    @property
    def pid(self) -> int:
        """Return the number of its process."""
        return self._process.pid

    def doorbells(self) -> float:
        """Return the number of its installed doorbells; 0 while it does not answer."""
        with suppress(OSError):
            return sum(metrics_of(f"http://127.0.0.1:{PORT}/metrics?name[]={DOORBELLS}", 30).values())
        return 0.0

    def log_tail(self, lines: int = 40) -> str:
        """Return the end of its log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def _begin(self) -> subprocess.Popen[bytes]:
        return operatorprocess.start(
            self._log,
            self._kubeconfig,
            (*ENDS_WITH_US, *self._command),
            self._checkout,
            pod_namespace=SYSTEM,
            pod_name=f"operator-{next(self._numbers)}",
            lease_name=LEASE,
            port=PORT,
            log_format="text",
            **self._settings,
        )

    def _look(self) -> None:
        """Read what the present process has used. What it used last stays known after its end."""
        with suppress(OSError, IndexError):
            self._spent = process.processor_seconds(self._process.pid)
            self._peak = max(self._peak, process.memory(self._process.pid, "VmHWM"))

    def _keep_alive(self) -> None:
        """Probe it as the kubelet does, and start it again when it ends."""
        failures, due = 0, time.monotonic() + PROBE_EVERY
        while not self._ended.wait(0.5):
            self._look()
            if time.monotonic() >= due:
                due = time.monotonic() + PROBE_EVERY
                alive = answers(f"http://127.0.0.1:{PORT}/livez", PROBE_SECONDS)
                failures = 0 if alive else failures + 1
            if failures >= PROBE_FAILURES:
                self._process.kill()
                self._process.wait()
            if self._process.poll() is not None and not self._ended.is_set():
                failures = 0
                self.restarts += 1
                self._spent_before, self._spent = self._spent_before + self._spent, 0.0
                self._process = self._begin()


class Lab:
    """The parts, while they run.

    Attributes:
        checkout: the checkout whose operator runs.
        root: the image's folder, whose Python and packages it has; None for those of this process.
        settings: of each operator, as WORKQUEUE_* without the prefix, in small letters.
        plane: the control plane.
        broker: the RabbitMQ of the healthy WorkQueue, and of neighbours that share its connection.
    """

    _namespaces = itertools.count(1)

    def __init__(
        self,
        checkout: Path,
        root: Path | None,
        settings: Object,
        plane: ControlPlane,
        broker: Broker,
        stack: ExitStack,
    ) -> None:
        self.checkout = checkout
        self.root = root
        self.settings = settings
        self.folder = plane.folder.parent
        self.plane = plane
        self.broker = broker
        self.api: Api = plane.api
        self.operator: Operator | None = None
        self.proxy: ApiProxy | None = None
        self._stack = stack
        self._second: Broker | None = None
        self._configuration: Object | None = None
        self._connection: pika.BlockingConnection | None = None
        # As in the image. Compiling them takes memory and a part of each start.
        packages = [str(checkout / package) for package in ("operator", "worker")]
        run(self._python("-m", "compileall", "-q", *packages), doing="Compiling the operator")

    # -- the operator ---------------------------------------------------------------------------------

    def start_operator(self, *, proxied: bool = False, fresh: bool = True, **settings: object) -> Operator:
        """Start the operator and wait until the healthy WorkQueue has its doorbell.

        Args:
            proxied: its requests pass through a proxy that can misbehave.
            fresh: start another process even if one with these settings runs.
        """
        wanted = {"proxied": proxied, **self.settings, **settings}
        if self.operator is not None and not fresh and wanted == self._configuration and self.operator.alive:
            return self.operator
        self._configuration = wanted
        self.begin_operator().wait_ready()
        # Not until it is Ready: no status can be written with the older CRD of a row.
        self.wait_doorbells([HEALTHY])
        assert self.operator is not None
        return self.operator

    def _python(self, *arguments: str) -> list[str]:
        """Return a command of the operator's Python."""
        if self.root is None:
            return [sys.executable, *arguments]
        return image.inside(self.root, (self.checkout, self.folder), [image.PYTHON, *arguments])

    def begin_operator(self) -> Operator:
        """Start the operator as it was started last, without waiting."""
        self.stop_operator()
        settings = dict(self._configuration or {})
        with suppress(ApiError):
            # The process that held it is dead.
            self.api.call("DELETE", f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/{LEASE}")
        kubeconfig = self.plane.kubeconfig(OPERATOR)
        if settings.pop("proxied", False):
            if self.proxy is None:
                self.proxy = self._stack.enter_context(api_proxy(credentials=kubeconfig))
            kubeconfig = self.proxy.write_kubeconfig(self.folder / "proxied.kubeconfig")
        command, log = self._python("-c", operatorprocess.RUN), self.folder / "operator.log"
        self.operator = Operator(self.checkout, command, kubeconfig, log, **settings)
        return self.operator

    def stop_operator(self) -> None:
        """End the operator."""
        if self.operator is not None:
            self.operator.stop()
            self.operator = None

    def lease(self) -> tuple[str, int]:
        """Return the holder of the Lease, and how often it changed."""
        path = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/{LEASE}"
        spec = self.api.call("GET", path)["spec"]
        return str(spec.get("holderIdentity")), int(spec.get("leaseTransitions") or 0)

    def probe(self, cycles: int, seconds: float) -> list[Cycle]:
        """Wake the healthy WorkQueue and scale it in.

        Raises:
            BenchError: the probe failed.
        """
        task = Task(str(self.plane.folder), HEALTHY, HEALTHY, self.broker.url, cycles, seconds)
        done = subprocess.run(
            [*ENDS_WITH_US, sys.executable, "-m", "hack.bench.neighbours.probe", json.dumps(asdict(task))],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise BenchError(f"The probe failed:\n{done.stderr[-3000:]}")
        return [Cycle(**json.loads(line)) for line in done.stdout.splitlines()]

    # -- objects --------------------------------------------------------------------------------------

    @contextmanager
    def namespace(self, labels: dict[str, str] | None = None, *, keep: bool = False) -> Iterator[str]:
        """A namespace for neighbours, with a Secret for the healthy WorkQueue's broker. Empty at the end.

        Args:
            keep: leave everything in it, for the last row of a lab.
        """
        name = f"neighbours-{next(self._namespaces)}"
        self._make_namespace(name, labels)
        try:
            yield name
        finally:
            if not keep:
                self._empty(name)

    def secret(self, namespace: str, name: str, **keys: str) -> None:
        """Write a connection Secret."""
        data = {key.replace("_", "-"): value for key, value in keys.items()}
        body = _object("v1", "Secret", name, stringData=data)
        self.api.apply(f"/api/v1/namespaces/{namespace}/secrets/{name}", body)

    def create(
        self,
        namespace: str,
        names: Sequence[str],
        change: Object | None = None,
        *,
        stop: threading.Event | None = None,
    ) -> int:
        """Create WorkQueues, eight at a time, until `stop`. Return their number."""
        spec = merged(workqueue_spec(), change or {})
        path = workqueues_path(namespace)

        def make(name: str) -> int:
            if stop is not None and stop.is_set():
                return 0
            self.api.call("POST", path, _object("workqueue.dev/v1alpha1", "WorkQueue", name, spec=spec))
            return 1

        return sum(self.in_parallel(make, names))

    def change(self, namespace: str, name: str, spec: Object) -> None:
        """Change the spec of a WorkQueue."""
        self.api.merge(f"{workqueues_path(namespace)}/{name}", {"spec": spec})

    @contextmanager
    def default_controllers(self) -> Iterator[None]:
        """Kubernetes' controllers with their default limits while the context lasts."""
        with self.plane.default_controllers():
            self._wait_controllers()
            yield
        self._wait_controllers()

    def _wait_controllers(self) -> None:
        """Wait until the controllers, which have just been started, follow a Deployment again."""
        labels = {"app": "observed"}
        template = {
            "metadata": {"labels": labels},
            "spec": {"containers": [{"name": "none", "image": "none"}]},
        }
        spec = {"replicas": 0, "selector": {"matchLabels": labels}, "template": template}
        collection = f"/apis/apps/v1/namespaces/{SYSTEM}/deployments"
        self.api.call("POST", collection, _object("apps/v1", "Deployment", "observed", spec=spec))

        def observed() -> bool:
            return bool(self.deployments(SYSTEM)["observed"].get("status", {}).get("observedGeneration"))

        eventually(observed, START_SECONDS, "the controllers follow the Deployments")
        self.api.call("DELETE", f"{collection}/observed")

    def in_parallel(self, work: Callable[[str], Any], names: Sequence[str]) -> list[Any]:
        """Call `work` with each name, eight at a time."""
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(work, names))

    def workqueues(self, namespace: str) -> dict[str, Object]:
        """Return all WorkQueues of a namespace by name."""
        items = self.api.call("GET", workqueues_path(namespace))["items"]
        return {body["metadata"]["name"]: body for body in items}

    def deployments(self, namespace: str) -> dict[str, Object]:
        """Return all Deployments of a namespace by name."""
        items = self.api.call("GET", f"/apis/apps/v1/namespaces/{namespace}/deployments")["items"]
        return {body["metadata"]["name"]: body for body in items}

    def wait_ready(self, namespace: str, names: Sequence[str]) -> None:
        """Wait until these WorkQueues are Ready."""

        def ready() -> bool:
            found = self.workqueues(namespace)
            return all(name in found and is_ready(found[name]) for name in names)

        eventually(ready, WAIT_SECONDS, f"{len(names)} WorkQueues of {namespace} are Ready")

    def wait_each_ready(self, namespace: str, names: Sequence[str]) -> None:
        """Do the same without a LIST: of thousands, it would keep the API server busy."""

        def ready(name: str) -> bool:
            return is_ready(self.api.call("GET", f"{workqueues_path(namespace)}/{name}"))

        for name in names:
            eventually(partial(ready, name), WAIT_SECONDS, f"{name} is Ready")

    def wait_reported(self, namespace: str) -> None:
        """Wait until each WorkQueue is reported: Ready or not."""

        def reported() -> bool:
            return all(map(is_reported, self.workqueues(namespace).values()))

        eventually(reported, WAIT_SECONDS, f"all WorkQueues of {namespace} are reported")

    def wait_settled(self, namespace: str) -> None:
        """Wait until the operator has done what it can for new WorkQueues: no Deployment changes for 3 s."""
        seen, since = self._versions(namespace), time.monotonic()

        def settled() -> bool:
            nonlocal seen, since
            now = self._versions(namespace)
            if now != seen:
                seen, since = now, time.monotonic()
            return time.monotonic() - since >= SETTLED_SECONDS

        eventually(settled, WAIT_SECONDS, f"the Deployments of {namespace} stay the same")

    def _versions(self, namespace: str) -> dict[str, str]:
        found = self.deployments(namespace)
        return {name: body["metadata"]["resourceVersion"] for name, body in found.items()}

    def wait_asleep(self, names: Sequence[str], namespace: str) -> None:
        """Wait until these WorkQueues are Ready and have a doorbell on each queue."""
        self.wait_ready(namespace, names)
        self.wait_doorbells(names)

    def wait_doorbells(self, names: Sequence[str]) -> None:
        """Wait until these queues are empty and have one consumer, the doorbell."""

        def quiet() -> bool:
            return all(self.counts(name) == (0, 1) for name in names)

        eventually(quiet, WAIT_SECONDS, f"{len(names)} queues have a doorbell")

    def wait_workers(self, namespace: str, names: Sequence[str], *, ready: bool = True) -> None:
        """Wait until these WorkQueues have a worker that is Ready, or only a pod."""
        counted = "readyReplicas" if ready else "replicas"

        def have_workers() -> bool:
            found = self.deployments(namespace)
            return all(found.get(f"{name}-worker", {}).get("status", {}).get(counted) for name in names)

        eventually(have_workers, WAIT_SECONDS, f"{len(names)} WorkQueues of {namespace} have workers")

    # -- RabbitMQ -------------------------------------------------------------------------------------

    @property
    def second_broker(self) -> Broker:
        """The RabbitMQ of neighbours alone."""
        if self._second is None:
            self._second = self._stack.enter_context(running(DEFAULT, management=False))
        return self._second

    def channel(self) -> Any:
        """A channel for this thread's use, with a connection that lasts as long as the lab."""
        if self._connection is None or not self._connection.is_open:
            parameters = pika.URLParameters(self.broker.url)
            parameters.heartbeat = 0
            self._connection = pika.BlockingConnection(parameters)
        return self._connection.channel()

    def counts(self, queue: str) -> tuple[int, int] | None:
        """Return the messages and consumers of a queue of the healthy WorkQueue's broker; None: no queue."""
        channel = self.channel()
        try:
            answer = channel.queue_declare(queue, passive=True).method
        except pika.exceptions.ChannelClosedByBroker:
            return None
        channel.close()
        return int(answer.message_count), int(answer.consumer_count)

    # -- inside ---------------------------------------------------------------------------------------

    def _make_namespace(self, name: str, labels: dict[str, str] | None = None) -> None:
        body = _object("v1", "Namespace", name)
        body["metadata"]["labels"] = labels or {}
        self.api.apply(f"/api/v1/namespaces/{name}", body)
        self.secret(name, SECRET, uri=self.broker.url)

    def _empty(self, namespace: str) -> None:
        """Delete the WorkQueues with all they own, and their queues."""
        names = list(self.workqueues(namespace))
        self.api.call("DELETE", workqueues_path(namespace))
        path = f"/apis/apps/v1/namespaces/{namespace}/deployments"

        def empty() -> bool:
            # The operator may have made one since.
            self.api.call("DELETE", f"{path}?propagationPolicy=Background")
            pods = self.api.call("GET", f"/api/v1/namespaces/{namespace}/pods?limit=1")["items"]
            return not pods and not self.deployments(namespace)

        eventually(empty, WAIT_SECONDS, f"{namespace} is empty")
        channel = self.channel()
        for name in names:
            for queue in (name, f"{name}.dead"):
                channel.queue_delete(queue)
        channel.close()

    def close(self) -> None:
        """End the operator and the lab's own connections."""
        self.stop_operator()
        if self._connection is not None and self._connection.is_open:
            self._connection.close()

    def prepare(self) -> None:
        """Install the CRD, the namespaces and the healthy WorkQueue."""
        self.install_crd()
        self._make_namespace(SYSTEM)
        self._make_namespace(HEALTHY)
        eventually(self._creates_healthy, START_SECONDS, "the API server serves WorkQueues")

    def crd(self) -> Object:
        """Return the CRD of the operator's checkout."""
        text = (self.checkout / "manifests/crd/workqueues.yaml").read_text()
        body: Object = yaml.load(text, yaml.CSafeLoader)
        return body

    def install_crd(self, body: Object | None = None) -> None:
        """Install a CRD, by default the one of the operator's checkout."""
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/workqueues.workqueue.dev"
        self.api.apply(path, body or self.crd())

    def _creates_healthy(self) -> bool:
        with suppress(ApiError):
            return self.create(HEALTHY, [HEALTHY], {"worker": {"nodeSelector": stub(stubkubelet.IDLE)}}) == 1
        return False


@contextmanager
def lab(checkout: Path = CHECKOUT, root: Path | None = None, **settings: object) -> Iterator[Lab]:
    """Everything but the operator, while the context lasts. For the arguments see `Lab`."""
    folder = Path(tempfile.mkdtemp(prefix="neighbours-", dir=MEMORY if MEMORY.exists() else None))
    # Its own network reaches no archive.
    installed(DEFAULT)
    try:
        with own_network(), ExitStack() as stack:
            broker = stack.enter_context(running(DEFAULT, management=False))
            plane = stack.enter_context(ControlPlane(folder / "control-plane").running())
            stack.enter_context(stubkubelet.running(plane.folder))
            made = Lab(checkout, root, settings, plane, broker, stack)
            made.prepare()
            try:
                yield made
            finally:
                made.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def workqueue_spec() -> Object:
    """Return the spec of a WorkQueue whose pods stay Pending."""
    return {
        "connectionSecretRef": {"name": SECRET},
        "worker": {"image": "jobs:1", "handler": {"python": "jobs:handle"}},
        "scaling": {"scaleInDelaySeconds": 0},
    }


def stub(behaviour: str) -> dict[str, str]:
    """Return the nodeSelector for pods of the stub kubelet."""
    return {stubkubelet.BEHAVIOUR: behaviour}


def workqueues_path(namespace: str) -> str:
    """Return the path of the WorkQueues of a namespace."""
    return f"/apis/workqueue.dev/v1alpha1/namespaces/{namespace}/workqueues"


def is_reported(body: Object) -> bool:
    """Return whether the status says that a WorkQueue is Ready, or that it is not."""
    return _ready(body) != "Unknown"


def is_ready(body: Object) -> bool:
    """Return whether a WorkQueue is Ready."""
    return _ready(body) == "True"


def _ready(body: Object) -> str:
    conditions: dict[str, str] = {
        one["type"]: one["status"] for one in body.get("status", {}).get("conditions", [])
    }
    return conditions.get("Ready", "Unknown")


def _object(api_version: str, kind: str, name: str, **rest: Any) -> Object:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, **rest}
