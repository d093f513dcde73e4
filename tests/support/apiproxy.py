"""A proxy between an operator and the real API server that can misbehave on demand.

It takes plain HTTP on loopback and passes each request on with the credentials of the cluster under test, so
that an operator process of the test runs through it with an ordinary kubeconfig.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp import web
from kubernetes.aio import client, config

from tests.support.kubernetes import kubeconfig

_HOP_BY_HOP: Final = frozenset({"transfer-encoding", "connection", "content-length", "content-encoding"})


@dataclass(frozen=True)
class Request:
    """What a fault may go by."""

    method: str
    path: str
    watch: bool


@dataclass(frozen=True)
class Fault:
    """What happens to requests instead of being passed on.

    Attributes:
        applies: to which.
        status: the answer; 0: none at all, until the fault is lifted (a black hole).
        event: instead of an answer, the one line that a watch brings before it ends.
        delay: seconds before the request is passed on, when there is no status.
    """

    applies: Callable[[Request], bool]
    status: int | None = None
    event: dict[str, Any] | None = None
    delay: float = 0.0
    headers: tuple[tuple[str, str], ...] = ()


class ApiProxy:
    """The proxy, in a thread with a loop of its own."""

    def __init__(self) -> None:
        self.port = 0
        self.seen: list[Request] = []
        self._faults: list[Fault] = []
        self._watches: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._lifted = asyncio.Event()
        self._up = threading.Event()
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=(self._serve(),), daemon=True
        )

    def start(self) -> None:
        """Listen on a free port of loopback."""
        self._thread.start()
        assert self._up.wait(10), "the proxy did not start"

    def stop(self) -> None:
        """End every connection."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    @contextmanager
    def fault(self, fault: Fault) -> Iterator[None]:
        """Misbehave while the context lasts."""
        self._faults.append(fault)
        try:
            yield
        finally:
            self._faults.remove(fault)
            self._loop.call_soon_threadsafe(self._lift)

    def cut_watches(self) -> None:
        """Break every watch that is open."""

        def cut() -> None:
            for task in list(self._watches):
                task.cancel()

        self._loop.call_soon_threadsafe(cut)

    def write_kubeconfig(self, file: Path) -> Path:
        """A kubeconfig that leads through the proxy."""
        cluster = {"name": "proxy", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}
        context = {"name": "proxy", "context": {"cluster": "proxy", "user": "test"}}
        user = {"name": "test", "user": {"token": "the proxy has its own"}}
        file.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "proxy",
                    "clusters": [cluster],
                    "contexts": [context],
                    "users": [user],
                }
            )
        )
        return file

    def _lift(self) -> None:
        self._lifted.set()
        self._lifted = asyncio.Event()

    async def _serve(self) -> None:
        async with self._upstream() as (session, server):
            app = web.Application(client_max_size=64 * 1024 * 1024)

            async def handle(request: web.Request) -> web.StreamResponse:
                return await self._handle(session, server, request)

            app.router.add_route("*", "/{path:.*}", handle)
            runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.port = runner.addresses[0][1]
            self._up.set()
            await self._stop.wait()
            await runner.cleanup()

    @asynccontextmanager
    async def _upstream(self) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
        configuration = client.Configuration()
        configuration.disable_strict_ssl_verification = True
        await config.load_kube_config(config_file=str(kubeconfig()), client_configuration=configuration)
        rest = client.ApiClient(configuration).rest_client
        connector = aiohttp.TCPConnector(ssl=rest.ssl_context, limit=0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            yield session, configuration.host

    async def _handle(
        self, session: aiohttp.ClientSession, server: str, request: web.Request
    ) -> web.StreamResponse:
        asked = Request(request.method, request.path, "watch" in request.query)
        self.seen.append(asked)
        for fault in list(self._faults):
            if fault.applies(asked):
                if fault.status == 0:
                    await self._lifted.wait()
                    raise web.HTTPGatewayTimeout
                if fault.event is not None:
                    return web.json_response(fault.event)
                if fault.status is not None:
                    answer = {
                        "kind": "Status",
                        "apiVersion": "v1",
                        "status": "Failure",
                        "code": fault.status,
                        "message": "the test wants it so",
                        "reason": "Test",
                    }
                    return web.json_response(answer, status=fault.status, headers=dict(fault.headers))
                await asyncio.sleep(fault.delay)
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in {"host", "authorization", "content-length"}
        }
        timeout = aiohttp.ClientTimeout(total=None)
        async with session.request(
            request.method,
            f"{server}{request.path_qs}",
            data=await request.read() or None,
            headers=headers,
            timeout=timeout,
        ) as upstream:
            response = web.StreamResponse(
                status=upstream.status,
                headers={
                    name: value for name, value in upstream.headers.items() if name.lower() not in _HOP_BY_HOP
                },
            )
            await response.prepare(request)
            await self._pass_on(upstream, response, asked)
            return response

    async def _pass_on(self, upstream: Any, response: web.StreamResponse, asked: Request) -> None:
        task = asyncio.current_task()
        assert task is not None
        if asked.watch:
            self._watches.add(task)
        try:
            with contextlib.suppress(aiohttp.ClientError, ConnectionError):
                async for chunk in upstream.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
        finally:
            self._watches.discard(task)


@contextmanager
def api_proxy() -> Iterator[ApiProxy]:
    """A proxy while the context lasts."""
    proxy = ApiProxy()
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
