"""A changed template: its rollout, and what waiting tools see of it."""

from __future__ import annotations

import pytest

from tests.support.kstatus import kstatus
from tests.support.wait import eventually
from tests.support.workqueues import Lab


def test_waiting_tools_see_progress_until_workqueue_is_ready(lab: Lab) -> None:
    """As Flux does; every other test here waits like `kubectl wait`."""
    workqueue = lab.workqueue("waited").apply()
    eventually(lambda: kstatus(workqueue.get()) == "Current", 120, "it is done")
    assert workqueue.condition("Ready")["status"] == "True", "and not before it is Ready"
    workqueue.change(connectionSecretRef={"name": "nowhere"})
    eventually(lambda: kstatus(workqueue.get()) == "InProgress", 60, "it is not Ready")
    workqueue.change(connectionSecretRef={"name": "rabbitmq"})
    eventually(lambda: kstatus(workqueue.get()) == "Current", 120, "it is done again")
    workqueue.delete()


@pytest.mark.slow
def test_reverted_change_ends_at_original_deployment(lab: Lab) -> None:
    """A -> B -> A during the rollout of B: the Deployment is that of A, and messages are handled."""
    workqueue = lab.workqueue("back", scaling={"minReplicas": 1}).apply()
    workqueue.wait_condition("WorkersAvailable", "True", "WorkersReady")

    def proven() -> bool:
        return workqueue.deployment()["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == "25%"

    eventually(proven, 60, "A replaces more than one pod at a time from now on")
    first = workqueue.deployment()["spec"]
    # B never becomes ready: its canary is still starting when A returns.
    workqueue.change(worker={"image": "workqueue-operator:no-such-tag", "imagePullPolicy": "Never"})
    eventually(lambda: workqueue.deployment()["spec"] != first, 60, "B is being rolled out")
    workqueue.change(worker={"image": "workqueue-operator:dev", "imagePullPolicy": "IfNotPresent"})
    eventually(lambda: workqueue.deployment()["spec"] == first, 60, "A is back, to the letter")
    workqueue.wait_condition("WorkersAvailable", "True", "WorkersReady")
    workqueue.publish([{"id": 1}])
    assert [result["id"] for result in workqueue.results(1)] == [1]
    eventually(lambda: len(workqueue.pods()) == 1, 120, "nothing of B is left")
    workqueue.delete()


@pytest.mark.slow
def test_changed_template_rolls_out_without_interrupting_handlers(lab: Lab) -> None:
    workqueue = lab.workqueue("rolling", scaling={"minReplicas": 2}).apply()
    eventually(lambda: workqueue.status().get("readyReplicas") == 2, 120, "two workers are Ready")
    before = {pod["metadata"]["name"] for pod in workqueue.pods()}
    workqueue.publish([{"id": number, "seconds": 20, "announced": True} for number in range(2)])
    assert {result["pod"] for result in workqueue.results(2)} == before, "both are busy"
    workqueue.change(worker={"podAnnotations": {"example.com/version": "2"}})
    results = workqueue.results(2)
    assert {(result["id"], result["event"], result["attempt"]) for result in results} == {
        (0, "done", 1),
        (1, "done", 1),
    }

    def replaced() -> bool:
        names = {pod["metadata"]["name"] for pod in workqueue.pods()}
        return len(names) == 2 and not names & before

    eventually(replaced, 120, "both pods are of the new template")
    workqueue.delete()
