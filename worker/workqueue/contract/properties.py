"""The properties of a message, without pika.

Place in the flow: handlers see them as `message.properties`; `headers` sets some of them aside on a retry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

Headers = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Properties:
    """The properties of AMQP 0-9-1, but for the headers; None where the publisher set nothing.

    Units: `expiration` is text with milliseconds, `timestamp` Unix seconds, `delivery_mode` 2 for persistent.
    """

    content_type: str | None = None
    content_encoding: str | None = None
    delivery_mode: int | None = None
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: str | None = None
    message_id: str | None = None
    timestamp: int | None = None
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None

    @classmethod
    def of(cls, raw: object) -> Properties:
        """Read them from an object that has them as attributes, such as pika's."""
        return cls(**{one.name: getattr(raw, one.name, None) for one in fields(cls)})

    def readable(self) -> Properties:
        """The same, all texts as text: a string that is no UTF-8 comes as bytes, and is shown with escapes."""
        found: dict[str, Any] = {
            one.name: value.decode(errors="backslashreplace")
            for one in fields(self)
            if isinstance(value := getattr(self, one.name), bytes)
        }
        return replace(self, **found) if found else self
