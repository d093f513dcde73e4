"""The chart of the release before, from which users upgrade."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any, Final

import yaml

(PACKAGE,) = (Path(__file__).parents[1] / "chart/previous").glob("*.tgz")
"""As `helm package` made it at that release: docs/releasing.md."""

_VALUES: Final = "workqueue-operator/values.yaml"


def values_text() -> str:
    """Its values.yaml."""
    with tarfile.open(PACKAGE) as package:
        file = package.extractfile(_VALUES)
        assert file is not None
        return file.read().decode()


def values() -> dict[str, Any]:
    """Its default values."""
    found: dict[str, Any] = yaml.safe_load(values_text())
    return found
