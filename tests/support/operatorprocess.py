"""The operator as a process of the test, with all rights, for what is within its reach on loopback."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.kubernetes import CHECKOUT, kubeconfig

_RUN: Final = """
import sys
sys.modules["kubernetes_validate"] = None
from workqueue_operator.__main__ import main
main()
"""
COMMAND: Final = (sys.executable, "-c", _RUN)
"""`workqueue-operator`. The Kubernetes client imports a validator where there is one, as for these tests but in no
image, and with it a parser of grammars: a second of processor time for each start."""


@contextmanager
def operator_process(log: Path, *namespaces: str) -> Iterator[int]:
    """One that logs all it can while the context lasts; gives the port of its endpoint."""
    # Below those that the kernel gives to outgoing connections.
    port = 10_000 + secrets.randbelow(10_000)
    environment = os.environ | {
        "KUBECONFIG": str(kubeconfig()),
        "WORKQUEUE_WATCH_NAMESPACES": ",".join(namespaces),
        "WORKQUEUE_LEADER_ELECTION": "false",
        "WORKQUEUE_PORT": str(port),
        "WORKQUEUE_LOG_FORMAT": "json",
        "WORKQUEUE_LOG_LEVEL": "DEBUG",
        "WORKQUEUE_IDLE_SWEEP_SECONDS": "1",
        "PYTHONPATH": os.pathsep.join([str(CHECKOUT / "operator"), str(CHECKOUT / "worker")]),
    }
    with log.open("wb") as file:
        process = subprocess.Popen(COMMAND, env=environment, stderr=file, stdout=file)
    try:
        yield port
    finally:
        process.terminate()
        process.wait(20)
