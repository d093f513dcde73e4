"""Everything in this repository that is made from something else: `python -m hack.generate`.

With `--check` nothing is written: the command fails and names each file that differs.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from workqueue_operator import crd

ROOT: Final = Path(__file__).parent.parent
CHART: Final = ROOT / "charts" / "workqueue-operator"
COMMAND: Final = "python -m hack.generate"


@dataclass(frozen=True, slots=True)
class Generated:
    """A generated file and how its text is made."""

    path: Path
    text: Callable[[], str]

    @property
    def name(self) -> str:
        """Its path for people."""
        return str(self.path.relative_to(ROOT))

    @property
    def current(self) -> str:
        """What it holds now; nothing when it does not exist."""
        return self.path.read_text() if self.path.exists() else ""

    def write(self) -> None:
        """Bring the file up to date."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(self.text())

    def difference(self) -> str:
        """What would change; empty when the file is up to date."""
        lines = difflib.unified_diff(
            self.current.splitlines(),
            self.text().splitlines(),
            self.name,
            f"{self.name} (generated)",
            "",
            "",
            1,
        )
        return "\n".join(lines)


def chart_crd() -> str:
    """The CRD as a template: people choose whether the chart brings it, and whether it stays behind."""
    head, metadata, rest = crd.text().partition(f"  name: {crd.crd()['metadata']['name']}\n")
    return (
        "{{- if .Values.crds.enabled }}\n"
        f"{head}{metadata}"
        "  labels:\n"
        '    {{- include "workqueue-operator.labels" . | nindent 4 }}\n'
        "  {{- if .Values.crds.keep }}\n"
        "  annotations:\n"
        "    helm.sh/resource-policy: keep\n"
        "  {{- end }}\n"
        f"{rest}"
        "{{- end }}\n"
    )


FILES: Final = (
    Generated(ROOT / "manifests" / "crd" / "workqueues.yaml", crd.text),
    Generated(CHART / "templates" / "crd.yaml", chart_crd),
)
"""In the order of making: later ones are made from earlier ones."""


def main() -> int:
    """Write the files, or compare them."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is out of date")
    if not parser.parse_args().check:
        for file in FILES:
            file.write()
        return 0
    stale = [(file.name, difference) for file in FILES if (difference := file.difference())]
    for name, difference in stale:
        print(f"{difference}\n\n{name} is out of date: run `{COMMAND}`.\n", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
