"""An aiohttp server with limits on connections, bytes and time.

aiohttp limits only single headers: 300 connections with unfinished headers cost 400 MiB. Each connection serves one
request, which keeps the limits simple.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from workqueue.contract.limits import CONNECTIONS, REQUEST_BYTES, REQUEST_SECONDS
from workqueue_operator.light_aiohttp import aiohttp, web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

if TYPE_CHECKING:
    _Adapter: TypeAlias = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter


class BoundedServer:
    """Serves an application.

    Args:
        app: the application; this class adds a middleware.
        port: 0 for any free port.
        host: the address to listen on; None for all addresses.
        connections: maximum number of open connections.
        **runner: additional arguments of `aiohttp.web.AppRunner`.
    """

    def __init__(
        self,
        app: web.Application,
        port: int,
        host: str | None = None,
        connections: int = CONNECTIONS,
        **runner: Any,
    ) -> None:
        app.middlewares.insert(0, _one_request)
        self._runner = web.AppRunner(
            app, access_log=None, logger=_Log(aiohttp.log.server_logger, {}), **runner
        )
        self._host = host
        self._port = port
        self._most = connections
        self._listener: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._waiting: dict[_Connection, None] = {}

    async def start(self) -> int:
        """Listen.

        Returns:
            The port.

        Raises:
            OSError: the port is taken.
        """
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: _Connection(self), self._host, self._port)
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        """Stop listening, and close the connections."""
        if self._listener is not None:
            self._listener.close()
        await self._runner.cleanup()

    def protocol(self) -> asyncio.Protocol:
        """Return aiohttp's protocol for a new connection."""
        assert self._runner.server is not None  # noqa: S101 - `start` has set it up
        return self._runner.server()

    def admit(self, connection: _Connection) -> bool:
        """Return whether to accept a new connection. At the limit, it replaces the longest-waiting connection."""
        if len(self._connections) >= self._most:
            longest = next(iter(self._waiting), None)
            if longest is None:
                return False
            longest.abort()
        self._connections.add(connection)
        self._waiting[connection] = None
        return True

    def answers(self, connection: _Connection) -> None:
        """Note that the request of a connection has arrived."""
        self._waiting.pop(connection, None)

    def discard(self, connection: _Connection) -> None:
        """Note that a connection has ended."""
        self._connections.discard(connection)
        self._waiting.pop(connection, None)


class _Log(_Adapter):
    """aiohttp's log, with one line for a request that is no HTTP."""

    def exception(self, msg: object, *args: object, exc_info: Any = True, **kwargs: Any) -> None:
        if isinstance(exc_info, aiohttp.http_exceptions.HttpProcessingError):
            # Not its text, which quotes the request: any port scanner chooses it, and it may contain a token.
            self.logger.info("A request is no HTTP.", extra={"detail": type(exc_info).__name__})
        else:
            super().exception(msg, *args, exc_info=exc_info, **kwargs)


class _Connection(asyncio.Protocol):
    """Forwards data within the limits to aiohttp."""

    def __init__(self, server: BoundedServer) -> None:
        self._server = server
        self._inner: asyncio.Protocol | None = None
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._bytes = 0
        self._answering = False

    def abort(self) -> None:
        """Close the connection without waiting for the client."""
        self._server.discard(self)
        if self._transport is not None:
            self._transport.abort()

    def answers(self) -> None:
        """Stop the timer: the request has arrived, and the handler may take any time."""
        self._answering = True
        self._server.answers(self)
        self._stop_timer()

    def answered(self) -> None:
        """Start the timer: the answer is ready to be sent, or a stream has ended."""
        self._answering = False
        self._start_timer()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._server.admit(self):
            self.abort()
            return
        self._start_timer()
        self._inner = self._server.protocol()
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._bytes += len(data)
        if self._bytes > REQUEST_BYTES:
            self.abort()
        elif self._inner is not None:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._inner is not None else None

    def pause_writing(self) -> None:
        self._start_timer()
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._answering:
            self._stop_timer()
        else:
            self._start_timer()
        if self._inner is not None:
            self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.discard(self)
        self._stop_timer()
        if self._inner is not None:
            self._inner.connection_lost(exc)

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(REQUEST_SECONDS, self.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


@web.middleware
async def _one_request(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Read the whole request within the limits, answer it, and close the connection."""
    try:
        await request.read()
    except ConnectionError:
        # A limit was reached. aiohttp would log a traceback.
        raise web.HTTPBadRequest from None
    transport = request.transport
    if transport is None:
        raise web.HTTPBadRequest(text="The connection was closed.")
    connection = cast(_Connection, transport.get_protocol())
    connection.answers()
    try:
        response = await handler(request)
    except web.HTTPException as error:
        error.force_close()
        raise
    finally:
        connection.answered()
    response.force_close()
    return response
