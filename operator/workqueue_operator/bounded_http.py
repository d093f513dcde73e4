"""Read an HTTP response with a size limit, and describe an HTTP error without the request's credentials.

The author of a Secret or a pod chooses the server that answers, so its responses are not trusted.
"""

from __future__ import annotations

from typing import Any, Final

from workqueue_operator.light_aiohttp import aiohttp

PLAIN: Final[dict[str, Any]] = {"auto_decompress": False, "headers": {"Accept-Encoding": "identity"}}
"""Session arguments without compression: a few compressed bytes can expand to any size."""

SAID_CHARACTERS: Final = 200


async def body(response: aiohttp.ClientResponse, most: int) -> bytes:
    """Return the body of at most `most` bytes.

    Raises:
        ValueError: the body is larger.
        aiohttp.ClientError, TimeoutError: the body did not arrive.
    """
    read = bytearray()
    async for chunk in response.content.iter_any():
        read += chunk
        if len(read) > most:
            raise ValueError(f"the answer is larger than {most} bytes")
    return bytes(read)


def described(error: BaseException) -> str:
    """Return the text of an error for a status or a log. Some texts of aiohttp include the request's credentials."""
    if isinstance(error, aiohttp.ClientResponseError):
        return f"HTTP {error.status} {error.message}"[:SAID_CHARACTERS]
    return f"{type(error).__name__}: {error}".removesuffix(": ")[:SAID_CHARACTERS]
