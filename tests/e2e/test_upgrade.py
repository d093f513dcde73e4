"""Upgrade and rollback of the operator under load, and the upgrade from the chart of the release before."""

from __future__ import annotations

import itertools
import secrets
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import helm, previouschart
from tests.support.inside import Rabbit
from tests.support.kubernetes import temporary_namespace
from tests.support.operators import OperatorRelease
from tests.support.wait import eventually
from tests.support.workqueues import Lab, lab_in

BETWEEN = 0.7
"""Seconds between two messages. A message takes about twice as long, so some worker is always busy."""


@pytest.mark.slow
def test_upgrade_and_rollback_interrupt_no_worker(lab: Lab, operator: OperatorRelease) -> None:
    workqueue = lab.workqueue("through", scaling={"messagesPerReplica": 1, "maxReplicas": 3}).apply()
    workqueue.wait_ready()
    template = workqueue.deployment()["spec"]["template"]

    def operators() -> set[str]:
        return {
            pod["metadata"]["uid"] for pod in operator.pods() if "deletionTimestamp" not in pod["metadata"]
        }

    def change() -> list[set[str]]:
        revisions = [operators()]
        operator.install(watchNamespaces=[lab.namespace], logLevel="debug", idleSweepSeconds=20)
        revisions.append(operators())
        operator.rollback()
        operator.wait_leader()
        return [*revisions, operators()]

    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(change)
        for number in itertools.count():
            workqueue.publish([{"id": number, "seconds": 1.5}])
            moment = time.monotonic() + BETWEEN
            eventually(lambda until=moment: time.monotonic() > until, 5, "the next message is due")
            if changing.done():
                break
    first, upgraded, rolled_back = changing.result()
    assert not first & upgraded
    assert not rolled_back & (first | upgraded)

    results = workqueue.results(number + 1)
    assert sorted(result["id"] for result in results) == list(range(number + 1)), "each once, none lost"
    assert {(result["event"], result["attempt"]) for result in results} == {("done", 1)}
    assert workqueue.deployment()["spec"]["template"] == template
    workqueue.delete()


@pytest.mark.slow
@pytest.mark.usefixtures("crd")
@pytest.mark.parametrize("option", ["--reset-then-reuse-values", "--reuse-values"])
def test_upgrade_from_previous_chart_keeps_values_and_workers(option: str, rabbit: Rabbit) -> None:
    with (
        temporary_namespace("e2e-previous", pod_security="restricted") as namespace,
        lab_in(namespace, rabbit) as lab,
    ):
        release = OperatorRelease(f"e2e-{secrets.token_hex(3)}", namespace, helm.run)
        release.install(
            previouschart.PACKAGE, watchNamespaces=[namespace], page={"enabled": True}, idleSweepSeconds=20
        )
        try:
            stored, pages = release.values(), len(release.page_pods())
            workqueue = lab.workqueue("kept").apply()
            workqueue.wait_ready()
            template = workqueue.deployment()["spec"]["template"]
            workqueue.publish([{"id": 0, "seconds": 20}])

            release.upgrade(option)
            release.wait_leader()
            workqueue.publish([{"id": 1, "seconds": 0}])

            results = workqueue.results(2)
            assert {(one["id"], one["event"], one["attempt"]) for one in results} == {
                (0, "done", 1),
                (1, "done", 1),
            }
            assert workqueue.deployment()["spec"]["template"] == template
            assert release.values() == stored
            eventually(lambda: len(release.page_pods()) == pages, 60, "the replaced pods have gone")
            workqueue.delete()
        finally:
            release.uninstall()
