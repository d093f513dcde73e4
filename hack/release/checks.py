"""Check that the tag, the version, the changelog and the recorded contract belong together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from hack.cluster.commands import run
from hack.cluster.errors import ClusterError

CHECKOUT: Final = Path(__file__).parents[2]


def check(version: str) -> None:
    """Check this checkout.

    Raises:
        ClusterError: something is missing. The message lists everything.
    """
    found = problems(
        version,
        tags=run(["git", "tag", "--points-at", "HEAD"], doing="Reading the tags", folder=CHECKOUT).split(),
        changes=run(["git", "status", "--porcelain"], doing="Reading the state of git", folder=CHECKOUT),
        changelog=(CHECKOUT / "CHANGELOG.md").read_text(),
        contracts={path.stem for path in (CHECKOUT / "tests/support/contracts").glob("*.json")},
    )
    if found:
        raise ClusterError("This is not a release: " + " ".join(found))


def problems(
    version: str, *, tags: list[str], changes: str, changelog: str, contracts: set[str]
) -> list[str]:
    """Return what is missing for a release of this version, one sentence for each."""
    found = []
    if f"v{version}" not in tags:
        found.append(f"HEAD has no tag v{version}; its tags are {', '.join(tags) or 'none'}.")
    if changes.strip():
        found.append("There are uncommitted changes.")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d{{2}}-\d{{2}}$", changelog, re.MULTILINE):
        found.append(f"CHANGELOG.md has no heading `## [{version}] - DATE`.")
    if version not in contracts:
        found.append(f"tests/support/contracts/{version}.json is missing.")
    return found
