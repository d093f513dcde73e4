"""Figures of many WorkQueues in the lab: storms and their cost in API requests, idle and busy ones,
recurring messages."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from http.client import HTTPException
from typing import Any, Final

import pika

from hack.bench.figures import MIB, percentile
from hack.bench.neighbours import disturb
from hack.bench.neighbours.lab import Lab, stub
from tests.support import process, stubkubelet
from tests.support.wait import eventually

Object = dict[str, Any]

STORM: Final = 200
CALM_SECONDS: Final = 10.0
"""From the last change until the API requests of a cycle are counted: late status writes are part of them."""

REST_SECONDS: Final = 30.0
REST_CORE: Final = 0.2
"""The share of a core below which the operator rests. While it reports on 10,000 WorkQueues, it uses half of one."""

WAIT_SECONDS: Final = 600.0
PROCESSES: Final = {
    "API server": "kube-apiserver",
    "etcd": "etcd",
    "controllers": "kube-controller",
    "RabbitMQ": "beam.smp",
}
"""The other processes of the lab, with the names that the kernel shows."""

BARE_CONNECTIONS: Final = 16
"""Of the client that a storm is compared with. More are not faster."""

BUSY_CYCLES: Final = 30
BUSY_SECONDS: Final = 60.0
IDLE_CYCLES: Final = 50
IDLE_SECONDS: Final = 120.0
CLASSIC: Final[Object] = {"queue": {"type": "Classic"}}

RECURRING_EACH: Final = 50
RECURRING_SECONDS: Final = 60.0
MOST_CORE_OF_RECURRING: Final = 0.01


@dataclass(frozen=True)
class Figure:
    """The result of one measurement.

    Attributes:
        told: in words.
        met: whether it meets the goal.
        raw: all samples.
    """

    told: str
    met: bool
    raw: Object


@dataclass(frozen=True)
class Crowd:
    """One figure.

    Attributes:
        name: selects it on the command line.
        title: in the table; {} is the size.
        goal: in words.
        full, small: numbers of WorkQueues.
        measure: from the lab, with a running operator, and the size.
        last: whether so much is left behind that the lab ends with the figure.
    """

    name: str
    title: str
    goal: str
    full: int
    small: int
    measure: Callable[[Lab, int], Figure]
    last: bool = False


class Counts:
    """Follows the counts and the Ready workers of all Deployments of a namespace.

    The API server closes a watch whose client is too slow. The next watch begins with what is there.
    """

    def __init__(self, lab: Lab, namespace: str) -> None:
        self._api = lab.api
        self._path = f"/apis/apps/v1/namespaces/{namespace}/deployments?watch=1&timeoutSeconds=3600"
        self._counts: dict[str, int] = {}
        self._ready_at: dict[str, float] = {}
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        while True:
            connection = self._api.connect(3600)
            with suppress(HTTPException, OSError):
                connection.request("GET", self._path, headers=self._api.headers())
                response = connection.getresponse()
                while line := response.readline():
                    self._note(time.monotonic(), json.loads(line)["object"])
            connection.close()

    def _note(self, at: float, body: Object) -> None:
        name = body["metadata"]["name"]
        self._counts[name] = body["spec"].get("replicas", 1)
        if body.get("status", {}).get("readyReplicas"):
            self._ready_at.setdefault(name, at)

    def wait(self, names: Sequence[str], condition: Callable[[int], bool]) -> None:
        """Wait until all counts fulfil a condition."""

        def all_do() -> bool:
            return all(condition(self._counts.get(f"{name}-worker", -1)) for name in names)

        eventually(all_do, WAIT_SECONDS, f"{len(names)} counts change")

    def ready_at(self, names: Sequence[str]) -> list[float]:
        """Return when each had its first Ready worker, for those that had one."""
        return [self._ready_at[f"{name}-worker"] for name in names if f"{name}-worker" in self._ready_at]


def storm(lab: Lab, count: int) -> Figure:
    """200 WorkQueues get a message together, their workers become Ready and take it."""
    return _storm(lab, count, {"worker": {"nodeSelector": stub(stubkubelet.IDLE)}}, lab.default_controllers())


def storm_of_pending(lab: Lab, count: int) -> Figure:
    """The same as `storm`, with pods that never become Ready. When all exist, the queues are emptied."""
    return _storm(lab, count, {}, lab.default_controllers())


def storm_beside_fast_controllers(lab: Lab, count: int) -> Figure:
    """The same as `storm`, with a controller-manager without a limit. It works for the first counts while the last
    ones are written."""
    return _storm(lab, count, {"worker": {"nodeSelector": stub(stubkubelet.IDLE)}}, nullcontext())


def _storm(lab: Lab, count: int, change: Object, controllers: AbstractContextManager[None]) -> Figure:
    with _crowd(lab, count, change) as (namespace, names), controllers:
        chosen = names[:: max(1, count // STORM)][:STORM]
        counts, requests = Counts(lab, namespace), Requests(lab)
        counts.wait(chosen, lambda replicas: replicas == 0)
        before = _processor_seconds(lab)
        published = _publish(lab, chosen)
        sent = max(published.values()) - min(published.values())
        counts.wait(chosen, lambda replicas: replicas > 0)
        used = {name: seconds - before[name] for name, seconds in _processor_seconds(lab).items()}
        ended = _take_back(lab, namespace, chosen, counts, ready=bool(change))
        time.sleep(CALM_SECONDS)
        spent, written = requests.spent(), requests.counts_written()
        bare = _write_counts(lab, namespace, chosen)
    wakes = sorted(written[f"{name}-worker"][0] - published[name] for name in chosen)
    back = max(written[f"{name}-worker"][-1] for name in chosen) - ended
    ready = sorted(at - min(published.values()) for at in counts.ready_at(chosen))
    p50, longest, each = percentile(wakes, 0.5), wakes[-1], sum(spent.values()) / len(chosen)
    most = ", ".join(f"{number} {what}" for what, number in spent.most_common(6))
    processors = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in used.items())
    workers = f"workers Ready p50 {percentile(ready, 0.5):.1f} s, max {ready[-1]:.1f} s; " if ready else ""
    return Figure(
        f"sent in {sent * 1000:.0f} ms; counts written p50 {p50 * 1000:.0f} ms, max {longest * 1000:.0f} ms (a bare "
        f"client: p50 {percentile(bare, 0.5) * 1000:.0f} ms, max {bare[-1] * 1000:.0f} ms); processor time "
        f"until then: {processors}; {workers}back to 0 after {back:.1f} s; {each:.1f} API requests each ({most})",
        p50 <= 0.3 and longest <= 0.7 and back <= 5.0 and each <= 12.0,
        {
            "sent": sent,
            "wakes": wakes,
            "bare": bare,
            "ready": ready,
            "back": back,
            "requests": dict(spent),
            "processors": used,
        },
    )


def _processor_seconds(lab: Lab) -> dict[str, float]:
    """The processor time that each part of the lab has used. Nothing else on the machine has these names."""
    assert lab.operator is not None
    found = {
        name: sum(map(process.processor_seconds, process.named(comm))) for name, comm in PROCESSES.items()
    }
    return {"operator": lab.operator.processor(), **found}


def _write_counts(lab: Lab, namespace: str, names: Sequence[str]) -> list[float]:
    """Write the counts of copies of the same Deployments with a client that does nothing else.

    Returns: after how many seconds each was written, sorted. A storm cannot be faster on this machine.
    """
    deployments = lab.deployments(namespace)
    with lab.namespace() as copies, ThreadPoolExecutor(BARE_CONNECTIONS) as threads:
        path = f"/apis/apps/v1/namespaces/{copies}/deployments"
        lab.in_parallel(
            lambda name: lab.api.call("POST", path, _copy(name, deployments[f"{name}-worker"])), names
        )
        lab.wait_settled(copies)
        begun = time.monotonic()

        def write(name: str) -> float:
            lab.api.merge(f"{path}/{name}/scale", {"spec": {"replicas": 1}})
            return time.monotonic() - begun

        return sorted(threads.map(write, names))


def _copy(name: str, deployment: Object) -> Object:
    """The same Deployment at 0 replicas, without the labels by which the operator finds it."""
    labels = {"app": name}
    spec = deployment["spec"]
    template = {**spec["template"], "metadata": {**spec["template"]["metadata"], "labels": labels}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {**spec, "replicas": 0, "selector": {"matchLabels": labels}, "template": template},
    }


def _take_back(lab: Lab, namespace: str, names: Sequence[str], counts: Counts, *, ready: bool) -> float:
    """Take the messages, and wait until the last count is 0. Return when the messages were taken."""
    # Until the controller-manager has made a pod, nobody can know whether a worker runs, and a count stays.
    lab.wait_workers(namespace, names, ready=ready)
    if ready:
        with disturb.consumers(lab, names):
            begun = time.monotonic()
            counts.wait(names, lambda replicas: replicas == 0)
            return begun
    channel = lab.channel()
    begun = time.monotonic()
    for name in names:
        channel.queue_purge(name)
    counts.wait(names, lambda replicas: replicas == 0)
    return begun


def _publish(lab: Lab, names: Sequence[str]) -> dict[str, float]:
    """Publish one message to each queue without waiting. Return when each was sent."""
    published = {}
    with disturb.connection_to(lab.broker.url) as connection:
        channel = connection.channel()
        for name in names:
            published[name] = time.monotonic()
            channel.basic_publish("", name, b"x", pika.BasicProperties(delivery_mode=2))
    return published


class Requests:
    """The operator's requests from now on, in the API server's audit log. An entry appears after up to a second."""

    def __init__(self, lab: Lab) -> None:
        self._log = lab.plane.audit_log
        self._offset = self._log.stat().st_size

    def _entries(self) -> Iterator[Object]:
        with self._log.open() as file:
            file.seek(self._offset)
            yield from map(json.loads, file)

    def counts_written(self) -> dict[str, list[float]]:
        """Return when the API server had carried out each write of a count, by Deployment, on the monotonic clock.

        A watch would show it later: on a busy API server its events lag by up to a second.
        """
        offset, found = time.time() - time.monotonic(), defaultdict(list)
        for entry in self._entries():
            about = entry.get("objectRef", {})
            if about.get("subresource") == "scale" and entry["responseStatus"]["code"] == HTTPStatus.OK:
                written_at = datetime.fromisoformat(entry["stageTimestamp"]).timestamp()
                found[about["name"]].append(written_at - offset)
        return found

    def spent(self) -> Counter[str]:
        """Return the number of requests by verb and resource. New watches and the Lease do not count."""
        found: Counter[str] = Counter()
        for entry in self._entries():
            about = entry.get("objectRef", {})
            if entry["verb"] == "watch" or about.get("resource") == "leases":
                continue
            part = f"/{about['subresource']}" if about.get("subresource") else ""
            found[f"{entry['verb']} {about.get('resource', '?')}{part}"] += 1
        return found


def idle(lab: Lab, count: int) -> Figure:
    """Many idle WorkQueues: the memory, and the restart until all doorbells are installed."""
    with _crowd(lab, count, {}):
        resident, core = _at_rest(lab)
        restart = _restart(lab, count + 1)
    return Figure(
        f"{resident / MIB:.0f} MiB, {core:.3f} core; restarted to all doorbells in {restart:.1f} s",
        resident <= 80 * MIB and restart <= 2.0,
        {"resident": resident, "core": core, "restart": restart},
    )


def very_many_idle(lab: Lab, count: int) -> Figure:
    """The same, measured when the operator rests after the restart, and the wake of another WorkQueue beside them."""
    names = _names(count)
    # To delete thousands would take longer than to measure.
    with lab.namespace(keep=True) as namespace:
        lab.create(namespace, names, CLASSIC)
        _wait_doorbells(lab, count + 1)
        lab.wait_each_ready(namespace, names)
        restart = _restart(lab, count + 1)
        eventually(lambda: _core(lab, REST_SECONDS) < REST_CORE, WAIT_SECONDS, "the operator rests")
        resident, core = _at_rest(lab)
        cycles = lab.probe(IDLE_CYCLES, IDLE_SECONDS)
    wakes = [cycle.wake for cycle in cycles if cycle.wake is not None]
    p50, p99 = percentile(wakes, 0.5), percentile(wakes, 0.99)
    return Figure(
        f"{resident / MIB:.0f} MiB, {core:.3f} core; restarted to all doorbells in {restart:.1f} s; wake of another "
        f"queue p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms (n={len(wakes)})",
        resident <= 200 * MIB and restart <= 10.0 and p99 <= 0.05 and all(cycle.complete for cycle in cycles),
        {"resident": resident, "core": core, "restart": restart, "wakes": wakes},
    )


def _at_rest(lab: Lab) -> tuple[int, float]:
    """Return the operator's memory in bytes after a while, and the share of a core that it then uses."""
    assert lab.operator is not None
    time.sleep(REST_SECONDS)
    return process.memory(lab.operator.pid), _core(lab, REST_SECONDS)


def _restart(lab: Lab, doorbells: int) -> float:
    """Restart the operator, and return the seconds until all doorbells are installed."""
    lab.stop_operator()
    begun = time.monotonic()
    lab.begin_operator()
    _wait_doorbells(lab, doorbells)
    return time.monotonic() - begun


def recurring(lab: Lab, count: int) -> Figure:
    """Entries of `spec.recurring` whose times have not come: the processor time that they add to the operator."""
    with _crowd(lab, count // RECURRING_EACH, {}) as (namespace, names):
        before = _core_at_rest(lab, RECURRING_SECONDS)
        entries = [
            {
                "name": f"entry-{number}",
                "cron": f"{number} 3 1 {1 + number % 12} *",
                "timeZone": "Europe/Berlin",
            }
            for number in range(RECURRING_EACH)
        ]
        for name in names:
            lab.change(namespace, name, {"recurring": entries})

        def are_known() -> bool:
            found = lab.workqueues(namespace).values()
            return all(len(one["status"].get("recurring", [])) == RECURRING_EACH for one in found)

        eventually(are_known, WAIT_SECONDS, f"{count} entries have a next time")
        added = _core_at_rest(lab, RECURRING_SECONDS) - before
    return Figure(
        f"{added:+.4f} core ({before:.4f} without them)",
        added <= MOST_CORE_OF_RECURRING,
        {"before": before, "added": added},
    )


def _core_at_rest(lab: Lab, seconds: float) -> float:
    """Return the share of a core that the operator uses for some seconds, after a while."""
    time.sleep(REST_SECONDS)
    return _core(lab, seconds)


def _core(lab: Lab, seconds: float) -> float:
    """Return the share of a core that the operator uses for some seconds."""
    assert lab.operator is not None
    begun, spent = time.monotonic(), lab.operator.processor()
    time.sleep(seconds)
    return (lab.operator.processor() - spent) / (time.monotonic() - begun)


def busy(lab: Lab, count: int) -> Figure:
    """Many WorkQueues with two busy workers each: the processor time, and the wake of another one."""
    change = {"worker": {"nodeSelector": stub(stubkubelet.BUSY)}, "scaling": {"messagesPerReplica": 1}}
    with _crowd(lab, count, change) as (namespace, names):
        assert lab.operator is not None
        # The first pod of a template is alone until it is Ready.
        for _ in range(2):
            _publish(lab, names)
            lab.wait_workers(namespace, names)
        _wait_two(lab, namespace)
        with _holding(lab, names, 2):
            core = _core_at_rest(lab, BUSY_SECONDS)
            cycles = lab.probe(BUSY_CYCLES, BUSY_SECONDS)
            resident = process.memory(lab.operator.pid)
    wakes = [cycle.wake for cycle in cycles if cycle.wake is not None]
    p50, p99 = percentile(wakes, 0.5), percentile(wakes, 0.99)
    return Figure(
        f"{core:.2f} core, {resident / MIB:.0f} MiB; wake of another queue p50 {p50 * 1000:.0f} ms, p99 "
        f"{p99 * 1000:.0f} ms (n={len(wakes)})",
        core <= 0.5 and p99 <= 0.1 and all(cycle.complete for cycle in cycles),
        {"core": core, "resident": resident, "wakes": wakes},
    )


def _wait_two(lab: Lab, namespace: str) -> None:
    def two() -> bool:
        found = lab.deployments(namespace).values()
        return all(body.get("status", {}).get("readyReplicas") == 2 for body in found)

    eventually(two, WAIT_SECONDS, "each WorkQueue has two workers")


@contextmanager
def _holding(lab: Lab, names: Sequence[str], consumers: int) -> Iterator[None]:
    """Consumers that take a message each and never acknowledge it, as busy workers do."""
    with disturb.connection_to(lab.broker.url) as connection:
        for _ in range(consumers):
            channel = connection.channel()
            channel.basic_qos(prefetch_count=1)
            for name in names:
                channel.basic_consume(name, lambda *_: None)
        connection.process_data_events(1)
        yield


@contextmanager
def _crowd(lab: Lab, count: int, change: Object) -> Iterator[tuple[str, list[str]]]:
    """Idle WorkQueues with classic queues, as the peers in docs/benchmarks have them."""
    names = _names(count)
    with lab.namespace() as namespace:
        lab.create(namespace, names, {**CLASSIC, **change})
        _wait_doorbells(lab, count + 1)
        lab.wait_ready(namespace, names)
        yield namespace, names


def _names(count: int) -> list[str]:
    return [f"crowd-{number:05d}" for number in range(count)]


def _wait_doorbells(lab: Lab, count: int) -> None:
    def installed() -> bool:
        assert lab.operator is not None
        return lab.operator.doorbells() >= count

    eventually(installed, WAIT_SECONDS, f"{count} doorbells are installed")


_STORM_GOAL: Final = (
    "counts written p50 <= 300 ms, max <= 700 ms; back to 0 within 5 s; <= 12 API requests for each WorkQueue"
)
CROWDS: Final = (
    Crowd("storm", f"{STORM} of {{:,}} WorkQueues get a message together", _STORM_GOAL, 200, 20, storm),
    Crowd(
        "storm-pending",
        f"{STORM} of {{:,}} WorkQueues get a message together, and their pods never become Ready",
        _STORM_GOAL,
        200,
        20,
        storm_of_pending,
    ),
    Crowd("storm-1000", f"{STORM} of {{:,}} WorkQueues get a message together", _STORM_GOAL, 1000, 40, storm),
    Crowd(
        "storm-fast-controllers",
        f"{STORM} of {{:,}} WorkQueues get a message together, and the controller-manager has no limit",
        _STORM_GOAL,
        200,
        20,
        storm_beside_fast_controllers,
    ),
    Crowd("idle", "{:,} idle WorkQueues", "<= 80 MiB; restart <= 2 s", 1000, 40, idle),
    Crowd(
        "idle-10000",
        "{:,} idle WorkQueues",
        "<= 200 MiB; restart <= 10 s; wake of another queue p99 <= 50 ms",
        10_000,
        60,
        very_many_idle,
        last=True,
    ),
    Crowd("recurring", "{:,} recurring messages at rest", "<= 0.01 core", 1000, 100, recurring),
    Crowd(
        "busy",
        "{:,} WorkQueues with two busy workers each",
        "<= 0.5 core; wake of another queue p99 <= 100 ms",
        1000,
        20,
        busy,
    ),
)
