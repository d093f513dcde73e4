"""Write the generated files of this repository: `python -m hack.generate`.

With `--check`, the command writes nothing. It fails and names each file that is out of date.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from hack.cluster import toolchain
from hack.demo import animation, recording
from hack.generate import conditions, dashboard, figures, metrics, packages, reference, values
from workqueue import __version__
from workqueue_operator.api import crd

ROOT: Final = Path(__file__).parents[2]
CHART: Final = ROOT / "charts" / "workqueue-operator"
COMMAND: Final = "python -m hack.generate"
RECORDING: Final = ROOT / "hack" / "demo" / "recording.json"
NAMESPACE: Final = "workqueue-system"
"""The operator's namespace in manifests/install.yaml."""

_TABLE: Final = re.compile(r"(?<=<!-- values: generated -->\n).*(?=<!-- end of values -->)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Generated:
    """A generated file and the function that returns its text."""

    path: Path
    text: Callable[[], str]

    @property
    def name(self) -> str:
        """Return the path below the repository."""
        return str(self.path.relative_to(ROOT))

    @property
    def current(self) -> str:
        """Return the text of the file on disk, or an empty text if there is no file."""
        return self.path.read_text() if self.path.exists() else ""

    def write(self) -> None:
        """Write the generated text."""
        text = self.text()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(text)

    def difference(self) -> str:
        """Return the difference to the generated text, or an empty text if the file is up to date."""
        before, after = self.current.splitlines(), self.text().splitlines()
        return "\n".join(
            difflib.unified_diff(before, after, self.name, f"{self.name} (generated)", n=1, lineterm="")
        )


def chart_yaml() -> str:
    """Return Chart.yaml with the version of the project, which only the code defines."""
    text = (CHART / "Chart.yaml").read_text()
    text = re.sub(r"(?m)^version: .*$", f"version: {__version__}", text)
    text = re.sub(r"(?m)image: workqueue-operator:.*$", f"image: workqueue-operator:{__version__}", text)
    return re.sub(r"(?m)^appVersion: .*$", f'appVersion: "{__version__}"', text)


def chart_crd() -> str:
    """Return the CRD as a template. Values decide whether the chart installs it, and about its annotations."""
    head, metadata, rest = crd.text().partition(f"  name: {crd.crd()['metadata']['name']}\n")
    return (
        '{{- include "workqueue-operator.defaults" . -}}\n'
        "{{- if .Values.crds.enabled }}\n"
        f"{head}{metadata}"
        "  labels:\n"
        '    {{- include "workqueue-operator.labels" . | nindent 4 }}\n'
        '  {{- $keep := .Values.crds.keep | ternary (dict "helm.sh/resource-policy" "keep") dict }}\n'
        "  {{- with merge $keep (.Values.crds.annotations | default dict) }}\n"
        "  annotations:\n"
        "    {{- toYaml . | nindent 4 }}\n"
        "  {{- end }}\n"
        f"{rest}"
        "{{- end }}\n"
    )


def chart_values() -> tuple[values.Value, ...]:
    """Return the values of the chart."""
    return values.read((CHART / "values.yaml").read_text())


def values_defaults() -> str:
    """Return the defaults that the chart's templates read, since they cannot read values.yaml."""
    return json.dumps(values.defaults(chart_values()), indent=2) + "\n"


def values_schema() -> str:
    """Return the JSON schema with which helm checks values."""
    return json.dumps(values.schema(chart_values()), indent=2) + "\n"


def chart_readme() -> str:
    """Return the chart's README with its table of values."""
    text = (CHART / "README.md").read_text()
    return _TABLE.sub(lambda _: f"\n{values.table(chart_values())}\n", text)


def install() -> str:
    """Return all manifests in one file, for users without helm."""
    options = ("--namespace", NAMESPACE, "--set", "crds.keep=false", "--skip-tests")
    command: list[str | Path] = [toolchain.helm(), "template", "workqueue-operator", CHART, *options]
    rendered = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    objects = [loaded for loaded in yaml.safe_load_all(rendered) if loaded]
    # The order and the comments of helm's output depend on its version.
    objects.sort(
        key=lambda made: (made["kind"] != "CustomResourceDefinition", made["kind"], made["metadata"]["name"])
    )
    for made in objects:
        for labels in (made["metadata"]["labels"], _pod_labels(made)):
            for of_helm in ("helm.sh/chart", "app.kubernetes.io/managed-by"):
                labels.pop(of_helm, None)
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }
    head = f"# Generated from charts/workqueue-operator by `{COMMAND}`: do not edit.\n"
    return head + "---\n".join(crd.to_yaml(made) for made in (namespace, *objects))


def _pod_labels(made: dict[str, Any]) -> dict[str, str]:
    labels: dict[str, str] = made.get("spec", {}).get("template", {}).get("metadata", {}).get("labels", {})
    return labels


def demo_picture() -> str:
    """Return the moving picture of the recorded run."""
    return animation.svg(recording.read(RECORDING))


FILES: Final = (
    Generated(ROOT / "manifests" / "crd" / "workqueues.yaml", crd.text),
    Generated(ROOT / "docs" / "reference.md", reference.page),
    Generated(ROOT / "docs" / "conditions.md", conditions.page),
    Generated(ROOT / "docs" / "metrics.md", metrics.page),
    Generated(ROOT / "docs" / "images" / "packages.svg", packages.packages_picture),
    Generated(ROOT / "docs" / "images" / "pass.svg", packages.pass_picture),
    Generated(ROOT / "docs" / "images" / "demo.svg", demo_picture),
    Generated(figures.README, figures.readme),
    Generated(figures.SIZING, figures.sizing),
    Generated(CHART / "files" / "dashboard.json", dashboard.text),
    Generated(CHART / "Chart.yaml", chart_yaml),
    Generated(CHART / "values.schema.json", values_schema),
    Generated(CHART / "files" / "defaults.json", values_defaults),
    Generated(CHART / "README.md", chart_readme),
    Generated(CHART / "templates" / "crd.yaml", chart_crd),
    Generated(ROOT / "manifests" / "install.yaml", install),
)
"""In generation order: later files are made from earlier ones."""


def main() -> int:
    """Write the files, or compare them with `--check`."""
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
