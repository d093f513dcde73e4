"""A network namespace for servers of a test: every port is free, and no packet leaves the machine."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from hack.cluster.commands import run

ADDRESS: Final = "10.200.0.1"
"""An address that is not loopback, for servers that refuse loopback."""

PODS: Final = "10.244.0.0/17"
"""Addresses of pods. All are local, so that one server answers for all pods."""

SILENT_PODS: Final = "10.244.128.0/17"
"""Addresses at which every packet is dropped without an answer."""

_CLONE_NEWNET: Final = 0x40000000
_DOING: Final = "Making a network namespace"


@contextmanager
def own_network() -> Iterator[None]:
    """Move this thread into a new network namespace while the context lasts.

    Processes and threads that it starts are in the same namespace. The namespace ends with the last of them.
    """
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _call("unshare", _CLONE_NEWNET)
        try:
            run(["ip", "link", "set", "lo", "up"], doing=_DOING)
            run(["ip", "address", "add", f"{ADDRESS}/32", "dev", "lo"], doing=_DOING)
            for addresses in (PODS, SILENT_PODS):
                run(["ip", "route", "add", "local", addresses, "dev", "lo"], doing=_DOING)
            run(["iptables", "-A", "INPUT", "-d", SILENT_PODS, "-j", "DROP"], doing=_DOING)
            yield
        finally:
            _call("setns", before, _CLONE_NEWNET)
    finally:
        os.close(before)


def _call(function: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{function}: {os.strerror(ctypes.get_errno())}")
