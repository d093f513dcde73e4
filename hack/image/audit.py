"""Known weaknesses of the packages that the image has: `make audit`.

pip-audit looks each locked package up at an advisory service. One that it cannot reach, or that does not know the
packages, must not pass for a clean result: then nothing is known, and that is what is said.
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

CLEAN, WEAK, UNKNOWN = 0, 1, 3


class Verdict(NamedTuple):
    """What an audit has shown: the exit code, and lines for a person."""

    code: int
    lines: list[str]


def verdict(report: dict[str, Any]) -> Verdict:
    """Judge pip-audit's report."""
    packages = report["dependencies"]
    skipped = [one for one in packages if "skip_reason" in one]
    if skipped or not packages:
        return Verdict(UNKNOWN, [f"{len(skipped)} of {len(packages)} packages are unknown to the service."])
    weak = [
        f"{one['name']} {one['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'no version'}"
        for one in packages
        for found in one["vulns"]
    ]
    if weak:
        return Verdict(WEAK, [*weak, "Raise the versions in pyproject.toml and lock them anew."])
    return Verdict(CLEAN, [f"No known weakness in {len(packages)} packages."])


def ask(service: str) -> Verdict:
    """Ask one service."""
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
    """Ask the services in turn, until one knows."""
    for service in SERVICES:
        found = ask(service)
        print(*(f"{service}: {line}" for line in found.lines), sep="\n")
        if found.code != UNKNOWN:
            return found.code
    print(
        "Nothing is known: no advisory service could be asked. Run `make audit` where the Internet is reachable."
    )
    return UNKNOWN


if __name__ == "__main__":
    sys.exit(main())
