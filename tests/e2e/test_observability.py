"""Observability of operator and workers: Prometheus, Grafana and the commands of the runbooks.

Slow: every panel and every command of the runbooks needs some traffic first.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from hack.generate import dashboard
from hack.generate.files import CHART, ROOT
from tests.support.commands import kubectl_workqueue
from tests.support.kubernetes import PROGRAMS, kubeconfig, kubectl
from tests.support.operators import OperatorRelease
from tests.support.prometheus import Prometheus, scraping
from tests.support.wait import eventually
from tests.support.workqueues import Lab

pytestmark = pytest.mark.slow

OPERATIONS = ROOT / "docs/operations.md"
RUNBOOKS = ROOT / "docs/runbooks"


@pytest.fixture
def prometheus(lab: Lab, operator: OperatorRelease, tmp_path: Path) -> Iterator[Prometheus]:
    """A Prometheus configured as documented, with the alerts of the chart."""
    (config,) = re.findall(r"(?ms)^```yaml\n(scrape_configs:\n.+?)^```", OPERATIONS.read_text())
    alerts = CHART / "files/alerts.yaml"
    namespaces, begun = [lab.namespace, operator.namespace], time.time()
    with scraping(yaml.safe_load(config)["scrape_configs"], alerts, namespaces, tmp_path) as made:
        eventually(
            lambda: made.over_time("workqueue_leader", begun, time.time()), 120, "the operator is scraped"
        )
        yield made


def test_every_dashboard_panel_has_data(lab: Lab, prometheus: Prometheus) -> None:
    begun = time.time()
    steady = lab.workqueue("shown", scaling={"messagesPerReplica": 1, "maxReplicas": 3}).apply()
    moody = lab.workqueue("shown-moody", worker={"handler": {"python": "jobs:moody"}}).apply()
    lab.workqueue(
        "shown-often",
        scaling={"messagesPerReplica": None, "maxWaitSeconds": 5},
        recurring=[{"name": "often", "everySeconds": 2, "body": '{"id": "often"}'}],
    ).apply()
    steady.wait_ready()
    moody.wait_ready()
    moody.publish([{"id": 1}, {"id": 2, "failures": 1}, {"id": 3, "reject": True}])
    steady.publish([{"id": number, "seconds": 2} for number in range(7)])
    steady.results(7)
    moody.results(2)

    def silent() -> list[str]:
        return [
            f"{panel.title}: {expr}"
            for panel in dashboard.panels()
            for query in panel.queries
            if not prometheus.over_time(expr := filled(query.expr), begun, time.time())
        ]

    def filled(expr: str) -> str:
        return dashboard.filled(expr, namespace=lab.namespace, workqueue="shown.*", rate_interval="10s")

    more = itertools.count(7)

    def all_speak() -> bool:
        # A rate needs two scrapes of a working pod, and Prometheus discovers new pods late on a busy machine.
        steady.publish([{"id": next(more), "seconds": 0.5}])
        return not silent()

    try:
        eventually(all_speak, 180, "every query has found something")
    except TimeoutError:
        assert silent() == []
    assert {rule["health"] for rule in prometheus.alerts().values()} == {"ok"}
    at_maximum = f'ALERTS{{alertname="WorkQueueAtMaximum", namespace="{lab.namespace}", workqueue="shown"}}'
    assert prometheus.over_time(at_maximum, begun, time.time()), "it was about to fire"
    steady.delete()
    moody.delete()


def commands(section: str, *programs: str) -> Iterator[list[str]]:
    """The commands that a section of any runbook has, each once."""
    seen = set()
    for page in RUNBOOKS.glob("WorkQueue*.md"):
        (text,) = re.findall(rf"(?ms)^## {section}\n(.+?)(?=^## |\Z)", page.read_text())
        seen.update(re.findall(rf"(?m)^    ((?:{'|'.join(programs)}) .+)$", text))
    assert seen
    return map(shlex.split, sorted(seen))


def test_runbook_commands_work(lab: Lab, operator: OperatorRelease) -> None:
    """Read-only commands run unchanged. Commands that change something run with --dry-run where kubectl has it."""
    workqueue = lab.workqueue(
        "sick", worker={"handler": {"python": "jobs:moody"}}, scaling={"minReplicas": 1}
    )
    workqueue.apply().wait_ready()
    workqueue.publish([{"id": 1, "reject": True}])
    eventually(lambda: lab.ready("sick.dead") == 1, 120, "there is a dead letter")
    names = {
        "NAMESPACE": lab.namespace,
        "NAME": workqueue.name,
        "workqueue-system": operator.namespace,
        "workqueue-operator": operator.name,
    }

    def told(words: list[str]) -> list[str]:
        pods = operator.pods() if "workqueue-system" in words else workqueue.pods()
        here = names | {"POD": pods[0]["metadata"]["name"]}
        # A label value is no release name: app.kubernetes.io/name=workqueue-operator stays.
        return [
            word
            if "kubernetes.io/name=" in word
            else re.sub("|".join(here), lambda found: here[found[0]], word)
            for word in words
        ]

    path = os.pathsep.join([str(PROGRAMS), os.environ["PATH"]])
    for _, *words in commands("Diagnosis", "kubectl"):
        if words[0] == "workqueue":
            done = kubectl_workqueue(*told(words[1:]), KUBECONFIG=str(kubeconfig()), PATH=path)
            assert done.code == 0, done.err
        else:
            kubectl(*told(words))
    broker = ["exec", f"--namespace={lab.rabbit.namespace}", f"deployment/{lab.rabbit.name}", "--"]
    for words in commands("Diagnosis", "rabbitmqctl", "rabbitmq-diagnostics", "rabbitmq-queues"):
        where = ["--vhost", lab.vhost] if {"list_consumers", "quorum_status"} & set(words) else []
        kubectl(*broker, *told(words), *where)
    for _, *words in commands("Mitigation", "kubectl"):
        kubectl(*told(words), *([] if "exec" in words else ["--dry-run=server"]))
    workqueue.delete()
