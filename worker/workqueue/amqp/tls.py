"""TLS contexts for connections to RabbitMQ, made from PEM texts without writing a private key to disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from workqueue.contract.binding import TLS

if TYPE_CHECKING:
    import ssl

UNUSABLE = (ValueError, TypeError)
"""What `context` raises for PEM texts that it cannot use."""


def context(tls: TLS) -> ssl.SSLContext:
    """Return a context for these certificates. It reads all authorities, which takes about 45 ms for the system's.

    Raises:
        ValueError, TypeError: a text is not a certificate, or the key does not match or is encrypted.
    """
    import ssl  # a worker without TLS starts sooner without it

    try:
        made = ssl.create_default_context(cadata=tls.authority or None)
        if tls.certificate:
            with _as_file(f"{tls.certificate.strip()}\n{tls.private_key.strip()}\n") as path:
                # Without a password, the ssl module would ask for one on the terminal. With one, it refuses the key.
                made.load_cert_chain(path, password="")
    except ssl.SSLError as error:
        raise ValueError(str(error)) from error
    return made


@contextmanager
def _as_file(text: str) -> Iterator[str]:
    """Yield a path to a file with this text, since the ssl module reads certificates from files only.

    On Linux the file is in memory: the root file system may be read-only, and a private key must not reach a disk.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("certificate")
        try:
            os.write(descriptor, text.encode())
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        import tempfile

        with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
            file.write(text)
            file.flush()
            yield file.name
