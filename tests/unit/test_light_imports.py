"""The imports of operator, page and worker. What none of them needs would only take memory and time."""

from __future__ import annotations

import subprocess
import sys

import pytest

UNUSED = {"kubernetes.client", "kubernetes.aio.dynamic", "requests", "websocket", "oauthlib", "dateutil"}


UNUSED_BY_WORKERS = {"asyncio", "concurrent.futures", "dataclasses", "inspect", "random", "ssl"}
"""Until a message fails, or the handler is more than a plain function."""


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("process", ["workqueue_operator", "workqueue_web"])
def test_process_imports_neither_the_synchronous_client_nor_its_dependencies(process: str) -> None:
    code = f"import sys, {process}.__main__; print(*({UNUSED!r} & sys.modules.keys()))"
    assert run(code).split() == []


@pytest.mark.parametrize("process", ["workqueue_operator", "workqueue_web"])
def test_process_does_not_load_the_authorities_of_the_system(process: str) -> None:
    code = (
        f"import {process}.__main__, aiohttp.connector, ssl; own = aiohttp.connector._SSL_CONTEXT_VERIFIED; "
        "print(len(own.get_ca_certs()), own.verify_mode.name, ssl.SSLContext.load_default_certs.__module__)"
    )
    assert run(code).split() == ["0", "CERT_REQUIRED", "ssl"]


@pytest.mark.parametrize("process", ["workqueue_operator", "workqueue_web"])
def test_process_loads_no_cpp_library(process: str) -> None:
    code = (
        f"import os, sys, {process}.__main__; "
        "print('frozenlist' in sys.modules, 'frozenlist._frozenlist' in sys.modules, *os.environ)"
    )
    found = run(code).split()
    assert found[:2] == ["True", "False"]
    assert "FROZENLIST_NO_EXTENSIONS" not in found


def test_worker_imports_no_more_than_a_message_needs_that_succeeds() -> None:
    code = (
        "import sys, workqueue.__main__, workqueue.cli.run; "
        "from workqueue.amqp.pika_import import import_pika; import_pika(); "
        "import workqueue.worker.executors.threads, workqueue.worker.handlers.python, workqueue.worker.runtime; "
        f"print(*({UNUSED_BY_WORKERS!r} & sys.modules.keys()))"
    )
    assert run(code).split() == []


def test_commands_collect_garbage_after_their_imports() -> None:
    code = (
        "import gc, workqueue.__main__, workqueue.cli.stats; before = gc.isenabled(); "
        "workqueue.cli.stats.run = lambda _: print(before, gc.isenabled()) or 0; "
        "workqueue.__main__.main(['stats', '--queue=jobs'])"
    )
    assert run(code).split() == ["False", "True"]


def test_client_still_parses_dates() -> None:
    code = (
        "import workqueue_operator.kube.client, sys; from workqueue_operator.kube.light_imports import ApiClient; "
        "parse = sys.modules[ApiClient.__module__].parse; print(parse('2026-01-02T03:04:05Z').isoformat())"
    )
    assert run(code).split() == ["2026-01-02T03:04:05+00:00"]


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
