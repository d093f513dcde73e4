"""What Kubernetes can do to a worker's pod: it runs out of memory, it is evicted. With the real operator."""

from __future__ import annotations

import json
import time

import pytest

from tests.faults.site import Site
from tests.support.kubernetes import KubectlError, kubectl
from tests.support.ledger import Ledger
from tests.support.wait import eventually
from tests.support.workqueues import WorkQueueUnderTest

pytestmark = [pytest.mark.nightly, pytest.mark.usefixtures("place")]

RECOVERS_SECONDS = 60.0
TIMES = 3


def names(workqueue: WorkQueueUnderTest) -> set[str]:
    """The workers' pods that are not on their way out."""
    return {pod["metadata"]["name"] for pod in workqueue.pods() if "deletionTimestamp" not in pod["metadata"]}


def finish(place: Site, workqueue: WorkQueueUnderTest, ledger: Ledger, fault: str, over: float) -> None:
    place.settle(workqueue, ledger)
    place.report.ledger(fault, place.broker.version, ledger, round(time.monotonic() - over, 1))
    workqueue.delete()


def test_work_survives_oom_killed_worker(place: Site) -> None:
    """Its handler takes more than the container's limit; the message comes again, and then it is modest."""
    place.operator.start().wait_serving()
    memory = {"limits": {"memory": "160Mi"}, "requests": {"memory": "64Mi"}}
    workqueue = place.workqueue(
        worker={"handler": {"python": "jobs:moody"}, "resources": memory, "concurrency": 4},
        scaling={"maxReplicas": 2},
    )
    workqueue.apply().wait_ready()
    ledger = Ledger()
    with place.flowing(workqueue, ledger, 0.05):
        eventually(lambda: len(ledger.confirmed) > 20, 30, "messages flow")
        workqueue.publish([{"id": f"eats {n}", "eat": True} for n in range(TIMES)])
        for n in range(TIMES):
            ledger.sent(f"eats {n}")
        eventually(lambda: killed_for_memory(workqueue) > 0, 60, "a container is killed for its memory")
        over = time.monotonic()
    finish(place, workqueue, ledger, "worker's container killed for its memory (OOM)", over)


def killed_for_memory(workqueue: WorkQueueUnderTest) -> int:
    """How many of the workers' containers were last ended by the kernel for their memory."""
    statuses = [status for pod in workqueue.pods() for status in pod["status"].get("containerStatuses", [])]
    last = [status.get("lastState", {}).get("terminated", {}) for status in statuses]
    return sum(state.get("reason") == "OOMKilled" for state in last)


def test_work_survives_evicted_workers(place: Site) -> None:
    """Evicted one at a time, as the disruption budget allows; each finishes its messages in handlers."""
    place.operator.start().wait_serving()
    workqueue = place.workqueue(
        worker={"handler": {"python": "jobs:record"}}, scaling={"maxReplicas": 3, "messagesPerReplica": 1}
    )
    workqueue.apply().wait_ready()
    ledger = Ledger()
    with place.flowing(workqueue, ledger, 0.3, seconds=1.0):
        eventually(lambda: len(names(workqueue)) == 3, 60, "three workers")
        evicted = names(workqueue)
        for pod in evicted:
            eventually(lambda pod=pod: evict(place.namespace, pod), 60, f"{pod} is evicted")
        eventually(
            lambda: not evicted & {pod["metadata"]["name"] for pod in workqueue.pods()},
            90,
            "the evicted pods are gone",
        )
        over = time.monotonic()
    place.settle(workqueue, ledger)
    assert ledger.duplicates == {}, "each finished its messages in handlers"
    finish(place, workqueue, ledger, "worker evicted (drain of a node)", over)


def evict(namespace: str, pod: str) -> bool:
    """Ask for the eviction of a pod; the disruption budget may say no (429)."""
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": namespace},
    }
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
    try:
        kubectl("create", f"--raw={path}", "--filename=-", input=json.dumps(eviction))
    except KubectlError as error:
        if "disruption budget" in str(error) or "not found" in str(error):
            return "not found" in str(error)
        raise
    return True
