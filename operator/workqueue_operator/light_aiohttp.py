"""aiohttp without the certificate authorities of the system.

When it is imported, it makes a TLS context with all of them, for requests that name none. That takes 3 MiB and 25 ms.
All requests of the operator name their context, and aiohttp's own one trusts nobody.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _without_authorities() -> Iterator[None]:
    """Let new TLS contexts trust nobody."""
    real = ssl.SSLContext.load_default_certs
    ssl.SSLContext.load_default_certs = lambda *_: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        ssl.SSLContext.load_default_certs = real  # type: ignore[method-assign]


with _without_authorities():
    import aiohttp
    from aiohttp import web

__all__ = ["aiohttp", "web"]
