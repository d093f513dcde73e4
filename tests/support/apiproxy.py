"""A proxy between an operator and the real API server that can misbehave on demand.

It accepts plain HTTP on loopback and passes each request on with the credentials of the cluster under test, so
that an operator process of the test runs through it with an ordinary kubeconfig. Each write is reported
to `CrashPoints`, if there are any.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp import web
from kubernetes.aio import client, config

from tests.support.crash import CrashPoints
from tests.support.kubernetes import kubeconfig
from tests.support.wait import until

_PATCHES: Final = {
    "application/apply-patch+yaml": "apply",
    "application/merge-patch+json": "merge",
    "application/json-patch+json": "patch",
}
_HOP_BY_HOP: Final = frozenset({"transfer-encoding", "connection", "content-length", "content-encoding"})


@dataclass(frozen=True)
class Request:
    """The parts of a request that select a fault."""

    method: str
    path: str
    watch: bool
    content_type: str = ""

    @property
    def write(self) -> str | None:
        """The name of a write, such as `apply deployments` or `POST events`; None: a read."""
        if self.method == "GET":
            return None
        words = self.path.strip("/").split("/")
        scoped = words[words.index("namespaces") + 2 :] if "namespaces" in words else words[-1:]
        resource = "/".join(word for at, word in enumerate(scoped) if at != 1)
        return f"{_PATCHES.get(self.content_type, self.method)} {resource}"

    @property
    def lists(self) -> bool:
        """Whether it asks for a collection, once."""
        words = self.path.strip("/").split("/")
        named = words[words.index("namespaces") + 2 :] if "namespaces" in words else words[-1:]
        return self.method == "GET" and not self.watch and len(named) == 1


@dataclass(frozen=True)
class Fault:
    """A response to requests that are not passed on.

    Attributes:
        applies: to which.
        status: the response; 0: none until the fault ends (a black hole).
        event: the only line of a watch before it ends, instead of a response.
        delay: seconds before the request is passed on, when there is no status.
        stale: LISTs return their last result before the fault and watches bring nothing, as from a server that
            has lost its database; a GET of one object is current even on such a server.
        refused: the connection is closed without a response.
    """

    applies: Callable[[Request], bool]
    status: int | None = None
    event: dict[str, Any] | None = None
    delay: float = 0.0
    headers: tuple[tuple[str, str], ...] = ()
    stale: bool = False
    refused: bool = False


class ApiProxy:
    """The proxy, in a thread with a loop of its own.

    Args:
        listener: where it listens; by default on a free port of loopback.
        credentials: the kubeconfig of the API server; by default of the cluster under test.
    """

    def __init__(
        self,
        listener: socket.socket | None = None,
        crash: CrashPoints | None = None,
        credentials: Path | None = None,
    ) -> None:
        self.port = 0
        self.seen: list[Request] = []
        self._listener = listener
        self._crash = crash
        self._credentials = credentials
        self._lists: dict[str, bytes] = {}
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
        assert self._up.wait(60), "the proxy did not start"

    def stop(self) -> None:
        """End every connection."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)
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
        return write_kubeconfig(file, f"http://127.0.0.1:{self.port}")

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
            if self._listener is None:
                await web.TCPSite(runner, "127.0.0.1", 0).start()
            else:
                await web.SockSite(runner, self._listener).start()
            self.port = runner.addresses[0][1]
            self._up.set()
            await self._stop.wait()
            await runner.cleanup()

    @asynccontextmanager
    async def _upstream(self) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
        configuration = client.Configuration()
        configuration.disable_strict_ssl_verification = True
        credentials = self._credentials or kubeconfig()
        await config.load_kube_config(config_file=str(credentials), client_configuration=configuration)
        rest = client.ApiClient(configuration).rest_client
        sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()

        def create_socket(address: aiohttp.AddrInfoType) -> socket.socket:
            created = socket.socket(*address[:3])
            sockets.add(created)
            return created

        connector = aiohttp.TCPConnector(ssl=rest.ssl_context, limit=0, socket_factory=create_socket)
        # A kubeconfig has a client certificate, which is in the context, or a token.
        token = configuration.api_key.get("BearerToken")
        headers = {"Authorization": token} if token else {}
        async with aiohttp.ClientSession(
            connector=connector, headers=headers, auto_decompress=False
        ) as session:
            try:
                yield session, configuration.host
            finally:
                # Not the closing handshake of TLS: on a busy machine it would outlast the loop.
                await connector.close(abort_ssl=True)
                # The connection of a request that was given up does its handshake nevertheless.
                await until(lambda: all(created.fileno() == -1 for created in sockets))

    async def _handle(
        self, session: aiohttp.ClientSession, server: str, request: web.Request
    ) -> web.StreamResponse:
        asked = Request(request.method, request.path, "watch" in request.query, request.content_type)
        self.seen.append(asked)
        for fault in list(self._faults):
            if fault.applies(asked) and (answer := await self._misbehave(fault, asked, request)) is not None:
                return answer
        number = None
        if self._crash is not None and asked.write is not None:
            number = self._crash.begins(asked.write)
            if number is None:
                raise _hang_up(request)
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in {"host", "authorization", "content-length", "accept-encoding"}
        }
        headers["Accept-Encoding"] = "identity"
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
            if asked.watch:
                await response.prepare(request)
                await self._pass_on(upstream, response)
                return response
            # Complete before its first byte is sent: a write with a response is done.
            body = await upstream.read()
            if asked.lists and upstream.ok:
                self._lists[request.path_qs] = body
            if number is not None and self._crash is not None and asked.write is not None:
                self._crash.ended(asked.write, number)
            await response.prepare(request)
            await response.write(body)
            await response.write_eof()
            return response

    async def _misbehave(
        self, fault: Fault, asked: Request, request: web.Request
    ) -> web.StreamResponse | None:
        """The response of a fault; None: the request is passed on."""
        if fault.refused:
            raise _hang_up(request)
        if fault.status == 0:
            await self._lifted.wait()
            raise web.HTTPGatewayTimeout
        if fault.stale:
            return await self._stale(asked, request)
        if fault.event is not None:
            return web.json_response(fault.event)
        if fault.status is not None:
            status = {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "code": fault.status,
                "message": "the test wants it so",
                "reason": "Test",
            }
            return web.json_response(status, status=fault.status, headers=dict(fault.headers))
        await asyncio.sleep(fault.delay)
        return None

    async def _stale(self, asked: Request, request: web.Request) -> web.StreamResponse | None:
        if asked.watch:
            response = web.StreamResponse(headers={"Content-Type": "application/json"})
            await response.prepare(request)
            await self._lifted.wait()
            return response
        known = self._lists.get(request.path_qs) if asked.lists else None
        return web.Response(body=known, content_type="application/json") if known is not None else None

    async def _pass_on(self, upstream: Any, response: web.StreamResponse) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._watches.add(task)
        try:
            with contextlib.suppress(aiohttp.ClientError, ConnectionError):
                async for chunk in upstream.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
        finally:
            self._watches.discard(task)


def write_kubeconfig(file: Path, server: str) -> Path:
    """Write the kubeconfig of a server without TLS that does not look at the token."""
    cluster = {"name": "proxy", "cluster": {"server": server}}
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


def _hang_up(request: web.Request) -> Exception:
    if request.transport is not None:
        request.transport.abort()
    return ConnectionResetError("the test wants it so")


@contextmanager
def api_proxy(
    listener: socket.socket | None = None, crash: CrashPoints | None = None, credentials: Path | None = None
) -> Iterator[ApiProxy]:
    """A proxy while the context lasts; see `ApiProxy`."""
    proxy = ApiProxy(listener, crash, credentials)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
