"""Make the archives of kubectl's plugin, one for each platform, and the manifest for Krew.

pydantic's core is compiled for each version of Python. An archive contains it for all supported versions, side by
side. Python takes the one with its own suffix. So one machine makes the archives of all platforms.
"""

from __future__ import annotations

import shutil
import tempfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from hack.release import archives, distribution
from hack.release.checks import CHECKOUT
from workqueue import __version__

NAME: Final = "workqueue"
PROGRAM: Final = "kubectl-workqueue"
PYTHONS: Final = ("3.11", "3.12", "3.13", "3.14")
PACKAGES: Final = ("workqueue/", "workqueue_kubectl/", "workqueue_operator/")
LAUNCHER: Final = """\
#!/usr/bin/env python3
import os
import sys

if sys.version_info < (3, 11):
    sys.exit("kubectl workqueue needs Python 3.11 or later as python3. This one is " + sys.version.split()[0] + ".")
# Krew starts this file by a link.
sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "lib"))

from workqueue_kubectl.{module} import main

sys.exit(main())
"""
LAUNCHERS: Final = {PROGRAM: "cli", "kubectl_complete-workqueue": "completion"}


@dataclass(frozen=True)
class Platform:
    """A platform by Krew's names, and by pip's."""

    os: str
    arch: str
    tags: tuple[str, ...]

    @property
    def archive(self) -> str:
        """Return the name of its archive."""
        return f"{PROGRAM}_{__version__}_{self.os}_{self.arch}.tar.gz"


PLATFORMS: Final = (
    Platform("linux", "amd64", ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")),
    Platform("linux", "arm64", ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")),
    Platform("darwin", "amd64", ("macosx_11_0_x86_64", "macosx_10_12_x86_64")),
    Platform("darwin", "arm64", ("macosx_11_0_arm64",)),
)


def repository() -> str:
    """Return the address of the project's repository, from pyproject.toml."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    return str(project["urls"]["Source"]).rstrip("/")


def make(wheel: Path, output: Path) -> None:
    """Write the archives and the manifest."""
    for platform in PLATFORMS:
        archive(wheel, platform, output)
    text = manifest(output, f"{repository()}/releases/download/v{__version__}")
    (output / f"{NAME}.yaml").write_text(text)


def archive(wheel: Path, platform: Platform, output: Path) -> Path:
    """Write the archive of one platform: two programs, their libraries, and the licence."""
    target = output / platform.archive
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        library = folder / "lib"
        requirements = distribution.locked(distribution.PROJECT, ["kubectl"])
        for version in PYTHONS:
            made = folder / version
            tags = [f"--platform={tag}" for tag in platform.tags]
            abis = [f"--abi={abi}" for abi in (f"cp{version.replace('.', '')}", "abi3", "none")]
            distribution.install(
                requirements.values(),
                made,
                *tags,
                *abis,
                f"--python-version={version}",
                "--implementation=cp",
            )
            # The next versions of Python need only what is compiled.
            compiled = _compiled(made)
            requirements = {name: lines for name, lines in requirements.items() if name in compiled}
            shutil.copytree(made, library, dirs_exist_ok=True)
            shutil.rmtree(made)
        shutil.rmtree(library / "bin", ignore_errors=True)
        with zipfile.ZipFile(wheel) as content:
            content.extractall(library, [name for name in content.namelist() if name.startswith(PACKAGES)])
        for name, module in LAUNCHERS.items():
            (folder / name).write_text(LAUNCHER.format(module=module))
            (folder / name).chmod(0o755)
        shutil.copy(CHECKOUT / "LICENSE", folder)
        archives.tar(folder, target)
    return target


def _compiled(folder: Path) -> set[str]:
    """Return the names of the installed libraries that have compiled parts."""
    return {
        file.parent.name.partition("-")[0].replace("_", "-").lower()
        for file in folder.glob("*.dist-info/WHEEL")
        if "Root-Is-Purelib: false" in file.read_text()
    }


def manifest(folder: Path, address: str) -> str:
    """Return the manifest for Krew.

    Args:
        folder: with the archives.
        address: from which Krew downloads them.
    """
    plugin: dict[str, Any] = {
        "apiVersion": "krew.googlecontainertools.github.com/v1alpha2",
        "kind": "Plugin",
        "metadata": {"name": NAME},
        "spec": {
            "version": f"v{__version__}",
            "homepage": repository(),
            "shortDescription": "Show and control RabbitMQ job queues",
            "description": (
                "Shows WorkQueues, which are RabbitMQ queues with workers that workqueue-operator scales by queue "
                "depth.\nPauses, resumes and pins them, sends messages, and lists, replays or purges dead letters.\n"
            ),
            "caveats": "Needs Python 3.11 or later as python3.\n",
            "platforms": [
                {
                    "selector": {"matchLabels": {"os": platform.os, "arch": platform.arch}},
                    "uri": f"{address}/{platform.archive}",
                    "sha256": archives.sha256(folder / platform.archive),
                    "bin": PROGRAM,
                }
                for platform in PLATFORMS
            ],
        },
    }
    return yaml.safe_dump(plugin, sort_keys=False)
