"""A mapping that holds its objects as JSON text.

Place in the flow: the store keeps in it what there is one of for each WorkQueue, most of which sleep. The text takes
less than half the memory of the dictionaries, and in a piece of its own, which goes back when it is replaced.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping
from typing import Any


class JsonMap(MutableMapping[tuple[str, str], dict[str, Any]]):
    """JSON objects by (namespace, name).

    Each look makes a new object, in some 20 microseconds; what is changed in it is not kept.
    """

    def __init__(self) -> None:
        self._texts: dict[tuple[str, str], str] = {}

    def __getitem__(self, key: tuple[str, str]) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self._texts[key])
        return body

    def __setitem__(self, key: tuple[str, str], body: dict[str, Any]) -> None:
        self._texts[key] = json.dumps(body, separators=(",", ":"))

    def __delitem__(self, key: tuple[str, str]) -> None:
        del self._texts[key]

    def __contains__(self, key: object) -> bool:
        return key in self._texts

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def saying(self, text: str) -> Iterator[dict[str, Any]]:
        """The objects with this text among their values or names; the others are not made."""
        sought = json.dumps(text)
        return (json.loads(found) for found in list(self._texts.values()) if sought in found)
