"""What only RabbitMQ's management API knows, where the Secret names it: exact counts, and which queues exist.

Place in the flow: `gather` asks for unacknowledged messages of workers that are not ours and so cannot be
asked, `finalize` for delay queues. The plug-in's numbers are up to five seconds old; that is why everything
else is asked over AMQP.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import json
import time
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote, urlsplit

import aiohttp
from aiohttp import encode_basic_auth
from yarl import URL

from workqueue.contract.binding import TLS, Binding
from workqueue.contract.topology import is_delay_queue
from workqueue_operator.api.reasons import Reason, Unknown
from workqueue_operator.bounded_http import PLAIN, body, described
from workqueue_operator.broker.tls import context
from workqueue_operator.destinations import ANYWHERE, Destinations

TIMEOUT: Final = aiohttp.ClientTimeout(total=3.0)

LARGEST_QUEUE: Final = 64 * 1024
"""Bytes of an answer about one queue."""

PAGE: Final = 100
LARGEST_PAGE: Final = 256 * 1024
"""Names in a page of a list, and bytes of such an answer: a name has at most 255 bytes."""

MOST_PAGES: Final = 100
PARSED_AT_ONCE: Final = 64 * 1024
"""Bytes: a larger answer is parsed in a thread."""

FRESH: Final = 0.9
"""Seconds for which an answer is used again: less than the second between two passes, so that what people see is
not much older than the plug-in's own numbers, which it counts every five."""


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
"""What a server that is away, refuses, or is something else altogether makes of a question."""

_NO_URI: Final = Unknown(
    Reason.UNACKNOWLEDGED_UNKNOWN,
    "These workers are not ours and cannot be asked, so that the count does not shrink without the exact number "
    "of unacknowledged messages. Put the key management-uri into the connection Secret.",
)


class Management:
    """Asks the management API. Must be made inside the running loop."""

    def __init__(self, destinations: Destinations = ANYWHERE) -> None:
        self._destinations = destinations
        connector = aiohttp.TCPConnector(resolver=_Resolver(destinations))
        self._session = aiohttp.ClientSession(timeout=TIMEOUT, connector=connector, **PLAIN)
        self._last: dict[tuple[str, str], tuple[float, int]] = {}

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def unacknowledged(self, binding: Binding, queue: str) -> int | Unknown:
        """Messages that some consumer holds, or why that is not known."""
        if binding.management_uri is None:
            return _NO_URI
        known = self._last.get((binding.identity, queue))
        if known is not None and time.monotonic() - known[0] < FRESH:
            return known[1]
        now = time.monotonic()
        self._last = {asked: answer for asked, answer in self._last.items() if now - answer[0] < FRESH}
        try:
            one = f"/{quote(queue, safe='')}?columns=messages_unacknowledged"
            found = await self._get(binding, one, LARGEST_QUEUE)
            count = found.get("messages_unacknowledged")
        except _FAILED as error:
            return Unknown(
                Reason.UNACKNOWLEDGED_UNKNOWN,
                f"The management API does not say how many messages are unacknowledged ({described(error)}), so "
                "that the count does not shrink. Check management-uri and the user's tags (monitoring is enough).",
            )
        if not isinstance(count, int):
            # The plug-in leaves the field out until it has counted: that is not zero.
            return Unknown(
                Reason.UNACKNOWLEDGED_UNKNOWN, "The management API has not counted this queue's messages yet."
            )
        self._last[binding.identity, queue] = (time.monotonic(), count)
        return count

    async def delay_queues(self, binding: Binding, queue: str) -> list[str] | Unknown:
        """The delay queues of a work queue that exist, or why that is not known; the Secret must name the API."""
        # Matched anywhere in the name, so that RabbitMQ sends no other team's thousands of names.
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
                Reason.BROKER_UNREACHABLE, f"The management API does not answer ({described(error)})."
            )

    async def _get(self, binding: Binding, of_queues: str, most: int) -> Any:
        url = _url(binding, of_queues)
        _require(url.host or "", self._destinations)
        tls = binding.tls
        async with self._session.get(
            url,
            headers={"Authorization": encode_basic_auth(binding.username, binding.password)},
            ssl=await context(TLS(tls.authority)) if tls is not None and tls.authority else True,
            # Whoever answers must not choose whom we ask next.
            allow_redirects=False,
        ) as response:
            response.raise_for_status()
            if response.status != HTTPStatus.OK:
                raise ValueError(f"HTTP {response.status}")
            text = await body(response, most)
        return json.loads(text) if len(text) <= PARSED_AT_ONCE else await asyncio.to_thread(json.loads, text)


class _Resolver(aiohttp.DefaultResolver):  # type: ignore[misc, valid-type]
    """Resolves host names, and refuses addresses that Secrets must not lead to."""

    def __init__(self, destinations: Destinations) -> None:
        super().__init__()
        self._destinations = destinations

    async def resolve(self, host: str, *arguments: Any, **named: Any) -> Any:
        found = await super().resolve(host, *arguments, **named)
        for one in found:
            _require_address(host, one["host"], self._destinations)
        return found


def _require(host: str, destinations: Destinations) -> None:
    """Check a host before anything is sent; a name is checked again when it is resolved."""
    if not destinations.permits(host):
        raise ValueError(f"allowedBrokerHosts of the operator's chart does not list the host {host!r}")
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        # aiohttp resolves no addresses.
        _require_address(host, host, destinations)


def _require_address(host: str, address: str, destinations: Destinations) -> None:
    if not destinations.permits_address(host, address):
        raise OSError(
            errno.EACCES,
            f"the operator may not connect to {host!r} ({address}), an address of itself, of its node, or of a "
            "metadata service",
        )


def _url(binding: Binding, of_queues: str) -> URL:
    wrong = ValueError(
        "management-uri must be like http://rabbitmq:15672: no credentials, no query and no fragment belong in it"
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
        # What Python says here may quote a password.
        raise wrong from None
