"""Every alert fires when it should, stays silent otherwise, and links to a runbook."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from hack.cluster.prometheus import promtool
from hack.generate import metrics
from hack.generate.files import CHART, ROOT

Object = dict[str, Any]

FILE = CHART / "files/alerts.yaml"
GROUPS: list[Object] = yaml.safe_load(FILE.read_text())["groups"]
ALERTS: dict[str, Object] = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}
TESTS = Path(__file__).parent / "alerts"
RUNBOOKS = ROOT / "docs/runbooks"
SECTIONS = ["Meaning", "Impact", "Diagnosis", "Mitigation"]

each_alert = pytest.mark.parametrize("name", ALERTS)


def checked(*arguments: str | Path) -> None:
    """Run promtool, which must succeed."""
    done = subprocess.run([promtool(), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def expectations(name: str) -> list[list[Object]]:
    """What the promtool tests of an alert expect, one entry for each evaluation time."""
    tests = yaml.safe_load((TESTS / f"{name}.yaml").read_text())["tests"]
    looks = [look for test in tests for look in test["alert_rule_test"]]
    assert {look["alertname"] for look in looks} == {name}
    return [look.get("exp_alerts", []) for look in looks]


def test_alert_rules_pass_promtool_check() -> None:
    checked("check", "rules", "--lint=all", "--lint-fatal", FILE)


def test_alerts_pass_their_promtool_tests(tmp_path: Path) -> None:
    """The tests expect only the summary; the other annotations would be written twice."""
    groups = [
        {
            **group,
            "rules": [
                {**rule, "annotations": {"summary": rule["annotations"]["summary"]}}
                for rule in group["rules"]
            ],
        }
        for group in GROUPS
    ]
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump({"groups": groups}))
    copies = []
    for test in sorted(TESTS.glob("*.yaml")):
        copies.append(tmp_path / f"test-{test.name}")
        copies[-1].write_text(test.read_text())
    checked("test", "rules", *copies)


@each_alert
def test_alert_has_a_firing_and_a_silent_test(name: str) -> None:
    expected = expectations(name)
    assert any(expected)
    assert not all(expected)


def test_every_alert_test_belongs_to_an_alert() -> None:
    assert {test.stem for test in TESTS.glob("*.yaml")} == set(ALERTS)


@each_alert
def test_alert_queries_only_existing_metrics(name: str) -> None:
    used = set(re.findall(r"\bworkqueue_\w+", ALERTS[name]["expr"]))
    assert used
    assert used <= metrics.series()


@each_alert
def test_alert_has_a_summary_and_a_runbook_link(name: str) -> None:
    rule = ALERTS[name]
    annotations = rule["annotations"]
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert annotations["summary"].endswith(".")
    assert len(annotations["description"]) > 60
    assert (
        annotations["runbook_url"]
        == f"https://workqueue-dev.github.io/workqueue-operator/docs/runbooks/{name}"
    )


@each_alert
def test_alert_names_only_labels_it_has(name: str) -> None:
    named = set(re.findall(r"\$labels\.(\w+)", " ".join(ALERTS[name]["annotations"].values())))
    for alert in (alert for alerts in expectations(name) for alert in alerts):
        assert named <= alert["exp_labels"].keys()


@each_alert
def test_alert_has_a_complete_runbook(name: str) -> None:
    page = (RUNBOOKS / f"{name}.md").read_text()
    assert page.startswith(f"# {name}\n")
    assert re.findall(r"(?m)^## (.+)$", page) == SECTIONS
    assert "kubectl" in page, "how to look, in words to copy"
    assert f"({name}.md)" in (RUNBOOKS / "README.md").read_text()


def test_every_runbook_belongs_to_an_alert() -> None:
    assert {page.stem for page in RUNBOOKS.glob("*.md")} == {*ALERTS, "README"}
