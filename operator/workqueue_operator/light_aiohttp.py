"""aiohttp without the certificate authorities of the system and without the C++ library.

When it is imported, it makes a TLS context with all authorities, for requests that name none. That takes 3 MiB and
25 ms. All requests of the operator name their context, and aiohttp's own one trusts nobody. The C++ library takes
1.5 MiB; only frozenlist needs it, which has the same lists in Python, and aiohttp makes few of them.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_WITHOUT_CPP: Final = "FROZENLIST_NO_EXTENSIONS"


@contextmanager
def _lightly() -> Iterator[None]:
    """Let new TLS contexts trust nobody, and frozenlist be imported without its extension."""
    real, before = ssl.SSLContext.load_default_certs, os.environ.get(_WITHOUT_CPP)
    ssl.SSLContext.load_default_certs = lambda *_: None  # type: ignore[method-assign]
    os.environ[_WITHOUT_CPP] = before or "1"
    try:
        yield
    finally:
        ssl.SSLContext.load_default_certs = real  # type: ignore[method-assign]
        if before is None:
            del os.environ[_WITHOUT_CPP]


with _lightly():
    import aiohttp
    from aiohttp import web

__all__ = ["aiohttp", "web"]
