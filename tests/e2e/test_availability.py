"""Two operators, one leader: takeovers, and an uninstall that leaves no finalizer."""

from __future__ import annotations

import pytest

from tests.support.kubernetes import kubectl, watching
from tests.support.operators import OperatorRelease
from tests.support.wait import eventually
from tests.support.workqueues import Lab


def holders_of_the_lease(operator: OperatorRelease, *options: str) -> list[str]:
    """Delete the leader's pod; return the holders of the Lease until there is another leader."""
    where, leader, holders = f"--namespace={operator.namespace}", operator.wait_leader(), list[str]()
    shown = "--output=jsonpath=[{.spec.holderIdentity}]{'\\n'}"
    with watching("lease", operator.name, where, shown, each=lambda line: holders.append(line.strip("[]\n"))):
        eventually(lambda: holders, 60, "the Lease is being watched")
        kubectl("delete", "pod", leader, *options, "--wait=false", where)
        successor = operator.wait_leader(other_than=leader)
        eventually(lambda: successor in holders, 60, "the watch has seen it")
    kubectl("rollout", "status", f"deployment/{operator.name}", where)
    return holders


@pytest.mark.slow
def test_standby_takes_over_when_the_leader_stops_or_dies(lab: Lab, operator: OperatorRelease) -> None:
    holders_of_the_lease(operator, "--grace-period=30")
    holders_of_the_lease(operator, "--grace-period=0", "--force")
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
            eventually(lambda: workqueue.replicas() == 0, 120, "the workers have gone")
        assert lab.ready("twins.dead") == 0
        workqueue.delete()
    finally:
        operator.install(watchNamespaces=[lab.namespace])


@pytest.mark.slow
def test_helm_uninstall_removes_finalizers_and_keeps_queues(lab: Lab, operator: OperatorRelease) -> None:
    workqueue = lab.workqueue("orphan").apply().wait_ready()
    operator.uninstall()
    try:
        workqueue.delete()
        assert {"orphan", "orphan.dead"} <= set(lab.queues())
    finally:
        operator.install(watchNamespaces=[lab.namespace])
