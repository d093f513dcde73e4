"""The examples are admitted by the API server and read by the operator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hack.generate.files import ROOT
from tests.support.admission import Admission
from workqueue import __version__
from workqueue.contract import binding
from workqueue_operator import names
from workqueue_operator.api.workqueue import WorkQueue

FOLDER = ROOT / "manifests" / "examples"


def loaded(file: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(file.read_text())
    return document


WORKQUEUES = sorted(file for file in FOLDER.glob("*.yaml") if loaded(file)["kind"] == names.KIND)


@pytest.mark.parametrize("file", WORKQUEUES, ids=lambda file: file.stem)
def test_example_is_admitted(admission: Admission, file: Path) -> None:
    example = loaded(file)
    assert example["apiVersion"] == names.API_VERSION
    stored = admission.create(example["spec"], name=example["metadata"]["name"])
    read = WorkQueue.model_validate(stored)
    assert read.spec.connection_secret_ref.name == "rabbitmq"
    image = read.spec.worker and read.spec.worker.image
    assert not image or not image.startswith("workqueue-operator:") or image.endswith(f":{__version__}")


def test_example_connection_parses() -> None:
    secret = loaded(FOLDER / "connection.yaml")
    read = binding.from_mapping(secret["stringData"], 'Secret "rabbitmq"')
    assert read.display == "amqp://rabbitmq.default.svc:5672/"


def test_kustomization_resolves_its_resources() -> None:
    assert all((FOLDER / name).exists() for name in loaded(FOLDER / "kustomization.yaml")["resources"])
