"""The CRD has the form that Kubernetes accepts. Admission is tested with a real API server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml

from workqueue_operator import names
from workqueue_operator.api import crd
from workqueue_operator.api.cel import VALIDATIONS

Schema = dict[str, Any]

CLIENT_SIDE_APPLY_LIMIT = 262_144


def nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for name, below in schema.get("properties", {}).items():
        yield from nodes(below, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key], f"{path}.{key}")


ALL = dict(nodes(crd.schema()))
SPEC = {path: node for path, node in ALL.items() if path.startswith(".spec")}


def test_crd_is_a_valid_definition() -> None:
    kubernetes_validate.validate(crd.crd(), "1.29", strict=True)


def test_crd_stays_far_below_client_side_apply_limit() -> None:
    """kubectl keeps what it applied as JSON in an annotation."""
    assert len(json.dumps(crd.crd())) < CLIENT_SIDE_APPLY_LIMIT / 3


def test_crd_module_prints_the_definition() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "workqueue_operator.api.crd"], capture_output=True, text=True, check=True
    ).stdout
    assert yaml.safe_load(printed) == crd.crd()


@pytest.mark.parametrize("node", ALL.values(), ids=ALL)
def test_crd_schema_is_structural(node: Schema) -> None:
    assert not {"$ref", "$defs", "const", "examples", "exclusiveMinimum", "exclusiveMaximum", "title"} & set(
        node
    )
    assert node.get("nullable") is None
    assert node.get("default", 0) is not None
    assert "type" in node or node.get("x-kubernetes-int-or-string")
    assert node.get("additionalProperties") is not False
    if "anyOf" in node:
        assert node["x-kubernetes-int-or-string"]


@pytest.mark.parametrize("path", [path for path in ALL if path and not path.endswith(("s", "metadata"))])
def test_every_crd_field_has_a_description(path: str) -> None:
    node = ALL[path]
    if path.endswith((".items", ".additionalProperties")) and "description" not in node:
        assert "properties" not in node
        return
    assert node["description"].endswith(".")
    assert "\n" not in node["description"]


@pytest.mark.parametrize("path", [path for path, node in SPEC.items() if node.get("type") == "array"])
def test_every_crd_list_has_a_bound_and_a_merge_strategy(path: str) -> None:
    node = SPEC[path]
    assert node["maxItems"] <= 200
    assert node["x-kubernetes-list-type"] in {"atomic", "map", "set"}
    for key in node.get("x-kubernetes-list-map-keys", ()):
        assert key in node["items"]["properties"]
        assert key in node["items"]["required"]


@pytest.mark.parametrize("path", [path for path, node in ALL.items() if VALIDATIONS in node])
def test_every_cel_rule_has_a_message_about_an_existing_field(path: str) -> None:
    node = ALL[path]
    for rule in node[VALIDATIONS]:
        assert len(rule["message"].split()) > 4
        assert not rule["message"].endswith(".")
        if "fieldPath" in rule:
            assert rule["fieldPath"].removeprefix(".") in node["properties"]


def test_defaults_of_objects_repeat_defaults_of_their_fields() -> None:
    queue = ALL[".spec.queue"]
    assert queue["default"] == {"type": "Quorum", "declare": True, "deletionPolicy": "Retain"}
    assert "messagesPerReplica" not in ALL[".spec.scaling"]["default"]
    assert "default" not in ALL[".spec.replicas"]


def test_initial_status_has_one_condition_and_no_count() -> None:
    assert [path for path, node in ALL.items() if path.startswith(".status") and "default" in node] == [
        ".status",
        ".status.conditions.items.lastTransitionTime",
    ]
    (condition,) = ALL[".status"]["default"]["conditions"]
    assert (condition["type"], condition["status"], condition["reason"]) == (
        "Ready",
        "Unknown",
        "AwaitingOperator",
    )


def test_printer_columns_are_those_documented() -> None:
    (version,) = crd.crd()["spec"]["versions"]
    columns = version["additionalPrinterColumns"]
    assert [column["name"] for column in columns if "priority" not in column] == [
        "Ready",
        "Messages",
        "Workers",
        "Desired",
        "Busy",
        "Dead",
        "Age",
    ]
    assert [column["name"] for column in columns if column.get("priority") == 1] == [
        "Retrying",
        "Queue",
        "Type",
        "Reason",
    ]
    for path in (column["jsonPath"].split("[")[0] for column in columns):
        assert path in ALL or path == ".metadata.creationTimestamp"


def test_conditions_have_the_fields_of_metav1() -> None:
    condition = ALL[".status.conditions"]["items"]
    assert condition["properties"].keys() == {
        *("type", "status", "reason", "message", "lastTransitionTime", "observedGeneration")
    }
    # The API server fills in a default, also for conditions that an earlier release stored without a time.
    assert {*condition["required"], "lastTransitionTime"} == condition["properties"].keys() - {
        "observedGeneration"
    }
    assert condition["properties"]["lastTransitionTime"]["default"] == "1970-01-01T00:00:00Z"


def test_status_shows_counts_as_numbers() -> None:
    fields = ALL[".status"]["properties"]
    texts = {name for name, field in fields.items() if field["type"] == "string"}
    assert texts == {"queueName", "selector", "lastScaleTime", "lastScaleReason"}


def test_scale_subresource_points_at_existing_fields() -> None:
    (version,) = crd.crd()["spec"]["versions"]
    assert {ALL[path]["type"] for path in version["subresources"]["scale"].values()} == {"integer", "string"}


def test_crd_names_match_the_operator() -> None:
    definition = crd.crd()
    assert definition["metadata"]["name"] == f"{names.PLURAL}.{names.GROUP}"
    assert definition["spec"]["names"]["shortNames"] == [names.SHORT_NAME]
