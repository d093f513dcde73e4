"""Two operators, one leader: takeovers, and an uninstall that leaves no finalizer."""

from __future__ import annotations

import time

import pytest

from tests.support.kubernetes import kubectl
from tests.support.operators import OperatorRelease
from tests.support.wait import eventually
from tests.support.workqueues import Lab


@pytest.mark.slow
def test_standby_takes_over_when_the_leader_stops_or_dies(lab: Lab, operator: OperatorRelease) -> None:
    for grace, bound in (("--grace-period=30", 8.0), ("--grace-period=0", 20.0)):
        leader = operator.wait_leader()
        force = ["--force"] if bound > 10 else []
        begun = time.monotonic()
        kubectl("delete", "pod", leader, grace, *force, "--wait=false", f"--namespace={operator.namespace}")
        operator.wait_leader(other_than=leader, seconds=bound)
        print(f"takeover after {time.monotonic() - begun:.1f} s, bound {bound} s")
        kubectl("rollout", "status", f"deployment/{operator.name}", f"--namespace={operator.namespace}")
    workqueue = lab.workqueue("after").apply().wait_ready()
    workqueue.publish([{"id": 1}])
    assert len(workqueue.results(1)) == 1
    workqueue.delete()


@pytest.mark.slow
def test_two_simultaneous_leaders_do_no_harm(lab: Lab, operator: OperatorRelease) -> None:
    """Leader election is off and two processes of one release run: only the guards of each write protect."""
    operator.install(watchNamespaces=[lab.namespace], replicaCount=2, leaderElection={"enabled": False})
    try:
        workqueue = lab.workqueue("twins").apply().wait_ready()
        for _ in range(2):
            workqueue.publish([{"id": number, "seconds": 0.2} for number in range(30)])
            results = workqueue.results(30)
            assert sorted(result["id"] for result in results) == list(range(30))
            assert {result["event"] for result in results} == {"done"}
            eventually(lambda: workqueue.replicas() == 0, 90, "the workers have gone")
        assert lab.queues()["twins.dead"]["messages"] == 0
        workqueue.delete()
    finally:
        operator.install(watchNamespaces=[lab.namespace])


@pytest.mark.slow
def test_helm_uninstall_removes_finalizers_and_keeps_queues(lab: Lab, operator: OperatorRelease) -> None:
    workqueue = lab.workqueue("orphan").apply().wait_ready()
    operator.uninstall()
    try:
        workqueue.delete(seconds=20)
        assert {"orphan", "orphan.dead"} <= set(lab.queues())
    finally:
        operator.install(watchNamespaces=[lab.namespace])
