"""TLS contexts for connections to RabbitMQ: one for each authority and client certificate.

Building one reads all certificates of the authority (about 45 ms for the system's), so it happens in a thread, once.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
import tempfile
from typing import Final

from workqueue.contract.binding import TLS

KEPT: Final = 256
"""Contexts that are kept: those of the Secrets used last."""


async def context(tls: TLS) -> ssl.SSLContext:
    """The context for these certificates.

    Raises:
        ssl.SSLError, ValueError, TypeError: a text is no certificate, or the key does not match or has a passphrase.
    """
    return await asyncio.to_thread(_context, tls.authority, tls.certificate, tls.private_key)


@functools.lru_cache(maxsize=KEPT)
def _context(authority: str, certificate: str, private_key: str) -> ssl.SSLContext:
    made = ssl.create_default_context(cadata=authority or None)
    if certificate:
        # The ssl module reads certificates from files only.
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(f"{certificate}\n{private_key}\n")
            file.flush()
            # A key with a passphrase is refused; without this it would be asked for on the terminal.
            made.load_cert_chain(file.name, password="")
    return made
