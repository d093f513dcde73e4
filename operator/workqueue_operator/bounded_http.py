"""What an HTTP server answers, read with a bound and told without what we sent.

Place in the flow: `management` and `workers` ask servers that are not ours: whoever may write a Secret or a pod
decides what answers there.
"""

from __future__ import annotations

from typing import Any, Final

import aiohttp

PLAIN: Final[dict[str, Any]] = {"auto_decompress": False, "headers": {"Accept-Encoding": "identity"}}
"""How a session is made: a few compressed bytes can be any number of others."""

SAID_CHARACTERS: Final = 200


async def body(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The body, of at most `most` bytes.

    Raises:
        ValueError: it is larger.
        aiohttp.ClientError, TimeoutError: it did not come.
    """
    read = bytearray()
    async for chunk in response.content.iter_any():
        read += chunk
        if len(read) > most:
            raise ValueError(f"the answer has more than {most} bytes")
    return bytes(read)


def described(error: BaseException) -> str:
    """An error for a status or a log. aiohttp shows the request in some of them, with its credentials."""
    if isinstance(error, aiohttp.ClientResponseError):
        return f"HTTP {error.status} {error.message}"[:SAID_CHARACTERS]
    return f"{type(error).__name__}: {error}".removesuffix(": ")[:SAID_CHARACTERS]
