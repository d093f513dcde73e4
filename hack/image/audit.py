"""Check the image's packages for known vulnerabilities: `make audit`.

pip-audit looks up each locked package at an advisory service. If the service is not reachable or does not know the
packages, the result is unknown. It must not count as clean.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
SERVICES: Final = ("pypi", "osv")
TIMEOUT_SECONDS: Final = 10

CLEAN, VULNERABLE, UNKNOWN = 0, 1, 3


class Verdict(NamedTuple):
    """The result of an audit: the exit code, and lines to print."""

    code: int
    lines: list[str]


def verdict(report: dict[str, Any]) -> Verdict:
    """Derive the result from pip-audit's report."""
    packages = report["dependencies"]
    skipped = [one for one in packages if "skip_reason" in one]
    if skipped or not packages:
        return Verdict(UNKNOWN, [f"{len(skipped)} of {len(packages)} packages are unknown to the service."])
    vulnerable = [
        f"{one['name']} {one['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'no version'}"
        for one in packages
        for found in one["vulns"]
    ]
    if vulnerable:
        return Verdict(
            VULNERABLE, [*vulnerable, "Raise the versions with `make lock ARGS='--upgrade-package NAME'`."]
        )
    return Verdict(CLEAN, [f"No known vulnerability in {len(packages)} packages."])


def ask(service: str) -> Verdict:
    """Audit with one service."""
    command = [
        *(sys.executable, "-m", "pip_audit", "--requirement", "requirements.lock", "--require-hashes"),
        *("--disable-pip", "--progress-spinner=off", "--format=json"),
        *(f"--timeout={TIMEOUT_SECONDS}", f"--vulnerability-service={service}"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    try:
        return verdict(json.loads(done.stdout))
    except ValueError:
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        return Verdict(UNKNOWN, [f"The service does not answer: {reason[:300]}"])


def main() -> int:
    """Audit with one service after another until one knows the packages."""
    for service in SERVICES:
        found = ask(service)
        print(*(f"{service}: {line}" for line in found.lines), sep="\n")
        if found.code != UNKNOWN:
            return found.code
    print(
        "The result is unknown: no advisory service is reachable. Run `make audit` on a machine with Internet access."
    )
    return UNKNOWN


if __name__ == "__main__":
    sys.exit(main())
