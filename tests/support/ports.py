"""Free ports, for servers that cannot choose one themselves."""

from __future__ import annotations

import secrets
import socket
from contextlib import ExitStack, suppress
from typing import Final

FIRST: Final = 10_000
BEHIND: Final = 32_000
"""Below the ports for outgoing connections, which could take a port before its server does."""


def free_port() -> int:
    """A port without a listener, which the kernel gives to no outgoing connection."""
    (port,) = free_ports(1)
    return port


def free_ports(count: int) -> list[int]:
    """This number of different free ports.

    Raises:
        OSError: too few are free.
    """
    with ExitStack() as stack:
        return [_take(stack.enter_context(socket.socket())) for _ in range(count)]


def _take(held: socket.socket) -> int:
    for _ in range(100):
        port = FIRST + secrets.randbelow(BEHIND - FIRST)  # with a seed that no other process has
        with suppress(OSError):
            held.bind(("", port))
            return port
    raise OSError(f"No port between {FIRST} and {BEHIND} is free.")
