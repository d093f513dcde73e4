"""The image is built from pinned parts only. The end-to-end tests show that it runs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from hack.generate.files import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SHIPPED = [
    *PROJECT["dependencies"],
    *PROJECT["optional-dependencies"]["operator"],
    *PROJECT["optional-dependencies"]["cli"],
]


def pinned(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"(?m)^([a-z0-9._-]+)==([^ ;]+)", lock.read_text()))


@pytest.mark.parametrize("requirement", SHIPPED)
def test_dependencies_are_pinned_to_compatible_versions(requirement: str) -> None:
    needed = Requirement(requirement)
    version = pinned(ROOT / "requirements.lock")[needed.name.lower()]
    assert needed.specifier.contains(version), "Run the command at the top of requirements.lock."


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-build.lock"])
def test_image_ships_tested_versions(name: str) -> None:
    lock = ROOT / name
    tested = pinned(ROOT / "requirements-dev.lock")
    assert pinned(lock).items() <= tested.items(), f"Run the command at the top of {name}."
    assert lock.read_text().count("--hash=sha256:") >= len(pinned(lock))


def test_build_context_holds_every_copied_file() -> None:
    copied = re.findall(r"(?m)^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text())
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for name in " ".join(copied).split():
        assert any(path == name or path.startswith(f"{name}/") for path in sent), name
        assert (ROOT / name).exists()
