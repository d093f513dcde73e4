"""The audit report, clean only if every package was looked up, and the bill of materials."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from hack.image import sbom
from hack.image.audit import CLEAN, UNKNOWN, VULNERABLE, verdict
from workqueue import __version__

GOOD: dict[str, Any] = {"name": "pika", "version": "1.4.4", "vulns": []}
BAD: dict[str, Any] = {
    "name": "aiohttp",
    "version": "3.0",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["3.1"]}, {"id": "PYSEC-2", "fix_versions": []}],
}
SKIPPED: dict[str, Any] = {"name": "yarl", "skip_reason": "Dependency not found"}


@pytest.mark.parametrize(
    ("packages", "code", "line"),
    [
        pytest.param(
            [GOOD, GOOD], CLEAN, "No known vulnerability in 2 packages.", id="all are known and good"
        ),
        pytest.param([GOOD, BAD], VULNERABLE, "aiohttp 3.0: PYSEC-1, fixed in 3.1", id="one is vulnerable"),
        pytest.param([BAD], VULNERABLE, "aiohttp 3.0: PYSEC-2, fixed in no version", id="nothing fixes it"),
        pytest.param(
            [GOOD, SKIPPED], UNKNOWN, "1 of 2 packages are unknown to the service.", id="one is unknown"
        ),
        pytest.param([], UNKNOWN, "0 of 0 packages are unknown to the service.", id="nothing was looked up"),
    ],
)
def test_audit_report_is_evaluated(packages: list[dict[str, Any]], code: int, line: str) -> None:
    found = verdict({"dependencies": packages})
    assert found.code == code
    assert line in found.lines


@pytest.mark.slow
def test_bill_of_materials_lists_every_locked_package_version() -> None:
    sbom.main()
    bill = json.loads(sbom.FILE.read_text())
    listed = {(one["name"], one["version"]) for one in bill["components"]}
    locked = re.findall(r"(?m)^([\w.-]+)==([\w.]+)", (sbom.ROOT / "requirements.lock").read_text())
    assert listed == set(locked)
    assert bill["metadata"]["component"]["version"] == __version__
