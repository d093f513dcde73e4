"""Which files the demo sends."""

from __future__ import annotations

from pathlib import Path

import pytest

from hack.demo import documents
from hack.demo.errors import DemoError


def test_demo_sends_only_text_files(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below/text").write_text("Grüße\n")
    (tmp_path / "empty").write_bytes(b" \n")
    (tmp_path / "latin-1").write_bytes("Grüße".encode("latin-1"))
    (tmp_path / "zeros").write_bytes(b"a\0b")
    (tmp_path / "large").write_bytes(b"a" * (documents.MOST_BYTES + 1))
    (tmp_path / "link").symlink_to(tmp_path / "below/text")
    found = documents.find(10, [tmp_path])
    assert [(one.path, one.body.decode()) for one in found] == [(tmp_path / "below/text", "Grüße\n")]


def test_demo_sends_at_most_the_requested_number(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text("text")
    assert [one.path.name for one in documents.find(2, [tmp_path])] == ["0.txt", "1.txt"]


def test_demo_without_text_files_reports_it(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="hold no text: name a folder"):
        documents.find(10, [tmp_path, tmp_path / "missing"])
