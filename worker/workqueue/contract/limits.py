"""The limits of every HTTP server of this project, so that no client can exhaust one."""

from __future__ import annotations

from typing import Final

CONNECTIONS: Final = 64
"""Open at the same time. Beyond that, the connection that has kept the server waiting the longest is closed."""

REQUEST_SECONDS: Final = 10.0
"""Time for a request to arrive, and for the client to read the answer."""

REQUEST_BYTES: Final = 32 * 1024
"""Size of a request with all its headers. Ordinary requests have some hundred bytes."""
