"""The image as a folder, so that the lab's operator has the Python and the packages of a pod.

The Python of a development environment may have another version, or be compiled without optimizations.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from hack.bench.errors import BenchError
from hack.cluster.commands import run
from hack.cluster.errors import ClusterError
from hack.image.build import build

PYTHON: Final = "/opt/venv/bin/python"
SYSTEM_FOLDERS: Final = (Path("/proc"), Path("/dev"))
ENTER: Final = """
root=$1
shift
while [ "$1" != -- ]; do
  mkdir -p "$root$1"
  mount --rbind "$1" "$root$1"
  shift
done
shift
exec chroot "$root" "$@"
"""


@contextmanager
def unpacked() -> Iterator[Path]:
    """The image's folder. It is deleted afterwards.

    Raises:
        BenchError: the image cannot be built or read.
    """
    with tempfile.TemporaryDirectory(prefix="image-") as folder:
        root = Path(folder)
        try:
            _unpack(build().file, root)
        except ClusterError as error:
            raise BenchError(str(error)) from error
        shutil.copy("/etc/hosts", root / "etc/hosts")
        yield root


def inside(root: Path, visible: Sequence[Path], command: Sequence[str]) -> list[str]:
    """Return the command that runs another one in the image's folder, in the same process.

    Args:
        visible: folders that have the same path inside.
    """
    shown = map(str, (*SYSTEM_FOLDERS, *visible))
    return ["unshare", "--mount", "sh", "-euc", ENTER, "enter", str(root), *shown, "--", *command]


def version(root: Path) -> str:
    """Return the version of the image's Python."""
    command = inside(root, (), [PYTHON, "-c", "import platform; print(platform.python_version())"])
    return run(command, doing="Asking the image's Python").strip()


def _unpack(archive: Path, root: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        parts = Path(folder)
        _untar(archive, parts)
        # A file that a later layer deletes stays, which does no harm here.
        for layer in json.loads((parts / "manifest.json").read_text())[0]["Layers"]:
            _untar(parts / layer, root, "--exclude=.wh.*")


def _untar(archive: Path, folder: Path, *options: str) -> None:
    command = ["tar", "--extract", f"--file={archive}", f"--directory={folder}", *options]
    run(command, doing=f"Unpacking {archive.name}")
