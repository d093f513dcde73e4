"""What only RabbitMQ's management API knows, where the Secret names it: exact counts, and which queues exist.

Place in the flow: `gather` asks for unacknowledged messages of workers that are not ours and so cannot be
asked, `finalize` for delay queues. The plug-in's numbers are up to five seconds old; that is why everything
else is asked over AMQP.
"""

from __future__ import annotations

import json
import ssl
import time
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote, urlsplit

import aiohttp
from aiohttp import encode_basic_auth
from yarl import URL

from workqueue_worker.binding import Binding
from workqueue_worker.topology import is_delay_queue

from ..reasons import Reason, Unknown
from .answers import PLAIN, body, described

TIMEOUT: Final = aiohttp.ClientTimeout(total=3.0)

LARGEST_ANSWER: Final = 16 * 1024 * 1024
"""Bytes: the names of some 100,000 queues."""

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

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(timeout=TIMEOUT, **PLAIN)
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
        self._last.pop((binding.identity, queue), None)
        try:
            found = await self._get(binding, f"/{quote(queue, safe='')}?columns=messages_unacknowledged")
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
        try:
            found = await self._get(binding, "?columns=name&disable_stats=true&enable_queue_totals=true")
            return [name for name in (one["name"] for one in found) if is_delay_queue(name, queue)]
        except _FAILED as error:
            return Unknown(
                Reason.BROKER_UNREACHABLE, f"The management API does not answer ({described(error)})."
            )

    async def _get(self, binding: Binding, of_queues: str) -> Any:
        async with self._session.get(
            _url(binding, of_queues),
            headers={"Authorization": encode_basic_auth(binding.username, binding.password)},
            ssl=_context(binding),
            # Whoever answers must not choose whom we ask next.
            allow_redirects=False,
        ) as response:
            response.raise_for_status()
            if response.status != HTTPStatus.OK:
                raise ValueError(f"HTTP {response.status}")
            return json.loads(await body(response, LARGEST_ANSWER))


def _url(binding: Binding, of_queues: str) -> URL:
    wrong = ValueError("management-uri must be like http://rabbitmq:15672, with no credentials in it")
    try:
        parts = urlsplit(binding.management_uri or "")
        # Credentials in the URL would be sent beside ours.
        base = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
        if "@" in base or not parts.hostname:
            raise wrong
        where = f"{base}/api/queues/{quote(binding.virtual_host, safe='')}{of_queues}"
        return URL(where, encoded=True)
    except ValueError:
        # What Python says here may quote a password.
        raise wrong from None


def _context(binding: Binding) -> ssl.SSLContext | bool:
    if binding.tls is not None and binding.tls.authority:
        return ssl.create_default_context(cadata=binding.tls.authority)
    return True
