"""TLS contexts for connections to RabbitMQ, one for each authority and client certificate.

Building a context parses all certificates of the authority (about 45 ms for the system's), so it runs in a thread and
the result is cached.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
import tempfile
from typing import Final

from workqueue.contract.binding import TLS

KEPT: Final = 256
"""Number of cached contexts."""


async def context(tls: TLS) -> ssl.SSLContext:
    """Return the context for the certificates.

    Raises:
        ssl.SSLError, ValueError, TypeError: a certificate is invalid, or the key does not match or has a passphrase.
    """
    return await asyncio.to_thread(_context, tls.authority, tls.certificate, tls.private_key)


@functools.lru_cache(maxsize=KEPT)
def _context(authority: str, certificate: str, private_key: str) -> ssl.SSLContext:
    made = ssl.create_default_context(cadata=authority or None)
    if certificate:
        # The ssl module reads client certificates only from files.
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(f"{certificate}\n{private_key}\n")
            file.flush()
            # Refuse a key with a passphrase. Without this, OpenSSL would prompt on the terminal.
            made.load_cert_chain(file.name, password="")
    return made
