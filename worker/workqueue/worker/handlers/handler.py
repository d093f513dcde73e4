"""What every kind of handler is to the runtime.

Place in the flow: made by `python`, `exec` and `http`, run by `runtime`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workqueue.message import Message


@dataclass(frozen=True, slots=True)
class Handler:
    """A function of one message; returning means done, exceptions say otherwise.

    Attributes:
        name: for log lines.
        call: a coroutine function when `is_async`, else a function that may block.
    """

    name: str
    call: Callable[[Message], Any]
    is_async: bool = False
