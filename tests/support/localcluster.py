"""The local cluster's command line as the tests call it: from any checkout, for a cluster of any name."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from hack.cluster import processes
from hack.cluster.instance import NAME_VARIABLE, Instance
from tests.support import process

CHECKOUT: Final = Path(__file__).parents[2]
UP_SECONDS: Final = 240


def environment(name: str | None = None) -> dict[str, str]:
    """The environment that selects the cluster `name`, or the default one."""
    inherited = {key: value for key, value in os.environ.items() if key not in {NAME_VARIABLE, "CLUSTER"}}
    return {**inherited, NAME_VARIABLE: name} if name else inherited


def command(*arguments: str) -> list[str]:
    """The command line."""
    return [sys.executable, "-m", "hack.cluster", *arguments]


def cluster(
    *arguments: str, name: str | None = None, checkout: Path = CHECKOUT, codes: Sequence[int] = (0,)
) -> subprocess.CompletedProcess[str]:
    """Run the tool to its end.

    Raises:
        AssertionError: it ended with another exit code than those of `codes`.
    """
    done = subprocess.run(
        command(*arguments),
        env=environment(name),
        cwd=checkout,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=UP_SECONDS,
        check=False,
    )
    assert done.returncode in codes, f"{' '.join(arguments)}: exit code {done.returncode}\n{done.stderr}"
    return done


@contextmanager
def standing_still(name: str) -> Iterator[None]:
    """Stop a process of the default cluster, such as kube-controller-manager, for a while (SIGSTOP)."""
    record = Instance.from_environment().record()
    assert record is not None, "the local cluster is not up"
    pid = next(pid for pid in processes.children(record.node.pid) if processes.program(pid) == name)
    with process.frozen(pid):
        yield
