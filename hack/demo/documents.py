"""Find the documents to send: licences and package documentation, which every Debian system has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hack.demo.errors import DemoError

FOLDERS: Final = (Path("/usr/share/common-licenses"), Path("/usr/share/doc"))
MOST_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Document:
    """A text and its origin."""

    path: Path
    body: bytes


def find(most: int, folders: Iterable[Path] = FOLDERS) -> list[Document]:
    """Return at most `most` documents, ordered by folder and name.

    Raises:
        DemoError: the folders hold no text.
    """
    found: list[Document] = []
    for path in _files(folders):
        if len(found) == most:
            break
        body = path.read_bytes()
        if _is_text(body):
            found.append(Document(path, body))
    if not found:
        names = " and ".join(map(str, folders))
        raise DemoError(f"{names} hold no text: name a folder that does with --documents-from.")
    return found


def _files(folders: Iterable[Path]) -> Iterator[Path]:
    """Yield the files that are neither links nor too large."""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink() and path.stat().st_size <= MOST_BYTES:
                yield path


def _is_text(body: bytes) -> bool:
    try:
        return bool(body.strip()) and "\0" not in body.decode()
    except UnicodeDecodeError:
        return False
