"""The properties of a message, without pika."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

Headers = Mapping[str, Any]


class Properties(NamedTuple):
    """The properties of AMQP 0-9-1, except headers. None where the publisher set nothing.

    Units: `expiration` is milliseconds as text, `timestamp` is Unix seconds, `delivery_mode` is 2 for persistent.
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
        """Read them from the attributes of an object, such as pika's BasicProperties."""
        return raw if type(raw) is cls else cls._make([getattr(raw, name, None) for name in cls._fields])

    def readable(self) -> Properties:
        """Return the same with text only. pika gives bytes for a string that is not UTF-8; these are escaped."""
        if bytes not in map(type, self):  # nearly always
            return self
        found: dict[str, Any] = {
            name: value.decode(errors="backslashreplace")
            for name in self._fields
            if isinstance(value := getattr(self, name), bytes)
        }
        return self._replace(**found)
