"""Build the wheel, the source distribution, and the worker as one file that any Python 3.11 or later runs."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from hack.cluster.commands import run
from hack.cluster.console import say
from hack.cluster.errors import ClusterError
from hack.release import archives
from hack.release.checks import CHECKOUT
from workqueue import __version__

PROJECT: Final = "workqueue-operator"
WORKER_FILE: Final = f"workqueue-{__version__}.pyz"
PYTHON: Final = "/usr/bin/env python3"
MAIN: Final = """\
import sys

from workqueue.__main__ import main

sys.exit(main())
"""


def wheel_and_source(output: Path) -> Path:
    """Build both with hatchling, and return the wheel."""
    build: list[str | Path] = [sys.executable, "-m", "hatchling", "build", "--directory", output, "--target"]
    for target in ("wheel", "sdist"):
        run([*build, target], doing=f"Building the {target}", folder=CHECKOUT)
    (wheel,) = output.glob("*.whl")
    return wheel


def worker_file(wheel: Path, output: Path) -> Path:
    """Write the worker and the libraries it needs as an executable zip file, for images with another language."""
    target = output / WORKER_FILE
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        install(locked(PROJECT).values(), folder)
        with zipfile.ZipFile(wheel) as content:
            content.extractall(folder, [name for name in content.namelist() if name.startswith("workqueue/")])
        (folder / "__main__.py").write_text(MAIN)
        archives.program(folder, target, PYTHON)
    return target


def install(requirements: Iterable[str], folder: Path, *options: str) -> None:
    """Install locked requirements into a folder: wheels only, each with its digest."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.writelines(requirements)
        file.flush()
        run(
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
                *("--no-deps", "--no-compile", "--require-hashes", "--only-binary=:all:", "--upgrade"),
                *("--target", str(folder), "--requirement", file.name, *options),
            ],
            doing="Installing the libraries",
        )


def locked(project: str, extras: Sequence[str] = ()) -> dict[str, str]:
    """Return the lines of requirements.lock for everything that the project needs with these extras, by name."""
    text = (CHECKOUT / "requirements.lock").read_text()
    entries = re.finditer(r"^([a-z0-9._-]+)==.*?(?=^[a-z0-9]|\Z)", text, re.MULTILINE | re.DOTALL)
    found = {entry[1]: entry[0] for entry in entries}
    return {name: found[name] for name in sorted(needed(project, extras))}


def needed(project: str, extras: Sequence[str] = ()) -> set[str]:
    """Return the names of the libraries that an installed project needs, directly or not, on any platform."""
    found: set[str] = set()
    wanted = list(_requirements(distribution(project), extras))
    while wanted:
        requirement = wanted.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name not in found:
            found.add(name)
            wanted += _requirements(distribution(requirement.name), sorted(requirement.extras))
    return found


def _requirements(of: Distribution, extras: Sequence[str]) -> Iterable[Requirement]:
    for line in of.requires or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def main() -> int:
    """Build all three into the folder that the command line names."""
    folder = Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        worker_file(wheel_and_source(folder), folder)
    except ClusterError as error:
        say(str(error))
        return 1
    print(*sorted(folder.iterdir()), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
