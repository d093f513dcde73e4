"""What people write into WorkQueues, and delete under them: named, survived, and nothing that worked stops."""

from __future__ import annotations

import json
import random
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.malformed import Case, cases
from tests.faults.objects import Objects, RefusedError, condition, objects_in
from tests.faults.report import Report
from tests.faults.site import NOWHERE, Site, site
from tests.support.kubernetes import apply, kubectl
from tests.support.ledger import Ledger
from tests.support.rabbitmq import Broker
from tests.support.wait import eventually
from tests.support.workqueues import WorkQueueUnderTest, refusal

pytestmark = pytest.mark.nightly

SEED = 2026
SHORT = 300
CREATED = 40
"""Of the specs that are let in, in the short form."""


# -- malformed by every field ----------------------------------------------------------------------


def test_some_malformed_specs_are_reported_and_stop_nothing(place: Site) -> None:
    chosen = random.Random(SEED)
    malformed(place, chosen.sample(list(cases()), SHORT), lambda let_in: chosen.sample(let_in, CREATED))


@pytest.mark.timeout(900)
def test_every_malformed_field_is_reported_and_stops_nothing(place: Site) -> None:
    malformed(place, list(cases()), list)


def malformed(site: Site, every: list[Case], choose: Callable[[list[Case]], list[Case]]) -> None:
    """Each is refused with the name of its field, or let in and leads to a condition with a reason."""
    ledger, restarts = Ledger(), site.operator.restarts
    site.operator.start(resync_seconds=300).wait_serving()
    witness = site.ready(worker={"nodeSelector": NOWHERE})
    no_pods = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "no-pods"}}
    apply({**no_pods, "spec": {"hard": {"pods": "0"}}}, namespace=site.namespace)
    with objects_in(site.namespace) as objects:
        try:
            let_in, unnamed = admit(objects, every)
            assert not unnamed, "\n".join(unnamed)
            assert 0.2 < len(let_in) / len(every) < 0.8, "both kinds are there"
            begun = time.monotonic()
            silent = create(site, objects, choose(let_in))
            assert not silent, "\n".join(silent)
            site.publish(witness, ledger, 1)
            eventually(lambda: witness.replicas() == 1, 30, "the good one wakes among the bad ones")
            seconds = time.monotonic() - begun
            assert not internal_errors(site)
            assert site.operator.restarts == restarts
            site.settle(witness, ledger)
            site.report.ledger("a malformed spec, by every field", site.broker.version, ledger, seconds)
        finally:
            kubectl("delete", "resourcequota", "no-pods", f"--namespace={site.namespace}")
            objects.delete_all()
            eventually(lambda: not objects.workqueues(), 120, "all are gone")


def internal_errors(site: Site) -> float:
    """Count the passes that failed for an unexpected reason."""
    series = 'workqueue_reconcile_errors_total{reason="InternalError"} '
    (line,) = (line for line in site.operator.get("/metrics").splitlines() if line.startswith(series))
    return float(line.removeprefix(series))


def admit(objects: Objects, every: list[Case]) -> tuple[list[Case], list[str]]:
    """The specs that the API server would admit, and complaints about refusals that do not name the field."""
    let_in, unnamed = [], []
    for case in every:
        try:
            objects.create("dry", case.spec, dry_run=True)
        except RefusedError as error:
            if case.field not in str(error):
                unnamed.append(f"{case.title}: {str(error)[:300]}")
        else:
            let_in.append(case)
    return let_in, unnamed


def create(site: Site, objects: Objects, let_in: list[Case]) -> list[str]:
    """Create them all, and return complaints about those without a condition, a reason or a message."""
    titles = {}
    for number, case in enumerate(let_in):
        # A queue of its own for each, so that they are not in one another's way.
        queue = {**(case.spec.get("queue") or {})}
        if queue.get("name") and "queue.name" not in case.title:
            queue["name"] = f"m{number}"
        titles[f"m{number}"] = case.title
        objects.create(f"m{number}", {**case.spec, "queue": queue} if queue else case.spec)

    def answered() -> bool:
        bodies = objects.workqueues()
        return all(condition(bodies[name], "Ready").get("reason") for name in titles)

    try:
        eventually(answered, 30 + len(titles) / 4, "each has a condition with a reason")
    except TimeoutError:
        bodies = objects.workqueues()
        return [
            f"{title}: {bodies[name].get('status')}"
            for name, title in titles.items()
            if not condition(bodies[name], "Ready").get("reason")
        ]
    return [
        f"{titles[name]}: {ready}"
        for name, body in objects.workqueues().items()
        if name in titles and not re.search(r"\w", (ready := condition(body, "Ready"))["message"])
    ]


# -- names at their limits -------------------------------------------------------------------------


def test_longest_names_are_served_and_longer_ones_refused(place: Site) -> None:
    """The longest names work to the end, one character more is refused with the limit."""
    site, ledger = place, Ledger()
    site.operator.start().wait_serving()
    lab = site.lab
    longest = "w" * 52
    queue = "q" * 240
    workqueue = lab.workqueue(longest, queue={"name": queue}, scaling={"scaleInDelaySeconds": 0})
    workqueue.body["spec"]["queue"]["exchange"] = {"name": "x" * 255, "routingKeys": ["k" * 255]}
    workqueue.apply().wait_ready()
    lab.rabbit.publish(lab.channel, queue, [{"id": number} for number in range(3)])
    for number in range(3):
        ledger.sent(number)
    site.settle(workqueue, ledger)
    seconds = site.wait_converged(lambda: site.converged(workqueue, 0))
    site.report.ledger("names at their length limits", site.broker.version, ledger, seconds)
    workqueue.delete()
    for change, limit in (
        ({"metadata": {"name": longest + "w"}}, "52"),
        ({"spec": {"queue": {"name": queue + "x"}}}, "240"),
        ({"spec": {"queue": {"exchange": {"name": "x" * 256}}}}, "255"),
    ):
        body = json.loads(json.dumps(workqueue.body))
        for part, value in change.items():
            body[part] = {**body[part], **value}
        assert limit in refusal(body)


# -- deleted under the operator --------------------------------------------------------------------


def deleting(site: Site, policy: str = "Delete") -> WorkQueueUnderTest:
    return site.ready(queue={"deletionPolicy": policy}, worker={"nodeSelector": NOWHERE})


def row(site: Site, fault: str, ledger: Ledger, seconds: float) -> None:
    site.report.ledger(fault, site.broker.version, ledger, seconds)


def test_queue_is_deleted_after_its_secret(place: Site) -> None:
    """The connection is still open, so the queue is deleted as asked."""
    site, where = place, f"--namespace={place.namespace}"
    site.operator.start().wait_serving()
    workqueue = deleting(site)
    kubectl("delete", "secret", "rabbitmq", where)
    try:
        begun = time.monotonic()
        workqueue.delete()
        assert site.consumers(workqueue.name) == -1, "the queue is gone"
        row(site, "Secret deleted before its WorkQueue", Ledger(), time.monotonic() - begun)
    finally:
        site.lab.secret("rabbitmq")


def test_deletion_keeps_queue_until_it_is_empty(place: Site) -> None:
    site, ledger = place, Ledger()
    site.operator.start().wait_serving()
    workqueue = deleting(site, "DeleteIfEmpty")
    site.publish(workqueue, ledger, 3)
    workqueue.delete(wait=False)
    said = workqueue.wait_condition("Ready", "False", "QueueNotEmpty")
    assert "3 waiting" in said["message"]
    assert site.consumers(workqueue.name) >= 0
    site.settle(workqueue, ledger)
    begun = time.monotonic()
    eventually(lambda: not workqueue.exists(), 30, "it goes")
    row(site, "WorkQueue deleted while its queue has messages", ledger, time.monotonic() - begun)


def test_deletion_waits_for_unreachable_broker(place: Site) -> None:
    """The queue cannot be read: the deletion waits, reports why, and completes when the broker is back."""
    site, ledger = place, Ledger()
    site.operator.start().wait_serving()
    workqueue = deleting(site, "DeleteIfEmpty")
    site.publish(workqueue, ledger, 1)
    with site.relay.refusing():
        workqueue.delete(wait=False)
        workqueue.wait_condition("Ready", "False", "BrokerUnreachable")
        assert workqueue.exists()
    workqueue.wait_condition("Ready", "False", "QueueNotEmpty")
    site.settle(workqueue, ledger)
    begun = time.monotonic()
    eventually(lambda: not workqueue.exists(), 60, "it goes")
    row(site, "WorkQueue deleted while the broker is gone", ledger, time.monotonic() - begun)


def test_deletion_waits_for_stopped_operator(place: Site) -> None:
    site, ledger = place, Ledger()
    site.operator.start().wait_serving()
    workqueue = deleting(site, "DeleteIfEmpty")
    site.operator.kill()
    site.publish(workqueue, ledger, 1)
    workqueue.delete(wait=False)
    site.operator.start()
    begun = time.monotonic()
    workqueue.wait_condition("Ready", "False", "QueueNotEmpty")
    site.settle(workqueue, ledger)
    eventually(lambda: not workqueue.exists(), 60, "it goes")
    assert site.consumers(workqueue.name) == -1
    row(site, "WorkQueue deleted while the operator is down", ledger, time.monotonic() - begun)


def test_namespace_deletion_completes_in_any_order(
    rabbitmq: Broker, crd: None, report: Report, tmp_path: Path
) -> None:
    """Everything in it is deleted in any order, the Secret among the first."""
    with site(rabbitmq, tmp_path, report) as doomed:
        doomed.operator.start().wait_serving()
        ledger = Ledger()
        kept = doomed.ready(worker={"nodeSelector": NOWHERE})
        deleting(doomed)
        doomed.publish(kept, ledger, 2)
        begun = time.monotonic()
        kubectl("delete", "namespace", doomed.namespace, "--wait=false")
        gone = ("get", "namespace", doomed.namespace, "--ignore-not-found", "--output=name")
        eventually(lambda: not kubectl(*gone), 150, "the namespace is gone")
        seconds = time.monotonic() - begun
        doomed.settle(kept, ledger)
        row(doomed, "namespace deleted with its WorkQueues", ledger, seconds)


def test_younger_of_two_workqueues_takes_over_the_queue(place: Site) -> None:
    """The older has it; the younger says so, and takes over when the older goes."""
    site, ledger = place, Ledger()
    site.operator.start().wait_serving()
    queue = {"name": f"shared-{secrets.token_hex(3)}"}
    older = site.ready(queue=queue, worker={"nodeSelector": NOWHERE})
    created = older.get()["metadata"]["creationTimestamp"]
    younger = site.workqueue(queue=queue, worker={"nodeSelector": NOWHERE})

    def a_second_later() -> bool:
        younger.apply()
        if younger.get()["metadata"]["creationTimestamp"] > created:
            return True
        younger.delete()
        return False

    eventually(a_second_later, 20, "it is younger by a second")
    younger.wait_condition("Ready", "False", "QueueClaimed")
    assert site.converged(older, 0)
    older.delete()
    begun = time.monotonic()
    seconds = site.wait_converged(lambda: site.asleep(younger), begun)
    site.lab.rabbit.publish(site.lab.channel, queue["name"], [{"id": 0}])
    ledger.sent(0)
    eventually(lambda: younger.replicas() == 1, 30, "it is served")
    site.settle(younger, ledger)
    row(site, "two WorkQueues on one queue, the older goes", ledger, seconds)
    younger.delete()
