"""Compressed texts, for those that stay in memory for a long time."""

from __future__ import annotations

import zlib
from typing import Final

_LEVEL: Final = 1
_WINDOW: Final = -13
"""The window is 8 KiB, and a minus leaves out header and checksum."""

_MEMORY: Final = 5
"""The compressor's memory of 64 KiB. With its default, allocating the memory takes longer than compressing 2 KiB."""


class TextPacker:
    """Compresses texts of one kind, such as the JSON of one kind of object.

    The first text is the dictionary of the others. They have most of their words in common with it: a WorkQueue of
    2.2 KiB takes 0.2 KiB. Packing takes about 20 microseconds, unpacking less than 10.
    """

    def __init__(self) -> None:
        self._dictionary = b""

    def pack(self, text: str) -> bytes:
        """Return the compressed text."""
        plain = text.encode()
        self._dictionary = self._dictionary or plain
        packing = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW, _MEMORY, zdict=self._dictionary)
        return packing.compress(plain) + packing.flush()

    def unpack(self, packed: bytes) -> str:
        """Return a text that this object has packed."""
        return zlib.decompressobj(_WINDOW, self._dictionary).decompress(packed).decode()
