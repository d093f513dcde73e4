"""The notes that helm prints after an installation: next commands, which fit the values."""

from __future__ import annotations

import json
import re
import textwrap
from typing import Any

import jsonschema
import yaml

from hack.generate.files import CHART
from tests.support import helm
from workqueue_operator.api import crd


def notes(values: dict[str, Any]) -> str:
    where = ("--namespace", helm.NAMESPACE, "--dry-run=client", "--values", "-")
    said = helm.run("install", helm.RELEASE, CHART, *where, stdin=json.dumps(values))
    return said.partition("NOTES:\n")[2]


def test_first_command_in_notes_waits_for_operator() -> None:
    (first, *_) = re.findall(r"(?m)^  (kubectl .+)$", notes({}))
    assert first == "kubectl -n workqueue-system rollout status deployment/workqueue-operator"


def test_sample_workqueue_in_notes_is_valid() -> None:
    (block,) = re.findall(r"(?s)<<'END'\n(.+?)\n  END", notes({"image": {"tag": "7"}}))
    made = yaml.safe_load(textwrap.dedent(block))
    jsonschema.validate(made["spec"], crd.schema()["properties"]["spec"])
    assert made["spec"]["worker"]["image"] == "workqueue-operator:7"


def test_commands_in_notes_use_a_listed_namespace() -> None:
    said = notes({"watchNamespaces": ["shop", "mail"]})
    assert "works in shop, mail." in said
    _, *commands = re.findall(r"(?m)^  (kubectl .+)$", said)
    assert commands
    assert all(command.startswith("kubectl -n shop ") for command in commands)


def test_notes_warn_of_two_leaders() -> None:
    without: dict[str, Any] = {"leaderElection": {"enabled": False}}
    assert "WARNING: leaderElection.enabled is false" in notes(without)
    assert "WARNING" not in notes({**without, "replicaCount": 1}) + notes({})
