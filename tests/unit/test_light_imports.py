"""The imports of the operator and the page. Most of the Kubernetes client would only take memory and time."""

from __future__ import annotations

import subprocess
import sys

import pytest

UNUSED = {"kubernetes.client", "kubernetes.aio.dynamic", "requests", "websocket", "oauthlib"}


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("process", ["workqueue_operator", "workqueue_web"])
def test_process_imports_neither_the_synchronous_client_nor_its_dependencies(process: str) -> None:
    code = f"import sys, {process}.__main__; print(*({UNUSED!r} & sys.modules.keys()))"
    assert run(code).split() == []


def test_whole_packages_can_be_imported_afterwards() -> None:
    code = (
        "import workqueue_operator.kube.client, kubernetes, kubernetes.aio; "
        "print(kubernetes.client.CoreV1Api.__name__, kubernetes.aio.watch.Watch.__name__)"
    )
    assert run(code).split() == ["CoreV1Api", "Watch"]


def test_packages_that_are_imported_already_stay() -> None:
    code = (
        "import kubernetes; before = kubernetes; import workqueue_operator.kube.client, sys; "
        "print(sys.modules['kubernetes'] is before)"
    )
    assert run(code).split() == ["True"]
