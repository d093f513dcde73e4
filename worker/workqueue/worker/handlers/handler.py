"""The common form of every kind of handler."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from workqueue.message import Message

if TYPE_CHECKING:
    from workqueue.worker.handlers.lifespan import Lifespan


class Handler(NamedTuple):
    """A function of one message. It returns when the message is handled, and raises otherwise.

    Attributes:
        name: for log lines.
        call: a coroutine function when `is_async`, else a function that may block.
        lifespan: to open before the first call and to close after the last; in its asyncio loop when `is_async`.
    """

    name: str
    call: Callable[[Message], Any]
    is_async: bool = False
    lifespan: Lifespan | None = None
