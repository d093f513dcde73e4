"""Count roundabout phrases in the project's English: `python -m hack.lint [--lines] [PATH...]`.

A hit is a sentence to read again. A text without hits may still be hard to read.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PHRASES: Final = tuple(Path(__file__).with_name("phrases.txt").read_text().split("\n")[:-1])
"""Regular expressions, one on each line of a file that the check itself does not read."""

SUFFIXES: Final = (".md", ".py", ".yaml", ".yml")
NOT_PROSE: Final = re.compile(r"lock|__snapshots__|benchmarks/.*(?<!README)\.md|CHANGELOG")
"""Files that are generated from measurements or tools, and the record of past releases."""

SHORT_STRING: Final = 4
"""A Python string of at most this many words is taken for a name, not for a sentence."""

SHORT_FILE: Final = 150
"""In a file of at most this many words, one hit would already exceed the ceiling for a file."""

SHOWN: Final = 15
PER: Final = 1000

_PHRASE: Final = re.compile(rf"\b(?:{'|'.join(PHRASES)})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The accepted hits per 1,000 words, inclusive: over all files, and in any one file."""

    total: float
    file: float


@dataclass(frozen=True, slots=True)
class Hit:
    """One line with roundabout phrases."""

    line: int
    phrases: list[str]
    text: str


@dataclass(frozen=True, slots=True)
class Count:
    """The words and hits of one file."""

    path: str
    words: int
    hits: list[Hit]

    @property
    def phrases(self) -> int:
        """The number of phrases in all lines."""
        return sum(len(hit.phrases) for hit in self.hits)

    @property
    def rate(self) -> float:
        """Phrases per 1,000 words; 0 for a short file."""
        return PER * self.phrases / self.words if self.words > SHORT_FILE else 0.0


def count(path: str, text: str) -> Count:
    """Count the words and roundabout phrases of one file."""
    words = 0
    hits = []
    for number, line in prose(path, text):
        words += len(line.split())
        if found := _PHRASE.findall(line):
            hits.append(Hit(number, [phrase.strip() for phrase in found], line.strip()))
    return Count(path, words, hits)


def prose(path: str, text: str) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines that are English: Markdown, Python comments and sentences, YAML descriptions."""
    if path.endswith(".md"):
        return _markdown(text)
    if path.endswith(".py"):
        return _python(text)
    return (
        (n, line) for n, line in _numbered(text) if "description:" in line or line.lstrip().startswith("#")
    )


def overall(counts: Iterable[Count]) -> float:
    """Return the phrases per 1,000 words over all files."""
    counts = list(counts)
    return PER * sum(one.phrases for one in counts) / max(1, sum(one.words for one in counts))


def complaints(counts: list[Count], ceiling: Ceiling) -> list[str]:
    """Return one sentence for each ceiling that is exceeded."""
    found = [
        f"{one.path} has {one.rate:.1f} roundabout phrases per 1,000 words, more than {ceiling.file:g}."
        for one in counts
        if one.rate > ceiling.file
    ]
    total = overall(counts)
    if total > ceiling.total:
        found.append(
            f"All files have {total:.2f} roundabout phrases per 1,000 words, more than {ceiling.total:g}."
        )
    return found


def ceiling_of(pyproject: Path) -> Ceiling:
    """Read the table `tool.prose` of a pyproject.toml."""
    table = tomllib.loads(pyproject.read_text())["tool"]["prose"]
    return Ceiling(float(table["total-ceiling"]), float(table["file-ceiling"]))


def main() -> int:
    """Count the phrases in tracked files. The exit code is 1 if a ceiling is exceeded."""
    parser = argparse.ArgumentParser(prog="python -m hack.lint", description=__doc__)
    parser.add_argument("--lines", action="store_true", help="print each line with a hit and the worst files")
    parser.add_argument("paths", nargs="*", default=["."], metavar="PATH", help="files or folders (all)")
    arguments = parser.parse_args()
    counts = [count(path, (ROOT / path).read_text(errors="replace")) for path in _tracked(arguments.paths)]
    if arguments.lines:
        _show(counts)
    wrong = complaints(counts, ceiling_of(ROOT / "pyproject.toml"))
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    if wrong:
        print("`python -m hack.lint --lines PATH...` shows each phrase.", file=sys.stderr)
    return 1 if wrong else 0


def _tracked(paths: list[str]) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *paths], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    return [
        path
        for path in listed.split("\0")
        if path.endswith(SUFFIXES) and not NOT_PROSE.search(path) and (ROOT / path).is_file()
    ]


def _show(counts: list[Count]) -> None:
    for one in counts:
        for hit in one.hits:
            print(f"{one.path}:{hit.line}: {', '.join(hit.phrases)}: {hit.text[:140]}")
    worst = sorted(counts, key=lambda one: one.rate, reverse=True)[:SHOWN]
    for one in worst:
        print(f"{one.rate:6.1f}  {one.phrases:4d} in {one.words:6d} words  {one.path}")
    print(f"{overall(counts):.2f} per {PER:,} words in all")


def _markdown(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines outside code blocks and tables."""
    is_code = False
    for number, line in _numbered(text):
        if line.startswith("```"):
            is_code = not is_code
        elif not is_code and not line.startswith("|"):
            yield number, line


def _python(text: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        is_sentence = token.type == tokenize.STRING and len(token.string.split()) > SHORT_STRING
        if token.type == tokenize.COMMENT or is_sentence:
            yield from enumerate(token.string.split("\n"), token.start[0])


def _numbered(text: str) -> Iterator[tuple[int, str]]:
    return enumerate(text.splitlines(), 1)


if __name__ == "__main__":
    sys.exit(main())
