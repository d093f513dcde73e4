"""Scale-in asks first: workers leave under load, and no handler is interrupted."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest

from tests.simulation.controller_steps import MARKED
from tests.support import clusternet
from tests.support.kubernetes import kubectl, kubectl_json, watching
from tests.support.localcluster import standing_still
from tests.support.operators import OperatorRelease
from tests.support.wait import eventually
from tests.support.workqueues import Lab, Object, WorkQueueUnderTest, watching_replicas

WORKERS = 12
SEEN_LATE = 0.25
"""Seconds by which the test may see a deletion after the worker's SIGTERM."""


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "removals", [15, pytest.param(60, marks=pytest.mark.slow), pytest.param(300, marks=pytest.mark.nightly)]
)
def test_scale_ins_under_load_interrupt_no_handler(lab: Lab, removals: int) -> None:
    """This number of workers must have left; a node starts about one pod per second."""
    most_seconds = 240 + 3 * removals
    workqueue = (
        lab.workqueue(
            "bounce", scaling={"maxReplicas": WORKERS, "messagesPerReplica": 1, "scaleInDelaySeconds": 0}
        )
        .apply()
        .wait_ready()
    )
    chance, sent, results = random.Random(7), 0, []
    with watching_deletions(workqueue) as deletions:
        deadline = time.monotonic() + most_seconds
        while len(deletions) < removals:
            assert time.monotonic() < deadline, f"only {len(deletions)} scale-ins in {most_seconds} s"
            burst = chance.randint(1, WORKERS)
            jobs = [{"id": sent + n, "seconds": chance.choice([0.05, 0.1, 0.3, 1.5])} for n in range(burst)]
            workqueue.publish(jobs)
            sent += burst
            results += workqueue.results(chance.randint(0, burst // 2)) if burst > 1 else []
            busy_until = time.monotonic() + chance.uniform(0.2, 1.2)
            eventually(lambda moment=busy_until: time.monotonic() > moment, 5, "the load breathes")
        results += workqueue.results(sent - len(results))
        eventually(lambda: workqueue.replicas() == 0, 120, "the last workers have gone")
    assert sorted(result["id"] for result in results) == list(range(sent)), "each once, none lost"
    assert {result["event"] for result in results} == {"done"}
    assert {result["attempt"] for result in results} == {1}
    interrupted = [
        (deletions[result["pod"]], result)
        for result in results
        if result["pod"] in deletions
        and result["begun"] < deletions[result["pod"]].seen - SEEN_LATE
        and deletions[result["pod"]].seen < result["ended"] - SEEN_LATE
    ]
    print(
        f"{len(deletions)} workers left while {sent} messages were handled; {len(interrupted)} in a handler"
    )
    assert not interrupted, "no SIGTERM to a busy worker"
    unasked = {name: deletion for name, deletion in deletions.items() if deletion.mark == "<none>"}
    assert not unasked, "each removed pod had been asked and marked"
    assert lab.ready("bounce.dead") == 0
    workqueue.delete()


@pytest.mark.slow
def test_pod_is_removed_only_after_kubernetes_saw_its_mark(lab: Lab) -> None:
    """A frozen controller would choose by its stale cache."""
    workqueue = (
        lab.workqueue("still", scaling={"minReplicas": 3, "scaleInDelaySeconds": 0}).apply().wait_ready()
    )
    eventually(lambda: workqueue.status().get("readyReplicas") == 3, 120, "three work")
    with watching_deletions(workqueue) as deletions:
        with standing_still("kube-controller-manager"):
            workqueue.change(scaling={"minReplicas": 1})
            workqueue.wait_condition("ScalingActive", "True", "PodsSettling")
            assert workqueue.replicas() == 3
            assert not deletions
        eventually(lambda: len(deletions) == 2, 120, "two are removed once it goes on")
    assert {deletion.mark for deletion in deletions.values()} == {"-1000"}
    (stays,) = [pod["metadata"] for pod in workqueue.pods() if "deletionTimestamp" not in pod["metadata"]]
    assert not is_marked(stays)
    workqueue.delete()


@pytest.mark.slow
def test_marks_of_dead_operator_are_cleared(lab: Lab) -> None:
    """Kubernetes would choose among all marked pods, and a pod marked long ago works again."""
    workqueue = lab.workqueue("left", replicas=2).apply().wait_ready()
    eventually(lambda: workqueue.status().get("readyReplicas") == 2, 120, "two work")
    first = workqueue.pods()[0]["metadata"]
    # In one write, as the operator does it. Otherwise the running one clears half a mark.
    kubectl("patch", "pod", first["name"], f"--namespace={lab.namespace}", f"--patch={json.dumps(MARKED)}")
    eventually(
        lambda: not any(is_marked(pod["metadata"]) for pod in workqueue.pods()), 60, "no pod is marked"
    )
    assert workqueue.replicas() == len(workqueue.pods()) == 2
    workqueue.delete()


def is_marked(metadata: Object) -> bool:
    """Whether Kubernetes removes this pod before others."""
    cost = "controller.kubernetes.io/pod-deletion-cost" in metadata["annotations"]
    assert (metadata["labels"]["workqueue.dev/retiring"] == "true") == cost
    return cost


def test_unschedulable_pods_are_scaled_in_by_marks(lab: Lab) -> None:
    """One remaining pod is not Ready. Kubernetes ranks it like the leaving pods, so the marks decide."""
    alone = {
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": {"workqueue.dev/workqueue": "homeless"}},
    }
    affinity = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [alone]}}
    workqueue = lab.workqueue("homeless", replicas=1, worker={"affinity": affinity}).apply()
    workqueue.wait_condition("WorkersAvailable", "True")
    workqueue.change(replicas=4)
    workqueue.wait_condition("WorkersAvailable", "False", "PodUnschedulable")
    eventually(lambda: len(workqueue.pods()) == 4, 60, "four pods exist")
    working = [pod["metadata"]["uid"] for pod in workqueue.pods() if pod["spec"].get("nodeName")]
    workqueue.change(replicas=2)
    eventually(lambda: workqueue.replicas() == 2, 60, "two of them have gone")
    eventually(lambda: len(workqueue.pods()) == 2, 120, "and their pods")
    assert set(working) <= {pod["metadata"]["uid"] for pod in workqueue.pods()}, "the busy pod stays"
    workqueue.delete()


class Deletion(NamedTuple):
    """A terminating pod as first seen: when (time.time()), with which mark, and since when Ready."""

    seen: float
    mark: str
    ready_since: str


@contextlib.contextmanager
def watching_deletions(workqueue: WorkQueueUnderTest) -> Iterator[dict[str, Deletion]]:
    """The terminating pods of the WorkQueue that were seen, by name."""
    deletions: dict[str, Deletion] = {}

    def note(line: str) -> None:
        name, gone, mark, ready_since = line.split()
        if gone != "<none>":
            deletions.setdefault(name, Deletion(time.time(), mark, ready_since))

    columns = {
        "NAME": ".metadata.name",
        "GONE": ".metadata.deletionTimestamp",
        "MARK": ".metadata.annotations.controller\\.kubernetes\\.io/pod-deletion-cost",
        "READY": '.status.conditions[?(@.type=="Ready")].lastTransitionTime',
    }
    with watching(
        *("pods", f"--selector=workqueue.dev/workqueue={workqueue.name}"),
        *(f"--namespace={workqueue.lab.namespace}", "--no-headers"),
        "--output=custom-columns=" + ",".join(f"{name}:{path}" for name, path in columns.items()),
        each=note,
    ):
        yield deletions


@pytest.mark.slow
def test_quota_does_not_stop_scale_in(lab: Lab) -> None:
    """Three of ten pods are admitted. They leave when idle, and a larger quota starts no new ones."""
    where = f"--namespace={lab.namespace}"
    eventually(lambda: not kubectl_json("get", "pods", where)["items"], 240, "no pod of another test is left")
    scaling = {"maxReplicas": 10, "messagesPerReplica": 1, "scaleInDelaySeconds": 20}
    kubectl("create", "quota", "three-pods", "--hard=pods=3", where)
    try:
        workqueue = lab.workqueue("rationed", scaling=scaling).apply().wait_ready()
        with watching_pods(workqueue) as pods, watching_replicas(workqueue) as replicas:
            workqueue.publish([{"id": number, "seconds": 1} for number in range(40)])
            eventually(lambda: 10 in replicas.counts, 120, "the backlog asks for ten")
            workqueue.wait_condition("WorkersAvailable", "False", "PodRefused")
            workqueue.results(40)
            eventually(lambda: 3 in replicas.counts, 60, "the pods that were refused are given up")
            kubectl("patch", "quota", "three-pods", '--patch={"spec":{"hard":{"pods":"20"}}}', where)
            eventually(lambda: replicas.counts[-1] == 0, 120, "the idle ones are retired")
        assert replicas.counts[:4] == [0, 1, 10, 3]
        assert len(pods) == 3, "the larger quota has started none"
        workqueue.delete()
    finally:
        kubectl("delete", "quota", "three-pods", where)


@pytest.mark.slow
def test_unreachable_workers_neither_raise_nor_lower_the_count(lab: Lab, operator: OperatorRelease) -> None:
    """A default-deny network: the kubelet's probes reach the workers, the operator does not."""
    scaling = {"maxReplicas": 12, "messagesPerReplica": 10, "scaleInDelaySeconds": 2}
    workqueue = lab.workqueue("unreachable", worker={"concurrency": 20}, scaling=scaling).apply().wait_ready()
    with watching_replicas(workqueue) as replicas:
        with blocked_port(8090, [pod["status"]["podIP"] for pod in operator.pods()]):
            workqueue.publish([{"id": 1, "seconds": 10}])
            workqueue.wait_condition("WorkersAvailable", "True", "WorkersReady")
            named = workqueue.wait_condition("ScalingActive", "False", "RetireUnreachable")
            assert f"Worker {workqueue.pods()[0]['metadata']['name']} " in named["message"]
            assert [result["id"] for result in workqueue.results(1)] == [1]
            workqueue.publish([{"id": number, "seconds": 30} for number in range(2, 42)])
            eventually(lambda: replicas.counts[-1] > 1, 120, "a backlog that is seen to wait is still served")
            workqueue.results(40, seconds=300)
            most = replicas.counts[-1]
            assert most <= 4, "forty messages, ten for each replica"
            workqueue.wait_condition("ScalingActive", "False", "RetireUnreachable")
            assert replicas.counts == [0, 1, most], "workers that cannot be asked stay"
        eventually(lambda: replicas.counts[-1] == 0, 120, "they are retired once they can be asked")
    workqueue.wait_condition("ScalingActive", "True", "AsExpected")
    workqueue.delete()


@contextlib.contextmanager
def blocked_port(port: int, sources: Sequence[str]) -> Iterator[None]:
    """Drop what these pods send to this port of other pods; the node, and so the kubelet, still reaches it.

    Only the operator of this test is blocked: other tests run at the same time.
    """
    with contextlib.ExitStack() as rules:
        for source in sources:
            rule = ("FORWARD", "-s", source, "-p", "tcp", "--dport", str(port), "-j", "DROP")
            subprocess.run(
                clusternet.command("iptables", "--wait", "-I", *rule), check=True, capture_output=True
            )
            remove = clusternet.command("iptables", "--wait", "-D", *rule)
            rules.callback(subprocess.run, remove, check=True, capture_output=True)
        yield


@contextlib.contextmanager
def watching_pods(workqueue: WorkQueueUnderTest) -> Iterator[set[str]]:
    """The names of all pods that the WorkQueue had while the context lasts."""
    names: set[str] = set()
    with watching(
        *("pods", f"--selector=workqueue.dev/workqueue={workqueue.name}"),
        *(
            f"--namespace={workqueue.lab.namespace}",
            "--no-headers",
            "--output=custom-columns=NAME:.metadata.name",
        ),
        each=lambda line: names.add(line.strip()),
    ):
        yield names
