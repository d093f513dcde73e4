"""Measure the operator's figures, each with a goal and a figure of its peers.

Each function asks the probe for samples and makes rows of them. Between samples, a figure waits until the cluster
is idle. No sample is dropped.

The WorkQueues of the wake figures have a node selector that matches no node. The operator writes the count and
Kubernetes makes pods, but no container starts. So 1,000 WorkQueues fit on a laptop, and container starts do not
distort the operator's times. The figures with running workers use one WorkQueue with a handler that does nothing.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hack.bench import site
from hack.bench.probe import Probe
from hack.bench.report import Row
from hack.bench.site import Site
from workqueue_operator.config import Config
from workqueue_operator.kube.resync import PAGE

Object = dict[str, Any]

BACKLOG: Final = 20
RUNNING: Final = 2
HANDLER_SECONDS: Final = 4.0
RUNNING_SECONDS: Final = 10.0
"""Long enough that workers are still busy when more messages come, after they became Ready."""
TALL_HANDLER_SECONDS: Final = 1.2
"""Per worker of the largest backlog, so that no worker finishes before the last one is Ready."""
TOGETHER: Final = 200
POLLED: Final = 20
MIB: Final = 2**20
TICKS: Final = 100
LISTS_EVERY: Final = Config().resync_seconds
LIST_TAKES: Final = 15.0
"""The longest duration of a LIST, in seconds. The next LIST may be late by the same time."""
PROMISED: Final = 1000
"""The goals apply up to this number of WorkQueues. Rows for larger numbers have no goal."""

STEPS: Final = ("written", "created", "scheduled", "process", "loaded", "connected", "handled", "acked")


@dataclass(frozen=True)
class Extent:
    """The number and length of the measurements.

    Attributes:
        wakes: samples of the wake for each number of WorkQueues.
        acks: samples of the first ack, with a real worker.
        ladders: samples of a backlog, at 0 replicas and on running workers.
        tall: the number of workers that the largest backlog needs.
        rest_seconds: the length of the window at rest.
    """

    wakes: int = 100
    acks: int = 20
    ladders: int = 8
    tall: int = 50
    rest_seconds: float = 60.0


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the smallest sample that at least this share of all samples does not exceed."""
    ordered = sorted(samples)
    return ordered[max(0, -(-len(ordered) * round(share * 1000) // 1000) - 1)]


def names(count: int) -> list[str]:
    """Return the names of `count` WorkQueues."""
    return [f"bench-{number:05d}" for number in range(count)]


def asleep_spec(image: str) -> Object:
    """Return the spec of a WorkQueue whose pods fit no node."""
    return {
        "connectionSecretRef": {"name": site.SECRET},
        "worker": {
            "image": image,
            "handler": {"python": "handlers:noop"},
            "nodeSelector": {"workqueue.dev/bench": "nowhere"},
        },
        "scaling": {"scaleInDelaySeconds": 0},
    }


def running_spec(image: str, handler: str, per_replica: int, most: int = BACKLOG) -> Object:
    """Return the spec of a WorkQueue whose workers run."""
    return {
        "connectionSecretRef": {"name": site.SECRET},
        "worker": {
            "image": image,
            "imagePullPolicy": "IfNotPresent",
            "handler": {"python": f"handlers:{handler}"},
            "env": [{"name": "PYTHONPATH", "value": "/bench"}],
            "volumes": [{"name": "sources", "configMap": {"name": "sources"}}],
            "volumeMounts": [{"name": "sources", "mountPath": "/bench", "readOnly": True}],
            "timeoutSeconds": 120,
        },
        # The delay leaves time to read the log of a worker after its last message.
        "scaling": {"maxReplicas": most, "messagesPerReplica": per_replica, "scaleInDelaySeconds": 3},
    }


# -- the figures -------------------------------------------------------------------------------------


def wake(probe: Probe, count: int, extent: Extent) -> list[Row]:
    """Measure the time from the publish of one message at 0 replicas to the write of the replica count."""
    draw = random.choices if count < extent.wakes else random.sample
    chosen = draw(names(count), k=extent.wakes)
    before = probe.ask("metrics")
    samples = probe.ask("wake", names=chosen, pause=[0.05, 0.3])
    after = probe.ask("metrics")
    p50, p99 = percentile(samples, 0.5), percentile(samples, 0.99)
    own = _difference(before, after, "workqueue_wake_seconds")
    processor = after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]
    return [
        Row(
            f"wake, {_workqueues(count)}: publish of one message at 0 replicas to replicas written",
            f"min {_ms(min(samples))}, p50 {_ms(p50)}, p99 {_ms(p99)} (n={len(samples)}); "
            f"mean from ring to written {_ms(own)}",
            *_promised(count, "p50 <= 15 ms, p99 <= 50 ms", p50 <= 0.015 and p99 <= 0.050),
            _PEER_WAKE.get(count, ""),
            {
                "seconds": samples,
                "ring_to_written_mean_seconds": own,
                "processor_seconds_each": processor / len(samples),
            },
        )
    ]


_PEER_WAKE: Final = {
    1: "KEDA, defaults: mean 12.8 s, max 29.9 s; polling each second: median 0.60 s, max 0.91 s",
    100: "KEDA, polling each second: median 0.82 s, max 0.99 s",
    1000: "KEDA, polling each second: median 0.61 s, max 1.0 s",
}


def polled(probe: Probe, place: Site, extent: Extent) -> list[Row]:
    """Measure the wake of a polled queue."""
    name, spec = "bench-polled", asleep_spec(place.image)
    spec["scaling"] = {**spec["scaling"], "wake": "Poll"}
    with _WorkQueues(probe, [name], spec):
        chosen = [name] * min(extent.wakes, POLLED)
        samples = probe.ask("wake", names=chosen, pause=[0.0, 2.0], doorbell=False)
    return [
        Row(
            "wake of a queue with scaling.wake: Poll, 1 WorkQueue",
            _spread(samples),
            "",
            None,
            "",
            {"seconds": samples},
        )
    ]


def together(probe: Probe, count: int) -> list[Row]:
    """Measure the wakes of many queues that get a message in the same second, and their way back to zero."""
    chosen = random.sample(names(count), min(TOGETHER, count))
    what = f"{len(chosen)} of {_workqueues(count)}"
    rows = []
    for settled in (False, True):
        before = probe.ask("metrics")
        answer = probe.ask("wake_together", names=chosen, seconds=180, settled=settled)
        after = probe.ask("metrics")
        requests = (after["workqueue_api_requests_total"] - before["workqueue_api_requests_total"]) / len(
            chosen
        )
        answer["requests"] = requests
        answer["cpu"] = after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]
        purged = "after Kubernetes has created the pods" if settled else "immediately"
        rows += [
            Row(
                f"{what} that get a message within {_ms(answer['sent'])}, to replicas written for each",
                _of_many(answer["written"]),
                *_promised(
                    count,
                    "p50 <= 300 ms, max <= 700 ms",
                    percentile(answer["written"], 0.5) <= 0.3 and max(answer["written"]) <= 0.7,
                ),
                _PEER_TOGETHER,
                answer,
            ),
            Row(
                f"the same queues, purged {purged}: to 0 replicas written for each, scaleInDelaySeconds 0",
                f"{_of_many(answer['back'])}; per WorkQueue and cycle {requests:.1f} API requests",
                *_promised(count, "<= 5 s; <= 12 requests", max(answer["back"]) <= 5 and requests <= 12),
                _PEER_BACK,
                {},
            ),
        ]
    return rows


_PEER_TOGETHER: Final = (
    "KEDA, polling each second: p50 1.34 s, max 2.3 s with its client limits raised to 200/300; "
    "13.6 s and 18.5 s with its defaults"
)
_PEER_BACK: Final = "KEDA, polling each second, client limits 200/300: 7 s; 23 requests"


def _of_many(samples: Sequence[float]) -> str:
    p50, p99 = percentile(samples, 0.5), percentile(samples, 0.99)
    return f"p50 {_ms(p50)}, p99 {_ms(p99)}, max {_ms(max(samples))}"


def first_ack(probe: Probe, place: Site, extent: Extent) -> list[Row]:
    """Measure the time from the publish of one message at 0 replicas to its ack by a real worker."""
    with _WorkQueues(probe, ["bench-noop"], running_spec(place.image, "noop", 2)):
        samples = [probe.ask("first_ack", name="bench-noop") for _ in range(extent.acks)]
    acked = [sample["acked"] for sample in samples]
    medians = {step: statistics.median(sample[step] for sample in samples) for step in STEPS}
    p50 = percentile(acked, 0.5)
    return [
        Row(
            "publish of one message at 0 replicas to its ack, image present, handler that does nothing",
            f"min {_ms(min(acked))}, p50 {_ms(p50)}, max {_ms(max(acked))} (n={len(acked)}); medians: "
            + ", ".join(f"{step} {_ms(medians[step])}" for step in STEPS),
            "p50 <= 0.75 s",
            p50 <= 0.75,
            "KEDA's wake, and the same start of a pod",
            {"samples": samples},
        )
    ]


def ladder(probe: Probe, place: Site, extent: Extent) -> list[Row]:
    """Measure a backlog that needs 20 workers, at 0 replicas and on 2 running workers."""
    name, body = "bench-ladder", str(HANDLER_SECONDS)
    from_zero, running = [], []
    with _WorkQueues(probe, [name], running_spec(place.image, "slow", 1)):
        # A template that never had a Ready pod gets one pod first, the canary.
        probe.ask("burst", name=name, count=1, body="0", target=1, seconds=30)
        probe.ask("wait_ready_pods", name=name, count=1, seconds=60)
        for _ in range(extent.ladders):
            probe.ask("wait_asleep", names=[name], seconds=180)
            from_zero.append(
                probe.ask("burst", name=name, count=BACKLOG, body=body, target=BACKLOG, seconds=60)
            )
            probe.ask("purge", name=name)
            probe.ask("wait_asleep", names=[name], seconds=180)
            busy = str(RUNNING_SECONDS)
            probe.ask("burst", name=name, count=RUNNING, body=busy, target=RUNNING, seconds=60)
            probe.ask("wait_ready_pods", name=name, count=RUNNING, seconds=60)
            time.sleep(random.uniform(0.5, 1.5))
            more = BACKLOG - RUNNING
            running.append(probe.ask("burst", name=name, count=more, body=body, target=BACKLOG, seconds=60))
            probe.ask("purge", name=name)
        probe.ask("wait_asleep", names=[name], seconds=180)
    first, second = ([sample["writes"][-1][0] for sample in found] for found in (from_zero, running))
    writes = [[count for _, count in sample["writes"]] for sample in from_zero]
    one_write = all(len(found) == 1 for found in writes)
    steps = [[count for _, count in sample["writes"]] for sample in running]
    return [
        Row(
            f"backlog at 0 replicas that needs {BACKLOG}, to that count written",
            f"{_spread(first)}; writes {writes[0] if one_write else writes}",
            "one write; p99 <= 0.3 s",
            one_write and max(first) <= 0.3,
            "KEDA and HPA, polling each second: 48 s, five steps",
            {"samples": from_zero},
        ),
        Row(
            f"backlog on {RUNNING} running workers that needs {BACKLOG}, to that count written",
            f"{_spread(second)}; most writes {max(map(len, steps))}",
            "p99 <= 0.7 s",
            max(second) <= 0.7,
            "HPA: syncs every 15 s",
            {"samples": running},
        ),
    ]


def tall(probe: Probe, place: Site, extent: Extent) -> list[Row]:
    """Measure a backlog that needs many workers: from 0 to all Ready, and back."""
    name, tall = "bench-tall", extent.tall
    body = str(TALL_HANDLER_SECONDS * tall)
    with _WorkQueues(probe, [name], running_spec(place.image, "slow", 1, tall)):
        probe.ask("burst", name=name, count=1, body="0", target=1, seconds=30)
        probe.ask("wait_ready_pods", name=name, count=1, seconds=60)
        probe.ask("wait_asleep", names=[name], seconds=180)
        up = probe.ask("burst", name=name, count=tall, body=body, target=tall, seconds=60)
        ready = probe.ask("wait_ready_pods", name=name, count=tall, seconds=240)
        probe.ask("wait_asleep", names=[name], seconds=300)
        down = probe.ask("writes", name=name, since=up["begun"])[len(up["writes"]) :]
    written, back = up["writes"][-1][0], down[-1][0] - down[0][0]
    return [
        Row(
            f"backlog at 0 replicas that needs {tall}, and back",
            f"written after {_ms(written)} in {len(up['writes'])} step; all {tall} pods Ready {ready:.0f} s later; "
            f"back to 0 in {len(down)} steps within {back:.1f} s, after asking each worker",
            "one write; <= 0.3 s",
            len(up["writes"]) == 1 and written <= 0.3,
            "",
            {"up": up, "ready": ready, "down": down},
        )
    ]


def rest(probe: Probe, place: Site, count: int, extent: Extent) -> list[Row]:
    """Measure the cost of an idle operator."""
    time.sleep(10)
    _wait_between_lists(probe, extent.rest_seconds)
    before, requests, begun = probe.ask("metrics"), _api_requests(probe), time.monotonic()
    time.sleep(extent.rest_seconds)
    after, requests_after, seconds = probe.ask("metrics"), _api_requests(probe), time.monotonic() - begun
    memory = after["process_resident_memory_bytes"] / MIB
    cores = (after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]) / seconds
    own = (after["workqueue_api_requests_total"] - before["workqueue_api_requests_total"]) * 60 / seconds
    served = (requests_after - requests) * 60 / seconds
    lists = _lists_a_minute(count)
    listed = place.rabbitmq("list_connections", "client_properties")
    connections = sum("workqueue-operator" in line for line in listed.splitlines())
    raw = {
        "resident_mib": memory,
        "cores": cores,
        "connections": connections,
        "api_requests_per_minute": own,
        "api_requests_per_minute_seen_by_the_server": served,
        "api_requests_per_minute_for_lists": lists,
        "seconds": seconds,
        "operator": {key: value for key, value in after.items() if "workqueue=" not in key},
    }
    return [
        Row(
            f"at rest, {_workqueues(count)}, {seconds:.0f} s",
            f"{memory:.0f} MiB, {cores:.3f} core, {connections} connection, {served + lists:.0f} API requests a "
            f"minute ({served:.0f} counted by the server, Lease and new watches included; {lists:.0f} for the LISTs "
            f"of every {LISTS_EVERY / 60:.0f} minutes)",
            *_promised(
                count,
                "<= 100 MiB, <= 0.02 core, 1 connection, < 30 requests",
                memory <= 100 and cores <= 0.02 and connections == 1 and served + lists < 30,
            ),
            "KEDA, polling each second: 263 MiB and a second process with 100 MiB, at most 0.26 core, 1,000 "
            "connections"
            if count == 1000
            else "",
            raw,
        )
    ]


def _lists_a_minute(count: int) -> float:
    """Return the average number of LIST requests of the resync per minute: WorkQueues, Deployments and pods."""
    return (2 * -(-count // PAGE) + 1) * 60 / LISTS_EVERY


def _wait_between_lists(probe: Probe, seconds: float) -> None:
    """Wait until no LIST is due for `seconds`. One comes at the start of the process, then one every few minutes."""
    phase = (time.time() - probe.ask("metrics")["process_start_time_seconds"]) % LISTS_EVERY
    if phase < LIST_TAKES:
        time.sleep(LIST_TAKES - phase)
    elif phase + seconds + LIST_TAKES > LISTS_EVERY:
        time.sleep(LISTS_EVERY - phase + LIST_TAKES)


def created(probe: Probe, count: int, answer: Object) -> list[Row]:
    """Measure the time from creating WorkQueues to all Ready."""
    doorbells = probe.ask("wait_doorbells", doorbells=count, seconds=120)
    after = probe.ask("metrics")
    cost = {
        metric: after[name] - answer["before"][name]
        for metric, name in (
            ("cpu", "process_cpu_seconds_total"),
            ("requests", "workqueue_api_requests_total"),
        )
    }
    return [
        Row(
            f"{_workqueues(count)} created at once, to all Ready",
            f"{answer['all']:.1f} s (the API server had accepted the last after {answer['posted']:.1f} s; half were "
            f"Ready after {answer['half']:.1f} s; all doorbells installed {doorbells:.1f} s later); per WorkQueue "
            f"{cost['requests'] / count:.1f} API requests and {_ms(cost['cpu'] / count)} of processor time",
            "<= 60 s" if count == 1000 else "",
            answer["all"] <= 60 if count == 1000 else None,
            "KEDA: about 500 s" if count == 1000 else "",
            {**answer, "doorbells": doorbells, "cost": cost, "before": None},
        )
    ]


def restart(probe: Probe, place: Site, count: int) -> list[Row]:
    """Delete the operator's pod and measure the time until its successor has installed all doorbells."""
    answer = probe.ask("restart", doorbells=count, seconds=120)
    stat = place.operator_pod(answer["pod"], "cat", "/proc/1/stat")
    process = int(stat.rpartition(")")[2].split()[19]) / TICKS - answer["begun_at"]
    after_start = answer["hung"] - process
    return [
        Row(
            f"operator restarted with {_workqueues(count)}, to all doorbells installed",
            f"{after_start:.1f} s after its process began; "
            f"{answer['hung']:.1f} s after the deletion of the old pod",
            *_promised(count, "<= 5 s", after_start <= 5),
            "KEDA: 3 of 10 queues woke within 160 s" if count == 1000 else "",
            {**answer, "process": process},
        )
    ]


def storm(probe: Probe, place: Site, count: int, wanted: Callable[[str], bool], extent: Extent) -> list[Row]:
    """Measure all figures of one number of WorkQueues, which exist only during the measurement."""
    rows: list[Row] = []
    spec, chosen = asleep_spec(place.image), names(count)
    before = probe.ask("metrics")
    work = _WorkQueues(probe, chosen, spec)
    with work:
        rows += created(probe, count, {**work.answer, "before": before})
        if wanted("wake"):
            rows += wake(probe, count, extent)
            rows += together(probe, count) if count > 1 else polled(probe, place, extent)
        if wanted("rest"):
            rows += rest(probe, place, count, extent)
        if wanted("restart"):
            rows += restart(probe, place, count)
    return rows


class _WorkQueues:
    """Creates WorkQueues, and deletes them at the end of the `with` block."""

    def __init__(self, probe: Probe, chosen: list[str], spec: Object) -> None:
        self._probe = probe
        self._names = chosen
        self._spec = spec
        self.answer: Object = {}

    def __enter__(self) -> None:
        self.answer = self._probe.ask("create", names=self._names, spec=self._spec, seconds=600)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._probe.ask("delete", names=self._names, seconds=600)


def _api_requests(probe: Probe) -> float:
    return float(probe.ask("api_requests", schema=site.FLOW_SCHEMA))


def _difference(before: Object, after: Object, histogram: str) -> float:
    """Return the mean of the observations between two scrapes of a histogram, or NaN if there are none."""
    total, count = (
        after[f"{histogram}_{part}"] - before.get(f"{histogram}_{part}", 0.0) for part in ("sum", "count")
    )
    return total / count if count else float("nan")


def _promised(count: int, goal: str, met: bool) -> tuple[str, bool | None]:
    return (goal, met) if count <= PROMISED else ("", None)


def _workqueues(count: int) -> str:
    return "1 WorkQueue" if count == 1 else f"{count:,} WorkQueues"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.0995 else f"{seconds * 1000:.1f} ms"


def _spread(samples: Sequence[float]) -> str:
    return (
        f"min {_ms(min(samples))}, p50 {_ms(percentile(samples, 0.5))}, max {_ms(max(samples))} "
        f"(n={len(samples)})"
    )
