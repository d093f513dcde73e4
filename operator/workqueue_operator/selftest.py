"""`python -m workqueue_operator.selftest`: send one message through a temporary WorkQueue. `helm test` runs it.

It runs in its own pod with few permissions and works as a user does: create a WorkQueue, wait until it is Ready,
publish a message, ask the worker whether it handled the message, delete the WorkQueue with its queues.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

from workqueue.contract.worker_api import PORT, STATUS_PATH
from workqueue_operator.api.workqueue import ConditionStatus, WorkQueue
from workqueue_operator.errors import ClusterError
from workqueue_operator.kube import client
from workqueue_operator.kube.client import Cluster, Object
from workqueue_operator.light_aiohttp import aiohttp
from workqueue_operator.names import (
    ANNOTATION_ABANDON,
    API_VERSION,
    BINDING_NAME,
    BINDING_ROOT,
    KIND,
    LABEL_WORKQUEUE,
)

PAUSE: Final = 0.5
READY_SECONDS: Final = 60.0
HANDLED_SECONDS: Final = 120.0
"""Includes the time to pull an image."""

T = TypeVar("T")


class SelftestError(Exception):
    """The test failed. The message says what failed and what to do."""


async def main() -> None:
    """Run the test once.

    Raises:
        SelftestError: the test failed.
    """
    namespace, secret = os.environ["WORKQUEUE_POD_NAMESPACE"], os.environ["WORKQUEUE_TEST_SECRET"]
    # Without the Secret, the folder holds only entries of the kubelet, which begin with a dot.
    if not any(not key.name.startswith(".") for key in (Path(BINDING_ROOT) / BINDING_NAME).iterdir()):
        raise SelftestError(
            f"The Secret {secret} does not exist in the namespace {namespace}. Create it with the key uri, or set "
            "the chart's value test.connectionSecret to another Secret."
        )
    name = f"helm-test-{secrets.token_hex(3)}"
    path = client.workqueue_path(namespace, name)
    api = await client.connect()
    try:
        await api.create(client.workqueues_path(namespace), _workqueue(name, secret))
        try:
            await _until(READY_SECONDS, lambda: _ready(api, path), f"WorkQueue {name} is not Ready")
            _say(f"WorkQueue {name} is Ready: its queue exists.")
            await asyncio.to_thread(_send, name)
            _say("RabbitMQ confirmed a message; no worker runs yet.")
            await _until(
                HANDLED_SECONDS, lambda: _handled(api, namespace, name), "no worker has handled the message"
            )
            _say("A worker has started and handled it.")
        except SelftestError as error:
            said = await _conditions(api, path)
            await _abandon_undeclared(api, path)
            raise SelftestError(f"{error}. Conditions of the WorkQueue: {said}") from error
        finally:
            await api.delete(path)
        await _until(READY_SECONDS, lambda: _gone(api, path), f"WorkQueue {name} is not deleted")
        _say("The WorkQueue and its queues are deleted. The test passed.")
    finally:
        await api.close()


def _workqueue(name: str, secret: str) -> Object:
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name},
        "spec": {
            "connectionSecretRef": {"name": secret},
            "queue": {"deletionPolicy": "Delete"},
            "worker": {
                **json.loads(os.environ["WORKQUEUE_TEST_WORKER"]),
                "handler": {"exec": {"command": ["true"]}},
            },
            "scaling": {"maxReplicas": 1},
        },
    }


def _send(queue: str) -> None:
    sent = subprocess.run(  # noqa: S603 - no user input
        ["workqueue", "send", "--queue", queue, "hello"],  # noqa: S607 - from the image's PATH
        capture_output=True,
        text=True,
        check=False,
    )
    if sent.returncode:
        raise SelftestError(f"the message was not confirmed: {sent.stderr.strip()}")


async def _ready(api: Cluster, path: str) -> bool:
    ready = WorkQueue.model_validate(await api.get(path)).status.condition("Ready")
    return ready is not None and ready.status is ConditionStatus.TRUE


async def _handled(api: Cluster, namespace: str, name: str) -> bool:
    pods = await api.get(client.pods_path(namespace), labelSelector=f"{LABEL_WORKQUEUE}={name}")
    for pod in pods["items"]:
        if address := pod.get("status", {}).get("podIP"):
            host = f"[{address}]" if ":" in address else address
            try:
                async with (
                    aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
                    session.get(f"http://{host}:{PORT}{STATUS_PATH}") as response,
                ):
                    if (await response.json())["handled"] > 0:
                        return True
            except (aiohttp.ClientError, TimeoutError):
                continue
    return False


async def _gone(api: Cluster, path: str) -> bool:
    try:
        await api.get(path)
    except ClusterError as error:
        return error.not_found
    return False


async def _abandon_undeclared(api: Cluster, path: str) -> None:
    """Abandon a queue that was never declared: the same problem would block the deletion of the WorkQueue."""
    declared = WorkQueue.model_validate(await api.get(path)).status.condition("QueueDeclared")
    if declared is None or declared.status is not ConditionStatus.TRUE:
        await api.merge(path, {"metadata": {"annotations": {ANNOTATION_ABANDON: "true"}}})


async def _conditions(api: Cluster, path: str) -> str:
    conditions = WorkQueue.model_validate(await api.get(path)).status.conditions
    said = "; ".join(f"{condition.type}: {condition.message}" for condition in conditions)
    return said or "none. Check that the operator runs and watches this namespace."


async def _until(seconds: float, condition: Callable[[], Awaitable[T]], otherwise: str) -> T:
    deadline = time.monotonic() + seconds
    while not (answer := await condition()):
        if time.monotonic() > deadline:
            raise SelftestError(f"After {seconds:.0f} seconds {otherwise}")
        await asyncio.sleep(PAUSE)
    return answer


def _say(sentence: str) -> None:
    sys.stdout.write(f"{sentence}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except (SelftestError, ClusterError) as problem:
        sys.exit(str(problem))
