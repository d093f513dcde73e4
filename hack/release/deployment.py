"""Package the chart, and write install.yaml, for the image of the release."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Final

from hack.cluster import toolchain
from hack.cluster.commands import run
from hack.release.checks import CHECKOUT
from hack.release.publication import Image
from workqueue import __version__

CHART: Final = CHECKOUT / "charts/workqueue-operator"
MANIFEST: Final = CHECKOUT / "manifests/install.yaml"


def chart(image: Image, output: Path) -> Path:
    """Package the chart with the image as its default, and return the file."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / CHART.name
        shutil.copytree(CHART, folder)
        for name, changed in (("values.yaml", values_for), ("Chart.yaml", metadata_for)):
            (folder / name).write_text(changed(image, (folder / name).read_text()))
        run([toolchain.helm(), "package", folder, "--destination", output], doing="Packaging the chart")
    return output / f"{CHART.name}-{__version__}.tgz"


def values_for(image: Image, text: str) -> str:
    """Return values.yaml with the image's repository as the default."""
    return _replaced(text, r"(?m)^  repository: workqueue-operator$", f"  repository: {image.repository}")


def metadata_for(image: Image, text: str) -> str:
    """Return Chart.yaml with the image's digest. As a default of values.yaml it would override a user's tag."""
    name = f"{image.repository}@{image.digest}"
    return _replaced(text, r"(?m)^annotations:$", f"annotations:\n  workqueue.dev/image: {name}")


def install_yaml(image: Image, output: Path) -> None:
    """Write the plain manifest with the image of the release."""
    text = _replaced(
        MANIFEST.read_text(),
        rf"(?m)^(\s+image: )workqueue-operator:{re.escape(__version__)}$",
        rf"\g<1>{image.reference}",
    )
    (output / MANIFEST.name).write_text(text)


def _replaced(text: str, pattern: str, by: str) -> str:
    made, count = re.subn(pattern, by, text, count=1)
    assert count == 1, f"{pattern} is not in the file"
    return made
