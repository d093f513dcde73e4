"""The kubelet and the workers of pods that do not exist: `python -m tests.support.stubkubelet FOLDER`.

It watches the pods of WorkQueues. A pod whose nodeSelector names a behaviour becomes Running and Ready, and answers
at its address as a worker would. Another pod is Unschedulable. It deletes terminating pods, and does not consume: a
test does.
Run it inside `own_network`, beside the control plane whose folder it gets.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import aiohttp

from hack.cluster.checkout import CHECKOUT
from tests.support.controlplane import ADMIN, ENDS_WITH_US, HOST
from tests.support.ownnetwork import PODS, SILENT_PODS
from workqueue.contract.worker_api import PORT

Object = dict[str, Any]

BEHAVIOUR: Final = "stub"
"""The key of the nodeSelector."""

IDLE: Final = "idle"
APART: Final = "apart"
"""Idle, and without a consumer, as RabbitMQ sees it too."""

BUSY: Final = "busy"
SILENT: Final = "silent"
SLOW: Final = "slow"
GARBAGE: Final = "garbage"

SLOW_SECONDS: Final = 10.0
BACKLOG: Final = 1024
NODE: Final = "node0"
SELECTOR: Final = "workqueue.dev/workqueue"

_GARBAGE: Final = (
    b"not json",
    b"[]",
    b'{"slots": "many", "busy": {}, "consuming": 3}',
    b'{"slots": 1e999, "busy": -1, "consuming": true}',
    b"[" * 4_000,
    b'{"slots": 1, "busy": 0, "consuming": true, "retryDelaysSeconds": [' + b"1, " * 2_000 + b"1]}",
    b" " * 1_000_000,
)


def _response(body: bytes, status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _status(busy: int, *, consuming: bool = True, busy_seconds: float | None = None) -> bytes:
    return _response(
        json.dumps(
            {
                "queue": "stub",
                "slots": 1,
                "busy": busy,
                "busySeconds": busy_seconds,
                "consuming": consuming,
                "retired": False,
                "handled": 1,
                "connected": True,
                "retryDelaysSeconds": [],
                "uptimeSeconds": 1.0,
                "version": "stub",
            }
        ).encode()
    )


class _Worker(asyncio.Protocol):
    """One connection to a worker's endpoint."""

    def __init__(
        self, behaviours: dict[str, str], bad: Iterator[bytes], busy_since: dict[str, float]
    ) -> None:
        self._behaviours = behaviours
        self._bad = bad
        self._busy_since = busy_since
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._address: str = transport.get_extra_info("sockname")[0]
        self._behaviour = self._behaviours.get(self._address, "")
        if not self._behaviour:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            self._answer(head.partition(b" ")[0])

    def _answer(self, method: bytes) -> None:
        if self._behaviour == SLOW:
            asyncio.get_running_loop().call_later(SLOW_SECONDS, self._write, _status(0))
        elif self._behaviour == GARBAGE:
            self._write(_response(next(self._bad)))
        elif method == b"GET" and self._behaviour == BUSY:
            now = time.monotonic()
            since = self._busy_since.setdefault(self._address, now)
            self._write(_status(1, busy_seconds=now - since))
        elif method == b"GET":
            self._write(_status(0, consuming=self._behaviour != APART))
        elif method == b"POST" and self._behaviour == BUSY:
            self._write(_response(b"{}", "409 Conflict"))
        else:
            self._write(_response(b"{}"))

    def _write(self, answer: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(answer)


class Kubelet:
    """Serves all pods of the cluster."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._behaviours: dict[str, str] = {}
        self._addresses = {
            silent: map(str, itertools.islice(ipaddress.ip_network(network).hosts(), 1, None))
            for silent, network in ((False, PODS), (True, SILENT_PODS))
        }
        self._started: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until cancelled."""
        bad = itertools.cycle(_GARBAGE)
        busy_since: dict[str, float] = {}
        server = await asyncio.get_running_loop().create_server(
            lambda: _Worker(self._behaviours, bad, busy_since), "0.0.0.0", PORT, backlog=BACKLOG
        )
        token = (self._folder / f"{ADMIN}.token").read_text()
        context = ssl.create_default_context(cafile=str(self._folder / "pki/ca.crt"))
        async with (
            server,
            aiohttp.ClientSession(
                f"https://{HOST}",
                headers={"Authorization": f"Bearer {token}"},
                connector=aiohttp.TCPConnector(ssl=context, limit=16),
                timeout=aiohttp.ClientTimeout(total=None),
                read_bufsize=2**20,
            ) as session,
        ):
            self._session = session
            print("ready", flush=True)
            while True:
                with suppress(aiohttp.ClientError):
                    await self._watch()

    async def _watch(self) -> None:
        query = {"watch": "1", "labelSelector": SELECTOR}
        async with self._session.get("/api/v1/pods", params=query) as response:
            async for line in response.content:
                event = json.loads(line)
                if event["type"] in {"ADDED", "MODIFIED"}:
                    self._take(event["object"])

    def _take(self, pod: Object) -> None:
        metadata = pod["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        behaviour = pod["spec"].get("nodeSelector", {}).get(BEHAVIOUR)
        if metadata.get("deletionTimestamp"):
            self._behaviours.pop(pod.get("status", {}).get("podIP", ""), None)
            self._do(self._request("DELETE", path, {"gracePeriodSeconds": 0}))
        elif metadata["uid"] not in self._started:
            self._started.add(metadata["uid"])
            self._do(self._start(path, pod, behaviour) if behaviour else self._find_no_node(path))

    async def _find_no_node(self, path: str) -> None:
        """Report that no node fits, as the scheduler does."""
        unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
        await self._request("PATCH", f"{path}/status", {"status": {"conditions": [unschedulable]}})

    async def _start(self, path: str, pod: Object, behaviour: str) -> None:
        address = next(self._addresses[behaviour == SILENT])
        self._behaviours[address] = behaviour
        metadata = {"name": pod["metadata"]["name"], "namespace": pod["metadata"]["namespace"]}
        binding = {"target": {"kind": "Node", "name": NODE}, "metadata": metadata}
        await self._request("POST", f"{path}/binding", {"apiVersion": "v1", "kind": "Binding", **binding})
        now = pod["metadata"]["creationTimestamp"]
        ready = [{"type": kind, "status": "True"} for kind in ("PodScheduled", "ContainersReady", "Ready")]
        container = {
            "name": "worker",
            "image": "stub",
            "imageID": "stub",
            "ready": True,
            "started": True,
            "restartCount": 0,
            "state": {"running": {"startedAt": now}},
        }
        status = {
            "phase": "Running",
            "startTime": now,
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": ready,
            "containerStatuses": [container],
        }
        await self._request("PATCH", f"{path}/status", {"status": status})

    async def _request(self, method: str, path: str, body: Object) -> None:
        patch = "application/strategic-merge-patch+json" if method == "PATCH" else "application/json"
        async with self._session.request(
            method, path, data=json.dumps(body), headers={"Content-Type": patch}
        ) as response:
            # 404 and 409: the pod has been deleted.
            if response.status not in {200, 201, 202, 404, 409}:
                print(method, path, response.status, await response.text(), file=sys.stderr, flush=True)

    def _do(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@contextmanager
def running(folder: Path) -> Iterator[None]:
    """Run it while the context lasts.

    Args:
        folder: the control plane's.
    """
    log = folder / "kubelet.log"
    with log.open("ab") as errors:
        started = subprocess.Popen(
            [*ENDS_WITH_US, sys.executable, "-m", "tests.support.stubkubelet", str(folder)],
            cwd=CHECKOUT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "worker")])},
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    try:
        assert started.stdout is not None
        assert started.stdout.readline(), f"The stub kubelet ended: {log.read_text()[-2000:]}"
        yield
    finally:
        started.terminate()
        started.wait()
        if started.stdout is not None:
            started.stdout.close()


if __name__ == "__main__":
    asyncio.run(Kubelet(Path(sys.argv[1])).run())
