"""The exact count of unacknowledged messages, from RabbitMQ's management API where the Secret names it.

Place in the flow: only for workers that are not ours and so cannot be asked. The plug-in's numbers are up to
five seconds old; that is why everything else is asked over AMQP.
"""

from __future__ import annotations

import ssl
import time
from typing import Final
from urllib.parse import quote

import aiohttp

from workqueue_worker.binding import Binding

TIMEOUT: Final = aiohttp.ClientTimeout(total=3.0)

FRESH: Final = 2.0
"""Seconds for which an answer is used again: the plug-in itself counts every five."""


class Management:
    """Asks the management API. Must be made inside the running loop."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(timeout=TIMEOUT)
        self._last: dict[tuple[str, str], tuple[float, int]] = {}

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def unacknowledged(self, binding: Binding, queue: str) -> int | None:
        """Messages that some consumer holds; None when there is no API, no answer, or no such number."""
        if binding.management_uri is None:
            return None
        known = self._last.get((binding.identity, queue))
        if known is not None and time.monotonic() - known[0] < FRESH:
            return known[1]
        self._last.pop((binding.identity, queue), None)
        url = f"{binding.management_uri.rstrip('/')}/api/queues/{quote(binding.virtual_host, safe='')}/"
        try:
            async with self._session.get(
                f"{url}{quote(queue, safe='')}?columns=messages_unacknowledged",
                auth=aiohttp.BasicAuth(binding.username, binding.password, encoding="utf-8"),
                ssl=_context(binding),
            ) as response:
                response.raise_for_status()
                count = (await response.json()).get("messages_unacknowledged")
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, AttributeError):
            return None
        if not isinstance(count, int):
            # The plug-in leaves the field out until it has counted: that is not zero.
            return None
        self._last[binding.identity, queue] = (time.monotonic(), count)
        return count


def _context(binding: Binding) -> ssl.SSLContext | bool:
    if binding.tls is not None and binding.tls.authority:
        return ssl.create_default_context(cadata=binding.tls.authority)
    return True
