"""Who is logged in: a token behind a random name in a cookie, in the memory of this process only.

Place in the flow: `server` makes one at login and looks it up at each request; the token itself is asked about
again by `access`, so that a session ends with the token.
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
    """Sessions by their name; the oldest goes when there are too many.

    Args:
        clock: seconds that only go forward.
    """

    def __init__(self, clock: Any = time.monotonic) -> None:
        self._clock = clock
        self._tokens: OrderedDict[str, tuple[float, str]] = OrderedDict()

    def begin(self, token: str) -> str:
        """A new session's name."""
        name = secrets.token_urlsafe(32)
        self._tokens[name] = (self._clock() + LASTS_SECONDS, token)
        while len(self._tokens) > MOST:
            self._tokens.popitem(last=False)
        return name

    def token(self, name: str) -> str | None:
        """The token of a session; None when it has ended."""
        ends, token = self._tokens.get(name, (0.0, ""))
        if self._clock() >= ends:
            self._tokens.pop(name, None)
            return None
        return token

    def end(self, name: str) -> None:
        """Log out."""
        self._tokens.pop(name, None)
