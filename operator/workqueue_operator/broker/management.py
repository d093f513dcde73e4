"""Requests to RabbitMQ's management API, if the Secret names it: unacknowledged messages and existing delay queues.

Its counts are up to 5 s old, so the operator gets everything else over AMQP.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import json
import socket
import time
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote, urlsplit

from yarl import URL

from workqueue.contract.binding import TLS, Binding
from workqueue.contract.topology import is_delay_queue
from workqueue_operator.api.reasons import Reason, Unknown
from workqueue_operator.bounded_http import PLAIN, body, described
from workqueue_operator.broker.lookup import addresses_of
from workqueue_operator.broker.tls import context
from workqueue_operator.destinations import ANYWHERE, Destinations
from workqueue_operator.light_aiohttp import aiohttp

TIMEOUT: Final = aiohttp.ClientTimeout(total=3.0)

LARGEST_QUEUE: Final = 64 * 1024
"""Maximum size of a response about one queue, in bytes."""

PER_SERVER: Final = 8
"""Connections to one server."""

PAGE: Final = 100
LARGEST_PAGE: Final = 256 * 1024
"""Names per page of a list, and maximum size of that response in bytes. A name has at most 255 bytes."""

MOST_PAGES: Final = 100
PARSED_AT_ONCE: Final = 64 * 1024
"""Bytes. A larger response is parsed in a thread."""

FRESH: Final = 0.9
"""Seconds for which an answer is reused: less than the second between two passes, so that the cache hardly adds to
the age of the plug-in's counts (5 s)."""


_FAILED: Final = (
    aiohttp.ClientError,
    TimeoutError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RecursionError,
)
"""Errors of a request to a server that is down, refuses, or is not RabbitMQ."""

_NO_URI: Final = Unknown(
    Reason.UNACKNOWLEDGED_UNKNOWN,
    "The operator cannot ask the workers of a workloadRef whether they are busy, and does not scale in without the "
    "number of unacknowledged messages. Add the key management-uri to the connection Secret.",
)


class Management:
    """A client of the management API. Create it inside the running event loop."""

    def __init__(self, destinations: Destinations = ANYWHERE) -> None:
        self._destinations = destinations
        # One server that hangs takes few connections, and none of another server.
        connector = aiohttp.TCPConnector(resolver=_Resolver(destinations), limit=0, limit_per_host=PER_SERVER)
        self._session = aiohttp.ClientSession(timeout=TIMEOUT, connector=connector, **PLAIN)
        self._last: dict[tuple[str, str], tuple[float, int]] = {}

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def unacknowledged(self, binding: Binding, queue: str) -> int | Unknown:
        """Return the number of unacknowledged messages, or why it is unknown."""
        if binding.management_uri is None:
            return _NO_URI
        known = self._last.get((binding.identity, queue))
        if known is not None and time.monotonic() - known[0] < FRESH:
            return known[1]
        self._forget_old()
        try:
            one = f"/{quote(queue, safe='')}?columns=messages_unacknowledged"
            found = await self._get(binding, one, LARGEST_QUEUE)
            count = found.get("messages_unacknowledged")
        except _FAILED as error:
            return Unknown(
                Reason.UNACKNOWLEDGED_UNKNOWN,
                f"The management API did not return the number of unacknowledged messages ({described(error)}), so "
                "the operator does not scale in. Check management-uri and the user's tags (monitoring is enough).",
            )
        if not isinstance(count, int):
            # The plug-in omits the field until it has counted. That does not mean zero.
            return Unknown(
                Reason.UNACKNOWLEDGED_UNKNOWN, "The management API has not counted this queue's messages yet."
            )
        self._last.pop((binding.identity, queue), None)
        self._last[binding.identity, queue] = (time.monotonic(), count)
        return count

    def _forget_old(self) -> None:
        """Forget answers that are not reused. The oldest comes first."""
        now = time.monotonic()
        while self._last:
            oldest = next(iter(self._last))
            if now - self._last[oldest][0] < FRESH:
                return
            del self._last[oldest]

    async def delay_queues(self, binding: Binding, queue: str) -> list[str] | Unknown:
        """Return the existing delay queues of a work queue, or why they are unknown. Requires management-uri."""
        # Filtered by RabbitMQ (a substring match): the virtual host may have thousands of other queues.
        part = quote(f"{queue}.retry.", safe="")
        names: list[str] = []
        try:
            for page in range(1, MOST_PAGES + 1):
                found = await self._get(
                    binding,
                    f"?page={page}&page_size={PAGE}&name={part}&use_regex=false&columns=name&disable_stats=true"
                    "&enable_queue_totals=true",
                    LARGEST_PAGE,
                )
                names += [
                    name for name in (one["name"] for one in found["items"]) if is_delay_queue(name, queue)
                ]
                if page >= int(found["page_count"]):
                    return names
            raise ValueError(f"more than {MOST_PAGES} pages of queues")
        except _FAILED as error:
            return Unknown(
                Reason.BROKER_UNREACHABLE, f"The management API did not answer ({described(error)})."
            )

    async def _get(self, binding: Binding, of_queues: str, most: int) -> Any:
        url = _url(binding, of_queues)
        _require(url.host or "", self._destinations)
        tls = binding.tls
        async with self._session.get(
            url,
            headers={"Authorization": aiohttp.encode_basic_auth(binding.username, binding.password)},
            ssl=await context(TLS("" if tls is None else tls.authority)) if url.scheme == "https" else True,
            # The server must not choose the next destination.
            allow_redirects=False,
        ) as response:
            response.raise_for_status()
            if response.status != HTTPStatus.OK:
                raise ValueError(f"HTTP {response.status}")
            text = await body(response, most)
        return json.loads(text) if len(text) <= PARSED_AT_ONCE else await asyncio.to_thread(json.loads, text)


class _Resolver(aiohttp.abc.AbstractResolver):
    """Resolves host names, and refuses forbidden addresses."""

    def __init__(self, destinations: Destinations) -> None:
        self._destinations = destinations

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[aiohttp.abc.ResolveResult]:
        found = await addresses_of(host, port)
        for _, address in found:
            _require_address(host, address, self._destinations)
        return [
            aiohttp.abc.ResolveResult(
                hostname=host, host=address, port=port, family=one, proto=0, flags=socket.AI_NUMERICHOST
            )
            for one, address in found
            if family in {socket.AF_UNSPEC, one}
        ]

    async def close(self) -> None:
        """Nothing is open."""


def _require(host: str, destinations: Destinations) -> None:
    """Check a host before the request. The resolver checks the addresses of a host name."""
    if not destinations.permits(host):
        raise ValueError(f"allowedBrokerHosts of the operator's chart does not list the host {host!r}")
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        # aiohttp does not resolve IP addresses.
        _require_address(host, host, destinations)


def _require_address(host: str, address: str, destinations: Destinations) -> None:
    if not destinations.permits_address(host, address):
        raise OSError(
            errno.EACCES,
            f"the operator must not connect to {host!r} ({address}), an address of the operator, its node or a "
            "metadata service",
        )


def _url(binding: Binding, of_queues: str) -> URL:
    wrong = ValueError(
        "management-uri must look like http://rabbitmq:15672, without credentials, query and fragment"
    )
    try:
        parts = urlsplit(binding.management_uri or "")
        base = parts.geturl().rstrip("/")
        plain = parts.scheme in {"http", "https"} and not set("@?#") & set(binding.management_uri or "")
        if not (plain and parts.hostname):
            raise wrong
        where = f"{base}/api/queues/{quote(binding.virtual_host, safe='')}{of_queues}"
        return URL(where, encoded=True)
    except ValueError:
        # The original error text may contain a password.
        raise wrong from None
