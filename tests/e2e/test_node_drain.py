"""A drain that leaves protected pods alone interrupts no long handler."""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict

import pytest

from tests.support.kubernetes import KubectlError, kubectl, kubectl_json, watching
from tests.support.operators import OperatorRelease
from tests.support.wait import eventually
from tests.support.workqueues import Lab, Object, WorkQueueUnderTest
from workqueue_operator.names import ANNOTATION_PROTECTED, PROTECTION

BUSY, IDLE = 10, 2
HANDLER_SECONDS = 120


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_consolidating_drain_interrupts_no_long_handler(lab: Lab) -> None:
    workqueue = lab.workqueue(
        "consolidated",
        worker={"timeoutSeconds": 300, "disruption": {"maxUnavailable": "100%"}},
        scaling={
            "minReplicas": BUSY + IDLE,
            "maxReplicas": BUSY + IDLE,
            "messagesPerReplica": 1,
            "scaleInDelaySeconds": 600,
        },
    ).apply()
    eventually(lambda: workqueue.status().get("readyReplicas") == BUSY + IDLE, 300, "all workers are Ready")
    marks: dict[str, list[str]] = defaultdict(list)

    def note(line: str) -> None:
        name, _, mark = line.strip().partition(" ")
        if marks[name][-1:] != [mark]:
            marks[name].append(mark)

    selector = "--selector=workqueue.dev/workqueue=consolidated"
    shown = "{.metadata.name} {.metadata.annotations.workqueue\\.dev/protected}{'\\n'}"
    with watching("pods", selector, f"--namespace={lab.namespace}", f"--output=jsonpath={shown}", each=note):
        eventually(lambda: len(marks) == BUSY + IDLE, 60, "the pods are being watched")
        workqueue.publish([{"id": number, "seconds": HANDLER_SECONDS} for number in range(BUSY)])
        eventually(
            lambda: sum(is_protected(pod) for pod in workqueue.pods()) == BUSY, 100, "busy pods are protected"
        )
        evicted = drain(workqueue)
        results = workqueue.results(BUSY)
        eventually(lambda: all(marks[one["pod"]][-1] == "" for one in results), 60, "the watch has seen it")

    assert sorted(result["id"] for result in results) == list(range(BUSY)), "each once, none lost"
    assert {(result["event"], result["attempt"], result["redelivered"]) for result in results} == {
        ("done", 1, False)
    }
    assert len(evicted) == BUSY + IDLE, "idle workers leave"
    assert not [result for result in results if evicted[result["pod"]] < result["ended"]]
    for result in results:
        assert marks[result["pod"]] == ["", "long-handler", ""], "two writes for each handler"
    idle = evicted.keys() - {result["pod"] for result in results}
    assert [marks[pod] for pod in idle] == [[""]] * IDLE, "none without a long handler"
    workqueue.delete()


def is_protected(pod: Object) -> bool:
    """Whether autoscalers leave the node of this pod alone."""
    annotations = pod["metadata"]["annotations"]
    return PROTECTION.items() | {(ANNOTATION_PROTECTED, "long-handler")} <= annotations.items()


def drain(workqueue: WorkQueueUnderTest) -> dict[str, float]:
    """Evict the present pods, each as soon as it is not protected; return when, in time.time()."""
    present = {pod["metadata"]["uid"] for pod in workqueue.pods()}
    evicted: dict[str, float] = {}

    def evict_unprotected() -> bool:
        for pod in workqueue.pods():
            metadata = pod["metadata"]
            name, is_new = metadata["name"], metadata["uid"] not in present
            if is_new or name in evicted or metadata["annotations"].get("karpenter.sh/do-not-disrupt"):
                continue
            eviction = {
                "apiVersion": "policy/v1",
                "kind": "Eviction",
                "metadata": {"name": name, "namespace": metadata["namespace"]},
            }
            where = f"/api/v1/namespaces/{metadata['namespace']}/pods/{name}/eviction"
            moment = time.time()
            try:
                kubectl("create", f"--raw={where}", "--filename=-", input=json.dumps(eviction))
            except KubectlError as error:
                if "disruption budget" not in str(error):
                    raise
                # The PodDisruptionBudget has not counted a new pod yet.
                continue
            evicted[name] = moment
        return len(evicted) == len(present)

    eventually(evict_unprotected, HANDLER_SECONDS + 120, "all pods are evicted")
    return evicted


def test_operator_may_list_cordoned_nodes_and_no_more(operator: OperatorRelease) -> None:
    account = f"--as=system:serviceaccount:{operator.namespace}:{operator.name}"
    cordoned = "/api/v1/nodes?fieldSelector=spec.unschedulable%3Dtrue&resourceVersion=0"
    found = json.loads(kubectl("get", f"--raw={cordoned}", account))["items"]
    assert all(node["spec"]["unschedulable"] for node in found)
    assert kubectl_json("get", "nodes", account)["items"]
    for verb in ("get", "watch", "patch"):
        with pytest.raises(KubectlError):
            kubectl("auth", "can-i", verb, "nodes", account)
    # Not any other status: a busy API server may answer too late.
    refused = re.compile(r'The cordoned nodes could not be read.*"status": 403')
    assert not refused.search(operator.logs())
