"""Print the changelog of this version, as the notes of its release: `python -m hack.release.notes`."""

from __future__ import annotations

import re

from hack.release.checks import CHECKOUT
from workqueue import __version__


def notes(changelog: str, version: str) -> str:
    """Return the entries of a version, without its heading; an empty text if it has none."""
    found = re.search(
        rf"^## \[{re.escape(version)}\].*?\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL
    )
    return found[1].strip() + "\n" if found else ""


if __name__ == "__main__":
    print(notes((CHECKOUT / "CHANGELOG.md").read_text(), __version__), end="")
