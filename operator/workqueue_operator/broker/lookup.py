"""Look up host names in threads of their own.

A name whose DNS server does not answer takes a thread for up to a minute. In asyncio's few threads, a handful of such
names in Secrets would delay the connections of all other WorkQueues, and the metrics.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from concurrent.futures import Future
from typing import Any, Final

LOOKUP_SECONDS: Final = 5.0

MOST_LOOKUPS: Final = 256
"""Names that are looked up at the same time. Each takes a thread."""

_running: dict[tuple[str, int], Future[list[Any]]] = {}


async def addresses_of(host: str, port: int) -> list[tuple[int, str]]:
    """Return the address families and IP addresses of a host.

    A lookup that takes longer goes on, and the next attempt waits for the same one.

    Raises:
        OSError: the name is unknown, or there was no answer in time.
    """
    try:
        found = _numeric(host, port)
        if found is None:
            async with asyncio.timeout(LOOKUP_SECONDS):
                found = await asyncio.wrap_future(_lookup(host, port))
    except TimeoutError:
        raise OSError(f"the name {host!r} was not resolved within {LOOKUP_SECONDS:g} s") from None
    except UnicodeError as error:
        raise OSError(f"{host!r} is not a host name") from error
    return [(family, str(place[0])) for family, _, _, _, place in found]


def _numeric(host: str, port: int) -> list[Any] | None:
    """Return the result for an IP address, which needs no DNS server; None for a name."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        return None


def _lookup(host: str, port: int) -> Future[list[Any]]:
    key = host, port
    running = _running.get(key)
    if running is not None:
        return running
    if len(_running) >= MOST_LOOKUPS:
        raise OSError(f"{MOST_LOOKUPS} other names are still being resolved. Check the DNS servers")
    found = _running[key] = Future()
    # From now on a caller that gives up does not cancel it for the others.
    found.set_running_or_notify_cancel()

    def run() -> None:
        try:
            answer = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            del _running[key]
            found.set_exception(error)
        else:
            del _running[key]
            found.set_result(answer)

    # A daemon, because the process must be able to exit before the answer.
    threading.Thread(target=run, daemon=True, name=f"lookup {host}").start()
    return found
