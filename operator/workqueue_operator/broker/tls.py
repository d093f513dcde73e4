"""TLS contexts for connections to RabbitMQ, made in a thread and kept, since making one takes about 45 ms."""

from __future__ import annotations

import asyncio
import functools
import ssl
from typing import Final

from workqueue.amqp import tls as amqp_tls
from workqueue.contract.binding import TLS

KEPT: Final = 256
"""How many contexts are kept. The least recently used one is dropped."""


async def context(tls: TLS) -> ssl.SSLContext:
    """Return the context for these certificates.

    Raises:
        ssl.SSLError, ValueError, TypeError: as `workqueue.amqp.tls.context`.
    """
    return await asyncio.to_thread(_context, tls)


_context = functools.lru_cache(maxsize=KEPT)(amqp_tls.context)
