"""Import pika without asyncio, which is a third of pika's import.

pika imports asyncio for `AsyncioConnection` only, which neither the worker nor most handlers use.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any, Final

_ASYNCIO: Final = "asyncio"


def import_pika() -> None:
    """Import pika. Call it before another thread runs, since the name `asyncio` means something else during the call.

    pika's `AsyncioConnection` still works: it imports asyncio when it uses it.
    """
    if _ASYNCIO in sys.modules:
        import_module("pika")
        return
    deferred = sys.modules[_ASYNCIO] = _Deferred(_ASYNCIO)
    try:
        import_module("pika")
    finally:
        deferred.withdraw()


class _Deferred(ModuleType):
    """A module that is imported when one of its names is used."""

    def withdraw(self) -> None:
        """Let the next import find the real module."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]

    def __getattr__(self, name: str) -> Any:
        self.withdraw()
        return getattr(import_module(self.__name__), name)
