"""The library for handlers and for programs that publish.

Handlers use `Message`, `Retry` and `Reject`. `lifespan`, `middleware` and `on_failure` mark functions that run around
handlers. `workqueue.testing` runs handlers without a broker. Programs use `Publisher` or `AsyncPublisher`, and the
errors.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from workqueue.amqp.errors import (
        BrokerError,
        DeclareError,
        NotSent,
        PublishError,
        Refused,
        Returned,
        Unconfirmed,
    )
    from workqueue.contract.errors import UndecodableError
    from workqueue.hooks import lifespan, middleware, on_failure
    from workqueue.message import Message, Reject, Retry
    from workqueue.publisher import AsyncPublisher, Publisher, PublishManyError

__all__ = [
    "AsyncPublisher",
    "BrokerError",
    "DeclareError",
    "Message",
    "NotSent",
    "PublishError",
    "PublishManyError",
    "Publisher",
    "Refused",
    "Reject",
    "Retry",
    "Returned",
    "Unconfirmed",
    "UndecodableError",
    "__version__",
    "lifespan",
    "middleware",
    "on_failure",
]

_MODULES = {
    **dict.fromkeys(
        ("BrokerError", "DeclareError", "NotSent", "PublishError", "Refused", "Returned", "Unconfirmed"),
        "workqueue.amqp.errors",
    ),
    **dict.fromkeys(("lifespan", "middleware", "on_failure"), "workqueue.hooks"),
    **dict.fromkeys(("Message", "Reject", "Retry"), "workqueue.message"),
    "UndecodableError": "workqueue.contract.errors",
    **dict.fromkeys(("AsyncPublisher", "PublishManyError", "Publisher"), "workqueue.publisher"),
}


def __getattr__(name: str) -> Any:
    """Import each at its first use. Most handlers need few of them, and a worker starts sooner."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
