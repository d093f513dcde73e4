"""TLS contexts for connections to RabbitMQ, made in a thread and kept, since making one takes about 45 ms.

One thread makes them all, so that a hundred Secrets do not occupy all processors at once.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from workqueue.amqp import tls as amqp_tls
from workqueue.contract.binding import TLS

KEPT: Final = 256
"""How many contexts are kept. The least recently used one is dropped."""


async def context(tls: TLS) -> ssl.SSLContext:
    """Return the context for these certificates.

    Raises:
        ValueError, TypeError: as `workqueue.amqp.tls.context`.
    """
    return await asyncio.get_running_loop().run_in_executor(_THREAD, _context, tls)


_THREAD: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tls")

_context = functools.lru_cache(maxsize=KEPT)(amqp_tls.context)
