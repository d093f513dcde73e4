"""Import pika without asyncio and ssl, which are two fifths of pika's import.

pika imports asyncio for `AsyncioConnection` only, which neither the worker nor most handlers use, and ssl for
connections with TLS.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any, Final

_DEFERRED: Final = ("asyncio", "ssl")
_TLS_CONTEXT: Final = "SSLContext"


def import_pika() -> None:
    """Import pika. Call it before another thread runs, since the deferred names mean something else during the call.

    pika's `AsyncioConnection` and TLS still work: they import asyncio and ssl when they use them.
    """
    deferred = [_Deferred(name) for name in _DEFERRED if name not in sys.modules]
    sys.modules.update((one.__name__, one) for one in deferred)
    try:
        import_module("pika")
    finally:
        for one in deferred:
            one.withdraw()


class _Deferred(ModuleType):
    """A module that is imported when one of its names is used."""

    def withdraw(self) -> None:
        """Let the next import find the real module."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]

    def __getattr__(self, name: str) -> Any:
        self.withdraw()
        if name == _TLS_CONTEXT and self.__name__ not in sys.modules:
            return _NoContext
        return getattr(import_module(self.__name__), name)


class _NoContext:
    """For `isinstance`: pika asks for each connection whether it has a TLS context. Without ssl there is none."""
