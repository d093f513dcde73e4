"""The environment of the benchmarks: other projects' consumers, and matplotlib. Made once, from locked hashes.

`peers.lock` is made anew with the command at its head, in this folder.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from hack.bench.errors import BenchError
from hack.cluster.commands import run
from hack.cluster.console import step
from hack.cluster.errors import ClusterError
from hack.cluster.rootfs import cache_folder

LOCK: Final = Path(__file__).with_name("peers.lock")


def python() -> Path:
    """The interpreter of the environment, which is made if this lock has none yet.

    Raises:
        BenchError: the packages cannot be had.
    """
    key = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = cache_folder() / "bench" / key
    interpreter = folder / "bin/python"
    if interpreter.exists():
        return interpreter
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Under its own name only when it is whole: an environment of an interrupted run is not found again.
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
    try:
        with step("The environment of the benchmarks", "about 30 s, once"):
            run([sys.executable, "-m", "venv", unfinished], doing="Making an environment")
            install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes")
            run([unfinished / "bin/python", *install, "--requirement", LOCK], doing="Installing the peers")
        unfinished.rename(folder)
    except ClusterError as error:
        raise BenchError(
            f"{error}\n`--only` with figures other than worker and publisher needs none."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return interpreter


def versions(*names: str) -> dict[str, str]:
    """The versions of packages in it."""
    locked = dict(
        line.split(" ", 1)[0].split("==") for line in LOCK.read_text().splitlines() if "==" in line[:40]
    )
    return {name: locked[name] for name in names}
