"""Login sessions: a random name in a cookie refers to a token in the memory of this process.

`access` checks the token at each request, so that a session ends with its token.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from typing import Any, Final

COOKIE: Final = "workqueue_session"
LASTS_SECONDS: Final = 8 * 3600
MOST: Final = 1_000


class Sessions:
    """Sessions by name. At the limit, a new session replaces the oldest.

    Args:
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, clock: Any = time.monotonic) -> None:
        self._clock = clock
        self._tokens: OrderedDict[str, tuple[float, str]] = OrderedDict()

    def begin(self, token: str) -> str:
        """Start a session and return its name."""
        name = secrets.token_urlsafe(32)
        self._tokens[name] = (self._clock() + LASTS_SECONDS, token)
        while len(self._tokens) > MOST:
            self._tokens.popitem(last=False)
        return name

    def token(self, name: str) -> str | None:
        """Return the token of a session; None if it has ended."""
        ends, token = self._tokens.get(name, (0.0, ""))
        if self._clock() >= ends:
            self._tokens.pop(name, None)
            return None
        return token

    def end(self, name: str) -> None:
        """End a session."""
        self._tokens.pop(name, None)
