"""The example of each feature in the cluster: its WorkQueue, its handler, and the program that sends its messages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from tests.e2e.test_limits import most_at_once
from tests.support.kubernetes import CHECKOUT, KubectlError, kubectl
from tests.support.objects import Object, merged
from tests.support.wait import eventually
from tests.support.workqueues import IMAGE, Lab, WorkQueueUnderTest

EXAMPLES = CHECKOUT / "examples"


def applied(lab: Lab, example: str, body: Object) -> WorkQueueUnderTest:
    """Apply a WorkQueue whose workers have the handler of an example."""
    kubectl(
        *("create", "configmap", example, f"--namespace={lab.namespace}"),
        f"--from-file={EXAMPLES / example / example}.py",
    )
    place: dict[str, Any] = {
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "env": [{"name": "PYTHONPATH", "value": "/example"}],
        "volumes": [{"name": "example", "configMap": {"name": example}}],
        "volumeMounts": [{"name": "example", "mountPath": "/example", "readOnly": True}],
    }
    # A pod takes what its worker has printed with it.
    spec = {"worker": place, "scaling": {"scaleInDelaySeconds": 600}}
    body = merged(body, {"metadata": {"namespace": lab.namespace}, "spec": spec})
    return WorkQueueUnderTest(lab, body["metadata"]["name"], body).apply().wait_ready()


def of_file(name: str) -> Object:
    """A WorkQueue of manifests/examples."""
    return dict(yaml.safe_load((CHECKOUT / "manifests/examples" / name).read_text()))


def of_handler(name: str, handler: str) -> Object:
    """A WorkQueue with nothing but a handler."""
    return {
        "apiVersion": "workqueue.dev/v1alpha1",
        "kind": "WorkQueue",
        "metadata": {"name": name},
        "spec": {"connectionSecretRef": {"name": "rabbitmq"}, "worker": {"handler": {"python": handler}}},
    }


def send(lab: Lab, example: str, call: str = "main()") -> None:
    """Run the program that sends the messages of an example."""
    subprocess.run(
        [sys.executable, "-c", f"import {example}; {example}.{call}"],
        cwd=EXAMPLES / example,
        env=os.environ | {"WORKQUEUE_URL": lab.rabbit.url(lab.vhost, lab.vhost, lab.password)},
        check=True,
    )


def await_printed(workqueue: WorkQueueUnderTest, pattern: str, count: int) -> list[Any]:
    """Wait until the workers have printed lines of a pattern, and return its groups."""

    def printed() -> list[Any]:
        where = f"--namespace={workqueue.lab.namespace}"
        selector = f"--selector=workqueue.dev/workqueue={workqueue.name}"
        try:
            log = kubectl("logs", selector, where, "--container=worker", "--tail=-1", "--max-log-requests=50")
        except KubectlError:  # a container has not started yet
            return []
        found = re.findall(pattern, log)
        return found if len(found) >= count else []

    try:
        return eventually(printed, 240, f"{count} lines {pattern!r}")
    finally:
        workqueue.delete()


@pytest.mark.slow
def test_recurring_reports_are_made(lab: Lab) -> None:
    reports = applied(lab, "reports", of_file("recurring.yaml"))

    [slot, *_] = await_printed(reports, r"traffic report for (reports/traffic/[-\dT:]+:00Z)", 1)

    assert re.fullmatch(r"reports/traffic/\d{4}-\d\d-\d\dT\d\d:\d\d:00Z", slot)


@pytest.mark.slow
def test_mails_are_sent_at_the_rate(lab: Lab) -> None:
    mails = applied(lab, "mails", of_file("rate-limit.yaml"))

    mails.publish([{"to": f"{number}@example.com", "subject": "Hi"} for number in range(30)])

    sent = await_printed(mails, r"To (\d+)@example.com: Hi", 30)
    assert sorted(map(int, sent)) == list(range(30))
    assert lab.channel.queue_declare("mails.limit.starts", passive=True)


@pytest.mark.slow
def test_orders_keep_to_the_limit_of_the_shop(lab: Lab) -> None:
    orders = applied(lab, "shop", merged(of_file("limits.yaml"), {"spec": {"scaling": {"maxReplicas": 4}}}))

    send(lab, "shop")

    calls = await_printed(orders, r"Order (\d+): ([\d.]+) to ([\d.]+)", 20)
    assert {int(number) for number, _, _ in calls} == set(range(20))
    assert most_at_once([{"begun": float(begun), "ended": float(ended)} for _, begun, ended in calls]) <= 5


@pytest.mark.slow
def test_reminders_come_when_they_are_due(lab: Lab) -> None:
    reminders = applied(lab, "reminders", of_handler("reminders", "reminders:remind"))

    send(lab, "reminders")

    carts = await_printed(reminders, r"Cart (\d): you left something behind", 3)
    assert set(carts) == {"1", "2", "3"}


@pytest.mark.slow
def test_cancelled_export_ends(lab: Lab) -> None:
    exports = applied(lab, "exports", of_handler("exports", "exports:export"))

    send(lab, "exports")

    assert await_printed(exports, r"Customer (\d: done)", 1) == ["2: done"]


@pytest.mark.slow
def test_all_receipts_are_printed(lab: Lab) -> None:
    change = {"spec": {"scaling": {"maxReplicas": 5}}}
    receipts = applied(lab, "receipts", merged(of_file("waiting-time.yaml"), change))

    send(lab, "receipts", "main(40)")

    numbers = await_printed(receipts, r"Receipt (\d+): started after [\d.]+ s", 40)
    assert set(map(int, numbers)) == set(range(40))
