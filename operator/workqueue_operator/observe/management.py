"""The exact count of unacknowledged messages, from RabbitMQ's management API where the Secret names it.

Place in the flow: only for workers that are not ours and so cannot be asked. The plug-in's numbers are up to
five seconds old; that is why everything else is asked over AMQP.
"""

from __future__ import annotations

import ssl
import time
from typing import Final
from urllib.parse import quote, urlsplit

import aiohttp
from aiohttp import encode_basic_auth
from yarl import URL

from workqueue_worker.binding import Binding

from ..reasons import Reason, Unknown

TIMEOUT: Final = aiohttp.ClientTimeout(total=3.0)

FRESH: Final = 2.0
"""Seconds for which an answer is used again: the plug-in itself counts every five."""


_NO_URI: Final = Unknown(
    Reason.UNACKNOWLEDGED_UNKNOWN,
    "These workers are not ours and cannot be asked, so that the count does not shrink without the exact number "
    "of unacknowledged messages. Put the key management-uri into the connection Secret.",
)


class Management:
    """Asks the management API. Must be made inside the running loop."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(timeout=TIMEOUT)
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
            count = await self._ask(binding, queue)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, AttributeError) as error:
            return Unknown(
                Reason.UNACKNOWLEDGED_UNKNOWN,
                f"The management API does not say how many messages are unacknowledged ({error!r}), so that the "
                "count does not shrink. Check management-uri and the user's tags (monitoring is enough).",
            )
        if not isinstance(count, int):
            # The plug-in leaves the field out until it has counted: that is not zero.
            return Unknown(
                Reason.UNACKNOWLEDGED_UNKNOWN, "The management API has not counted this queue's messages yet."
            )
        self._last[binding.identity, queue] = (time.monotonic(), count)
        return count

    async def _ask(self, binding: Binding, queue: str) -> object:
        parts = urlsplit(binding.management_uri or "")
        # Credentials in the URL would be sent beside ours.
        base = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
        where = f"{quote(binding.virtual_host, safe='')}/{quote(queue, safe='')}"
        async with self._session.get(
            URL(f"{base}/api/queues/{where}?columns=messages_unacknowledged", encoded=True),
            headers={"Authorization": encode_basic_auth(binding.username, binding.password)},
            ssl=_context(binding),
        ) as response:
            response.raise_for_status()
            return (await response.json()).get("messages_unacknowledged")


def _context(binding: Binding) -> ssl.SSLContext | bool:
    if binding.tls is not None and binding.tls.authority:
        return ssl.create_default_context(cadata=binding.tls.authority)
    return True
