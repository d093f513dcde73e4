"""The manifests of docs/migrate-from-keda.md say the same before and after, and its program runs.

tests/unit/test_docs.py validates each WorkQueue of a page against the CustomResourceDefinition. The WorkQueue that
waits until KEDA's HPA is gone is in tests/e2e/test_workload_ref.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import yaml

from tests.support.rabbitmq import VirtualHost
from tests.support.wait import eventually
from tests.support.worker import ROOT, Workers, publish, take_all

PAGE: Final = (ROOT / "docs/migrate-from-keda.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def spec(kind: str, name: str) -> Any:
    """The spec of a manifest on the page."""
    documents = [one for block in blocks("yaml") for one in yaml.safe_load_all(block)]
    (found,) = [one for one in documents if one["kind"] == kind and one["metadata"]["name"] == name]
    return found["spec"]


def test_workqueue_scales_as_the_scaled_object_did() -> None:
    before, after = spec("ScaledObject", "thumbs"), spec("WorkQueue", "thumbs")
    queue, cron = (trigger["metadata"] for trigger in before["triggers"])

    assert after["workloadRef"]["name"] == before["scaleTargetRef"]["name"]
    assert after["queue"]["name"] == queue["queueName"]
    assert after["scaling"] == {
        "minReplicas": before["minReplicaCount"],
        "maxReplicas": before["maxReplicaCount"],
        "messagesPerReplica": int(queue["value"]),
        "scaleInDelaySeconds": before["cooldownPeriod"],
        "schedules": [
            {
                "name": "office-hours",
                "timeZone": cron["timezone"],
                "start": cron["start"],
                "end": cron["end"],
                "minReplicas": int(cron["desiredReplicas"]),
            }
        ],
    }


def test_workqueue_runs_what_the_scaled_job_ran() -> None:
    before, after = spec("ScaledJob", "reports"), spec("WorkQueue", "reports")
    job, worker = before["jobTargetRef"], after["worker"]
    pod = job["template"]["spec"]
    (queue,) = (trigger["metadata"] for trigger in before["triggers"])

    assert queue["queueName"] == "reports"
    assert after["retry"]["maxAttempts"] == job["backoffLimit"] + 1
    assert after["scaling"] == {
        "maxReplicas": before["maxReplicaCount"],
        "messagesPerReplica": int(queue["value"]),
    }
    assert worker["timeoutSeconds"] == job["activeDeadlineSeconds"]
    assert worker["resources"] == pod["containers"][0]["resources"]
    assert {name: worker[name] for name in ("serviceAccountName", "nodeSelector")} == {
        name: pod[name] for name in ("serviceAccountName", "nodeSelector")
    }


def test_program_of_the_page_runs_for_each_message(
    vhost: VirtualHost, workers: Workers, tmp_path: Path
) -> None:
    (program,) = [block for block in blocks("sh") if "# report.sh" in block]
    (command,) = [block for block in blocks("sh") if block.startswith("workqueue run")]
    (tmp_path / "report.sh").write_text(program)
    (tmp_path / "report.sh").chmod(0o755)
    with vhost.connect() as connection:
        connection.channel().queue_declare("reports", durable=True)
    arguments = command.split()[2:]

    worker = workers.start(
        vhost.url, *arguments, handler=None, queue=None, declare=False, cwd=tmp_path
    ).wait_consuming()
    publish(vhost, b"sales", b"", b"taxes", queue="reports")

    eventually(lambda: worker.outcomes() == {"acked": 2, "dead_lettered": 1})
    assert re.findall("report .* is done, attempt 1", worker.log) == [
        "report sales is done, attempt 1",
        "report taxes is done, attempt 1",
    ]
    [(properties, _)] = take_all(vhost, "reports.dead")
    assert properties.headers["x-workqueue-failure-message"].endswith("the message names no report")
