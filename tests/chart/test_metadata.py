"""Chart.yaml, as Artifact Hub shows it."""

from __future__ import annotations

import re

import jsonschema
import yaml

from hack.generate.files import CHART, ROOT
from workqueue_operator.api import crd

METADATA = yaml.safe_load((CHART / "Chart.yaml").read_text())
ANNOTATIONS = {key.removeprefix("artifacthub.io/"): value for key, value in METADATA["annotations"].items()}


def test_links_lead_to_files_of_the_repository() -> None:
    (repository,) = METADATA["sources"]
    text = (CHART / "Chart.yaml").read_text()
    links = set(re.findall(r"https://[^\s\"]+", text)) - {repository}
    raw = repository.replace("github.com", "raw.githubusercontent.com") + "/main/"

    assert len(links) == 3
    for link in links:
        path = link.removeprefix(f"{repository}/blob/main/").removeprefix(raw)
        assert (ROOT / path).is_file(), link


def test_definition_is_described_as_it_is() -> None:
    (described,) = yaml.safe_load(ANNOTATIONS["crds"])
    definition = crd.crd()
    (version,) = definition["spec"]["versions"]

    assert described["name"] == definition["metadata"]["name"]
    assert described["kind"] == definition["spec"]["names"]["kind"]
    assert described["version"] == version["name"]
    assert described["description"] == version["schema"]["openAPIV3Schema"]["description"]


def test_example_is_the_smallest_of_the_manifests() -> None:
    (example,) = yaml.safe_load(ANNOTATIONS["crdsExamples"])
    jsonschema.validate(example["spec"], crd.schema()["properties"]["spec"])
    assert example == yaml.safe_load((ROOT / "manifests/examples/hello.yaml").read_text())
