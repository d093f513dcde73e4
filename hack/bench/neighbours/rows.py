"""The rows of the matrix: what is wrong with the neighbours while the healthy WorkQueue is woken.

Each row has a size for the benchmark and a small one for the tests. A row's context begins when the neighbours are
broken, and ends before they are repaired.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import pika

from hack.bench.neighbours import disturb, web
from hack.bench.neighbours.lab import PORT, SECRET, Lab, stub, workqueues_path
from tests.support import stubkubelet
from tests.support.apiproxy import Fault, Request
from tests.support.controlplane import ApiError
from tests.support.ownnetwork import SILENT_PODS
from tests.support.tcpproxy import tcp_proxy
from tests.support.wait import eventually

Object = dict[str, Any]
Disturbance = Callable[[Lab, int], AbstractContextManager[None]]

EDITS_PER_SECOND: Final = 10.0
WAKES_PER_SECOND: Final = 4.0
"""Of neighbours. Each wake starts a pod. With 20 a second the control plane itself needs more than two processors: a
bare consumer then waits for as long as the operator does."""

LARGE: Final = 16 * 2**20
STATUS_SECONDS: Final = 2.0
SILENT_ADDRESS: Final = SILENT_PODS.partition("/")[0].rpartition(".")[0]


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        name: selects the row on the command line, and names the test.
        title: in the table; {} is the size.
        full: the size for the benchmark: of WorkQueues, pods or clients.
        small: the size for the tests.
        disturb: the context in which the neighbours are broken. The operator runs.
        proxied: whether the operator's requests pass through the proxy that the row needs.
        settings: of the operator.
        around: a context around the start of the operator.
        last: whether so much is left behind that the lab ends with the row.
    """

    name: str
    title: str
    full: int
    small: int
    disturb: Disturbance
    proxied: bool = False
    settings: Object = field(default_factory=dict)
    around: Callable[[Lab], AbstractContextManager[None]] | None = None
    last: bool = False


def names(count: int, prefix: str = "n") -> list[str]:
    """Return the names of neighbours. They differ from those of other rows, because queues share a virtual host."""
    return [f"{prefix}-{number:05d}" for number in range(count)]


# -- broken brokers ----------------------------------------------------------------------------------


def nothing(_lab: Lab, _count: int) -> AbstractContextManager[None]:
    """No neighbour at all."""
    return nullcontext()


@contextmanager
def leaderless(lab: Lab, count: int) -> Iterator[None]:
    """Quorum queues on the healthy WorkQueue's connection whose member does not answer."""
    with lab.namespace() as namespace, ExitStack() as stack:
        chosen = names(count, "leaderless")
        lab.create(namespace, chosen)
        lab.wait_asleep(chosen, namespace)
        for name in chosen:
            stack.enter_context(lab.broker.suspended_member(name))
        # Half of them lose their doorbell: a cancel that nothing answers.
        for name in chosen[: (count + 1) // 2]:
            lab.change(namespace, name, {"scaling": {"wake": "Poll"}})
        with disturb.editing(lab, namespace, chosen, EDITS_PER_SECOND):
            yield


@contextmanager
def frozen_broker(lab: Lab, count: int) -> Iterator[None]:
    """WorkQueues on another broker that is stopped while its sockets stay open."""
    with (
        _on_second_broker(lab, count, lab.second_broker.url) as (namespace, chosen),
        lab.second_broker.frozen(),
        disturb.editing(lab, namespace, chosen, EDITS_PER_SECOND),
    ):
        yield


@contextmanager
def flapping_broker(lab: Lab, count: int) -> Iterator[None]:
    """WorkQueues on another broker that resets all connections each second."""
    with tcp_proxy(lab.second_broker.port) as proxy:
        url = lab.second_broker.url.replace(f":{lab.second_broker.port}", f":{proxy.port}")
        with _on_second_broker(lab, count, url):

            def flap(_: int) -> None:
                with proxy.refusing():
                    threading.Event().wait(0.3)

            with disturb.repeatedly(flap, 0.7):
                yield


@contextmanager
def _on_second_broker(lab: Lab, count: int, url: str) -> Iterator[tuple[str, list[str]]]:
    with lab.namespace() as namespace:
        chosen = names(count, "other")
        lab.secret(namespace, SECRET, uri=url)
        lab.create(namespace, chosen)
        lab.wait_ready(namespace, chosen)
        lab.wait_settled(namespace)
        yield namespace, chosen


@contextmanager
def dead_addresses(lab: Lab, count: int) -> Iterator[None]:
    """WorkQueues, each with a Secret of its own, whose amqps addresses drop packets or never speak TLS."""
    with lab.namespace() as namespace, disturb.serving(disturb.mute) as (mute,):
        chosen = names(count, "dead")
        for number, name in enumerate(chosen):
            place = f"127.0.0.1:{mute}" if number % 2 else f"{SILENT_ADDRESS}.{number % 250 + 1}:5671"
            lab.secret(namespace, name, uri=f"amqps://user-{number}:secret@{place}/")
        for name in chosen:
            lab.create(namespace, [name], {"connectionSecretRef": {"name": name}})
        # A Deployment is made only after the first attempt to connect.
        lab.wait_reported(namespace)
        lab.wait_settled(namespace)
        with disturb.editing(lab, namespace, chosen, EDITS_PER_SECOND):
            yield


@contextmanager
def bad_management(lab: Lab, count: int) -> Iterator[None]:
    """WorkQueues of foreign Deployments whose management API is slow, endless or garbled."""
    kinds = (disturb.dripping, disturb.endless, disturb.garbled)
    with lab.namespace() as namespace, disturb.serving(*kinds) as ports:
        chosen = names(count, "managed")
        for port in ports:
            management = f"http://127.0.0.1:{port}"
            lab.secret(namespace, f"kind-{port}", uri=lab.broker.url, management_uri=management)
        for number, name in enumerate(chosen):
            path = f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}"
            lab.api.apply(path, _deployment(name))
            reference = {"kind": "Deployment", "name": name}
            secret = {"name": f"kind-{ports[number % len(ports)]}"}
            change = {"worker": None, "workloadRef": reference, "connectionSecretRef": secret}
            lab.create(namespace, [name], change)
        lab.wait_settled(namespace)
        with disturb.editing(lab, namespace, chosen, EDITS_PER_SECOND):
            yield


def _deployment(name: str) -> Object:
    labels = {"app": name, stubkubelet.SELECTOR: name}
    pod = {"containers": [{"name": "worker", "image": "theirs:1"}], "nodeSelector": stub(stubkubelet.IDLE)}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


@contextmanager
def large_messages(lab: Lab, count: int) -> Iterator[None]:
    """Idle queues on the healthy WorkQueue's connection that all receive 16 MiB, in a loop."""
    with lab.namespace() as namespace, disturb.connection_to(lab.broker.url) as connection:
        chosen = names(count, "large")
        lab.create(namespace, chosen)
        lab.wait_asleep(chosen, namespace)
        channel = connection.channel()

        def publish(_: int) -> None:
            for name in chosen:
                channel.basic_publish("", name, bytes(LARGE), pika.BasicProperties(delivery_mode=2))
            with suppress(TimeoutError):
                eventually(lambda: all(map(_woken(lab, namespace), chosen)), 30)
            for name in chosen:
                channel.queue_purge(name)
            with suppress(TimeoutError):
                eventually(lambda: all(lab.counts(name) == (0, 1) for name in chosen), 30)

        with disturb.repeatedly(publish, 0.1):
            yield


def _woken(lab: Lab, namespace: str) -> Callable[[str], bool]:
    deployments = lab.deployments(namespace)
    return lambda name: bool(deployments.get(f"{name}-worker", {}).get("spec", {}).get("replicas"))


@contextmanager
def requeue_loop(lab: Lab, count: int) -> Iterator[None]:
    """Queues on the healthy WorkQueue's connection with a foreign consumer that gives each message back."""
    with lab.namespace() as namespace, ExitStack() as stack:
        chosen = names(count, "requeued")
        lab.create(namespace, chosen, {"queue": {"type": "Classic"}})
        lab.wait_asleep(chosen, namespace)
        channel = lab.channel()
        for name in chosen:
            channel.basic_publish("", name, b"x")
            stack.enter_context(disturb.requeueing(lab.broker.url, name))
        yield


# -- broken workers ----------------------------------------------------------------------------------


@contextmanager
def silent_pods(lab: Lab, count: int) -> Iterator[None]:
    """WorkQueues with one worker each that drops every packet to its port."""
    with _with_workers(lab, count, "silent", [stubkubelet.SILENT]):
        yield


@contextmanager
def bad_statuses(lab: Lab, count: int) -> Iterator[None]:
    """WorkQueues with one worker each whose /status is slow or garbled."""
    with _with_workers(lab, count, "bad", [stubkubelet.SLOW, stubkubelet.GARBAGE]):
        yield


@contextmanager
def _with_workers(lab: Lab, count: int, prefix: str, behaviours: list[str]) -> Iterator[None]:
    with lab.namespace() as namespace:
        chosen = names(count, prefix)
        for number, behaviour in enumerate(behaviours):
            some = chosen[number :: len(behaviours)]
            lab.create(
                namespace, some, {"worker": {"nodeSelector": stub(behaviour)}, "queue": {"type": "Classic"}}
            )
        with disturb.with_workers(lab, namespace, chosen):
            lab.wait_settled(namespace)
            yield


# -- a bad Kubernetes --------------------------------------------------------------------------------


@contextmanager
def slow_status_writes(lab: Lab, count: int) -> Iterator[None]:
    """Every status write takes 2 s, and the depths of the neighbours change."""
    with _faulty(lab, count, Fault(_writes_status, delay=STATUS_SECONDS)):
        yield


@contextmanager
def refused_events(lab: Lab, count: int) -> Iterator[None]:
    """Every Event is answered with 429, and the neighbours have something to say."""
    refusal = Fault(lambda asked: asked.write == "POST events", status=429, headers=(("Retry-After", "5"),))
    with _faulty(lab, count, refusal):
        yield


def _writes_status(asked: Request) -> bool:
    return asked.write is not None and asked.write.endswith("workqueues/status")


@contextmanager
def _faulty(lab: Lab, count: int, fault: Fault) -> Iterator[None]:
    assert lab.proxy is not None
    with lab.namespace() as namespace:
        chosen = names(count, "faulty")
        lab.create(namespace, chosen)
        lab.wait_asleep(chosen, namespace)
        with lab.proxy.fault(fault), disturb.publishing(lab, chosen, WAKES_PER_SECOND):
            yield


@contextmanager
def refused_deployments(lab: Lab, count: int) -> Iterator[None]:
    """An admission policy refuses every Deployment of the neighbours' namespace."""
    label = {"neighbours": "refused"}
    policy = {
        "failurePolicy": "Fail",
        "matchConstraints": {
            "namespaceSelector": {"matchLabels": label},
            "resourceRules": [
                {
                    "apiGroups": ["apps"],
                    "apiVersions": ["v1"],
                    "operations": ["CREATE", "UPDATE"],
                    "resources": ["deployments"],
                }
            ],
        },
        "validations": [{"expression": "false", "message": "no Deployments here"}],
    }
    binding = {"policyName": "no-deployments", "validationActions": ["Deny"]}
    group = "/apis/admissionregistration.k8s.io/v1"
    with lab.namespace(label) as namespace:
        for kind, spec in (
            ("ValidatingAdmissionPolicy", policy),
            ("ValidatingAdmissionPolicyBinding", binding),
        ):
            plural = f"{kind.lower()}s".replace("policys", "policies")
            body = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "spec": spec}
            path = f"{group}/{plural}/no-deployments"
            lab.api.apply(path, {**body, "metadata": {"name": "no-deployments"}})
        try:
            path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
            eventually(lambda: _is_refused(lab, path), 30, "the policy refuses Deployments")
            chosen = names(count, "refused")
            lab.create(namespace, chosen)
            lab.wait_settled(namespace)
            with disturb.editing(lab, namespace, chosen, EDITS_PER_SECOND):
                yield
        finally:
            for plural in ("validatingadmissionpolicybindings", "validatingadmissionpolicies"):
                lab.api.call("DELETE", f"{group}/{plural}/no-deployments")


def _is_refused(lab: Lab, path: str) -> bool:
    try:
        lab.api.call("POST", f"{path}?dryRun=All", _deployment("probe"))
    except ApiError as error:
        return "no Deployments here" in str(error)
    return False


@contextmanager
def refused_pods(lab: Lab, count: int) -> Iterator[None]:
    """A quota allows no pod in the neighbours' namespace, and messages wait there."""
    with lab.namespace() as namespace:
        path = f"/api/v1/namespaces/{namespace}/resourcequotas/none"
        quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}}
        lab.api.apply(path, {**quota, "spec": {"hard": {"pods": "0"}}})
        eventually(lambda: lab.api.call("GET", path).get("status", {}).get("hard"), 30, "the quota applies")
        chosen = names(count, "quota")
        lab.create(namespace, chosen)
        lab.wait_asleep(chosen, namespace)
        channel = lab.channel()
        for name in chosen:
            for _ in range(5):
                channel.basic_publish("", name, b"x")
        eventually(lambda: all(map(_woken(lab, namespace), chosen)), 60, "the neighbours ask for pods")
        lab.wait_settled(namespace)
        with disturb.editing(lab, namespace, chosen, EDITS_PER_SECOND):
            yield


@contextmanager
def busy_edits(lab: Lab, count: int) -> Iterator[None]:
    """One WorkQueue whose template and maximum change ten times a second."""
    with lab.namespace() as namespace:
        (name,) = chosen = names(count, "edited")
        lab.create(namespace, chosen)
        lab.wait_asleep(chosen, namespace)

        def edit(number: int) -> None:
            environment = [{"name": "EDIT", "value": str(number)}]
            spec = {"worker": {"env": environment}, "scaling": {"maxReplicas": 5 + number % 2}}
            lab.change(namespace, name, spec)

        with disturb.repeatedly(edit, 1 / EDITS_PER_SECOND):
            yield


@contextmanager
def rival_controller(lab: Lab, count: int) -> Iterator[None]:
    """Another controller sets the count of each Deployment to 3, each second."""
    with lab.namespace() as namespace:
        chosen = names(count, "rival")
        lab.create(namespace, chosen, {"worker": {"nodeSelector": stub(stubkubelet.IDLE)}})
        lab.wait_asleep(chosen, namespace)
        path = f"/apis/apps/v1/namespaces/{namespace}/deployments"

        def rewrite(_: int) -> None:
            for name in chosen:
                lab.api.merge(f"{path}/{name}-worker", {"spec": {"replicas": 3}})

        with disturb.repeatedly(rewrite, 1.0):
            yield


@contextmanager
def mass_creation(lab: Lab, count: int) -> Iterator[None]:
    """WorkQueues that are created in one namespace as fast as the API server accepts them."""
    ended = threading.Event()
    # To delete thousands would take longer than to measure.
    with lab.namespace(keep=True) as namespace:
        change = {"queue": {"type": "Classic"}}
        thread = threading.Thread(
            target=lambda: lab.create(namespace, names(count, "many"), change, stop=ended), daemon=True
        )
        thread.start()
        try:
            eventually(lambda: len(_first(lab, namespace)) > 0, 30, "the first is created")
            yield
        finally:
            ended.set()
            thread.join()


def _first(lab: Lab, namespace: str) -> list[Object]:
    found: list[Object] = lab.api.call("GET", f"{workqueues_path(namespace)}?limit=1")["items"]
    return found


@contextmanager
def older_crd(lab: Lab) -> Iterator[None]:
    """A CRD of the past: it has no status fields but the conditions, and checks nothing."""
    body = lab.crd()
    schema = body["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    properties = schema["properties"]
    conditions = properties["status"]["properties"]["conditions"]
    properties["spec"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    properties["status"] = {"type": "object", "properties": {"conditions": conditions}}
    schema.pop("x-kubernetes-validations", None)
    for version in body["spec"]["versions"]:
        version.pop("additionalPrinterColumns", None)
        version.get("subresources", {}).pop("scale", None)
    lab.install_crd(body)
    try:
        yield
    finally:
        lab.install_crd()


@contextmanager
def unreadable_specs(lab: Lab, count: int) -> Iterator[None]:
    """WorkQueues that this operator cannot read, and others whose status it cannot write."""
    with lab.namespace() as namespace:
        chosen = names(count, "older")
        half = count // 2
        lab.create(namespace, chosen[:half], {"scaling": {"maxReplicas": "many"}})
        lab.create(namespace, chosen[half:])
        lab.wait_settled(namespace)
        with disturb.editing(lab, namespace, chosen[half:], EDITS_PER_SECOND):
            yield


# -- greedy clients ----------------------------------------------------------------------------------


@contextmanager
def slow_clients(_lab: Lab, count: int) -> Iterator[None]:
    """HTTP clients of the metrics port that never finish a request, or never read an answer."""
    with disturb.slow_clients(PORT, count):
        yield


@contextmanager
def viewers(lab: Lab, count: int) -> Iterator[None]:
    """Browsers that follow the overview of WorkQueues whose depths change."""
    with lab.namespace() as namespace, web.page(lab) as port:
        chosen = names(20, "viewed")
        lab.create(namespace, chosen)
        lab.wait_asleep(chosen, namespace)
        token = web.token(lab, namespace)
        with (
            disturb.publishing(lab, chosen, WAKES_PER_SECOND),
            disturb.viewers(port, token, count) as seen,
        ):
            eventually(lambda: len(seen) >= count, 30, "the page answers its viewers")
            yield


ROWS: Final = (
    Row("alone", "no neighbour", 0, 0, nothing),
    Row("leaderless", "{} quorum queues without a leader, on the same connection", 10, 3, leaderless),
    Row("frozen-broker", "a frozen broker with {} WorkQueues", 100, 10, frozen_broker),
    Row(
        "flapping-broker",
        "a broker with {} WorkQueues that resets its connections each second",
        100,
        10,
        flapping_broker,
    ),
    Row("dead-addresses", "{} Secrets of dead amqps addresses", 100, 10, dead_addresses),
    Row(
        "management",
        "{} foreign Deployments whose management API is slow, endless or garbled",
        30,
        6,
        bad_management,
    ),
    Row("large-messages", "{} idle queues that receive 16 MiB each, in a loop", 50, 3, large_messages),
    Row("requeue-loop", "{} queues with a foreign consumer that requeues in a loop", 3, 1, requeue_loop),
    Row("silent-pods", "{} pods whose port 8090 drops every packet", 1000, 20, silent_pods),
    Row("bad-statuses", "{} workers with a slow or garbled /status", 100, 10, bad_statuses),
    Row("refused-deployments", "an admission policy that refuses {} Deployments", 50, 5, refused_deployments),
    Row("refused-pods", "a quota that refuses the pods of {} WorkQueues", 20, 3, refused_pods),
    Row("busy-edits", "{} WorkQueue that is changed ten times a second", 1, 1, busy_edits),
    Row("rival", "a controller that rewrites {} counts each second", 10, 2, rival_controller),
    Row("slow-clients", "{} slow HTTP clients of the metrics port", 500, 100, slow_clients),
    Row("mass-creation", "{:,} WorkQueues created in one namespace", 10_000, 100, mass_creation, last=True),
    Row(
        "slow-status",
        "status writes that take 2 s, with {} WorkQueues whose depth changes",
        60,
        10,
        slow_status_writes,
        proxied=True,
    ),
    Row(
        "refused-events",
        "429 for every Event, with {} WorkQueues whose depth changes",
        60,
        10,
        refused_events,
        proxied=True,
    ),
    Row("viewers", "{} viewers of the web page", 50, 10, viewers, settings=web.SETTINGS),
    Row(
        "older-crd",
        "a CRD older than the operator, with {} WorkQueues",
        20,
        6,
        unreadable_specs,
        around=older_crd,
    ),
)

BY_NAME: Final = {row.name: row for row in ROWS}


@contextmanager
def beside(lab: Lab, row: Row, count: int, *, fresh: bool = True) -> Iterator[None]:
    """Run the operator beside broken neighbours while the context lasts.

    Args:
        fresh: start another process of the operator even if one with the same settings runs.
    """
    if row.around is not None:
        lab.stop_operator()
    with row.around(lab) if row.around is not None else nullcontext():
        lab.start_operator(proxied=row.proxied, fresh=fresh or row.around is not None, **row.settings)
        with row.disturb(lab, count):
            yield
        if row.around is not None:
            # It has read an API that is about to change.
            lab.stop_operator()
