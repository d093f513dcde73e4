"""Make the benchmarks' own environment, with the peers' packages and matplotlib, once, from locked hashes.

`make lock` writes `peers.lock` from `peers.in`.
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
    """Return the Python interpreter of the environment. Make the environment if this lock file has none.

    Raises:
        BenchError: the packages cannot be installed.
    """
    key = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = cache_folder() / "bench" / key
    interpreter = folder / "bin/python"
    if interpreter.exists():
        return interpreter
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The environment gets its final name when it is complete, so an interrupted run leaves no broken one.
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
    try:
        with step("Making the benchmarks' environment", "about 30 s, once"):
            run([sys.executable, "-m", "venv", unfinished], doing="Making an environment")
            install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes")
            run([unfinished / "bin/python", *install, "--requirement", LOCK], doing="Installing the peers")
        unfinished.rename(folder)
    except ClusterError as error:
        raise BenchError(
            f"{error}\nOnly worker and publisher need these packages: select other figures with `--only`."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return interpreter


def versions(*names: str) -> dict[str, str]:
    """Return the versions of packages in the environment."""
    locked = dict(
        line.split(" ", 1)[0].split("==") for line in LOCK.read_text().splitlines() if "==" in line[:40]
    )
    return {name: locked[name] for name in names}
