"""helm, as a user runs it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from hack.cluster import toolchain
from hack.generate.files import CHART

Object = dict[str, Any]

RELEASE = "workqueue-operator"
NAMESPACE = "workqueue-system"


class HelmError(Exception):
    """helm failed; the text is its message."""


class _StrictLoader(yaml.CSafeLoader):
    """Refuses a duplicate key in a map, as the API server does. Ten times as fast as SafeLoader."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Object:
        made = super().construct_mapping(node, deep)
        if len(made) != len(node.value):
            keys = [key.value for key, _ in node.value]
            raise HelmError(f"A key stands twice in {keys}")
        return made


def run(*arguments: str | Path, stdin: str = "", program: Path | None = None) -> str:
    """The output of helm.

    Args:
        program: another helm than the toolchain's.

    Raises:
        HelmError: it failed.
    """
    done = subprocess.run(
        [program or toolchain.helm(), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if done.returncode:
        raise HelmError(done.stderr)
    return done.stdout


_rendered = cache(run)  # many tests render the same values


def template(
    values: Mapping[str, Any],
    *,
    release: str = RELEASE,
    namespace: str = NAMESPACE,
    tests: bool = False,
    program: Path | None = None,
    chart: Path = CHART,
) -> list[Object]:
    """The objects that a chart, by default the operator's, renders from these values.

    Args:
        tests: whether to include the objects of `helm test`.

    Raises:
        HelmError: the values are refused.
    """
    skipping = () if tests else ("--skip-tests",)
    options = ("--namespace", namespace, "--kube-version", "1.35.0", "--values", "-", *skipping)
    rendered = _rendered("template", release, chart, *options, stdin=json.dumps(values), program=program)
    return [made for made in yaml.load_all(rendered, Loader=_StrictLoader) if made]


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    """Those of one kind."""
    return [made for made in objects if made["kind"] == kind]


def only(objects: list[Object], kind: str) -> Object:
    """The only one of its kind."""
    (found,) = of_kind(objects, kind)
    return found
