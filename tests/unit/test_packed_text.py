"""Packed texts: equal after unpacking, and small when they resemble the first one."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from workqueue_operator.packed_text import TextPacker


@given(st.lists(st.text()))
def test_unpacked_texts_are_equal_to_the_packed_ones(texts: list[str]) -> None:
    packer = TextPacker()

    packed = [packer.pack(text) for text in texts]

    assert [packer.unpack(one) for one in packed] == texts


def test_text_longer_than_the_window_is_unpacked_whole() -> None:
    packer = TextPacker()
    texts = [json.dumps(list(range(start, start + 20_000))) for start in (0, 7)]

    packed = [packer.pack(text) for text in texts]

    assert [packer.unpack(one) for one in packed] == texts


def test_text_like_the_first_one_takes_a_tenth_of_its_size() -> None:
    packer = TextPacker()
    first, second = (
        json.dumps({"name": name, "words": [f"word {number}" for number in range(200)]})
        for name in ("one", "two")
    )
    packer.pack(first)

    assert len(packer.pack(second)) < len(second) / 10
