"""The private names of pika that worker and operator use, checked at import.

Any release of pika may rename them. pyproject.toml pins the version, and this check stops another version
with a clear error at start, instead of during a delivery.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Final

import pika
from pika import channel, connection
from pika.adapters import base_connection
from pika.adapters.utils import io_services_utils, selector_ioloop_adapter

SUPPORTED: Final = "pika~=1.4.4"

_Names = dict[tuple[ModuleType, str], tuple[str, ...]]

_MEMBERS: Final[_Names] = {
    (connection, "Connection"): (
        "_create_channel",
        "_deliver_frame_to_channel",
        "_output_marshaled_frames",
        "_process_callbacks",
        "_read_frame",
        "_send_method",
        "_terminate_stream",
    ),
    (channel, "Channel"): ("_handle_content_frame",),
    (channel, "ContentFrameAssembler"): ("_handle_body_frame",),
    (base_connection, "BaseConnection"): ("_adapter_emit_data",),
    (io_services_utils, "_AsyncPlaintextTransport"): ("_MAX_CONSUME_BYTES", "_MAX_RECV_BYTES"),
}
"""Module and class, and names that the class has."""

_ATTRIBUTES: Final[_Names] = {
    (connection, "Connection"): ("_channels", "_frame_buffer"),
    (connection, "Parameters"): ("_host",),
    (base_connection, "BaseConnection"): ("_transport",),
    (io_services_utils, "_AsyncPlaintextTransport"): ("_sock",),
    (channel, "Channel"): ("_cancelled", "_consumers", "_content_assembler"),
    (channel, "ContentFrameAssembler"): ("_seen_so_far",),
    (selector_ioloop_adapter, "_AddressResolver"): ("_loop",),
}
"""Module and class, and names that only its instances have."""


def check() -> None:
    """Check that pika has every private name that we use.

    Raises:
        ImportError: it lacks some.
    """
    missing = [
        *_missing(_MEMBERS, hasattr),
        *_missing(_ATTRIBUTES, _uses),
    ]
    if missing:
        raise ImportError(
            f"pika {pika.__version__} cannot be used: it lacks {', '.join(missing)}. Install {SUPPORTED}."
        )


def _missing(used: _Names, has: Callable[[object, str], bool]) -> Iterator[str]:
    for (module, owner), names in used.items():
        found = getattr(module, owner, None)
        yield from (f"{module.__name__}.{owner}.{name}" for name in names if not has(found, name))


def _uses(owner: object, name: str) -> bool:
    """Whether the methods of a class use an attribute of this name."""
    members = (member for ancestor in getattr(owner, "__mro__", ()) for member in vars(ancestor).values())
    return any(name in one.__code__.co_names for one in members if isinstance(one, FunctionType))


check()
