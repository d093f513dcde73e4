"""The operator as a process of the test, with all rights, for servers on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.kubernetes import CHECKOUT, kubeconfig
from tests.support.ports import free_port

RUN: Final = """
import sys
sys.modules["kubernetes_validate"] = None
from workqueue_operator.__main__ import main
main()
"""
COMMAND: Final = (sys.executable, "-c", RUN)
"""`workqueue-operator`. The Kubernetes client imports an installed validator with its parser, which is in the test
environment but in no image. That would cost a second of processor time for each start."""


def start(
    log: Path,
    credentials: Path,
    command: Sequence[str] = COMMAND,
    checkout: Path = CHECKOUT,
    **settings: object,
) -> subprocess.Popen[bytes]:
    """Start one, which adds to `log`.

    Args:
        credentials: the kubeconfig that it uses.
        checkout: whose operator it is.
        settings: WORKQUEUE_* without the prefix, in small letters.
    """
    environment = os.environ | {
        "KUBECONFIG": str(credentials),
        "WORKQUEUE_ALLOWED_BROKER_HOSTS": "127.0.0.1,localhost,*",
        # As in the chart.
        "MALLOC_MMAP_THRESHOLD_": "200000",
        "PYTHONPATH": os.pathsep.join([str(checkout / "operator"), str(checkout / "worker")]),
        **{f"WORKQUEUE_{name.upper()}": str(value) for name, value in settings.items()},
    }
    with log.open("ab") as file:
        return subprocess.Popen(command, env=environment, stderr=file, stdout=file)


@contextmanager
def operator_process(log: Path, *namespaces: str) -> Iterator[int]:
    """Run an operator with debug logs while the context lasts; yield the port of its endpoint."""
    port = free_port()
    process = start(
        log,
        kubeconfig(),
        watch_namespaces=",".join(namespaces),
        leader_election=False,
        port=port,
        log_format="json",
        log_level="DEBUG",
        idle_poll_seconds=1,
    )
    try:
        yield port
    finally:
        process.terminate()
        process.wait(60)
