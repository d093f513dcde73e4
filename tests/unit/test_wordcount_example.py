"""The example handler without RabbitMQ; `make demo` shows the rest."""

from __future__ import annotations

import logging

import pytest

from examples.wordcount.wordcount import count, handle
from workqueue import Message


@pytest.mark.parametrize(
    ("text", "result"),
    [
        pytest.param(
            "The cat and the dog.\nThe end\n",
            {"lines": 2, "words": 7, "different": 5, "bytes": 29, "top": "the"},
            id="upper and lower case are one word",
        ),
        pytest.param(
            "b a",
            {"lines": 0, "words": 2, "different": 2, "bytes": 3, "top": "a"},
            id="a tie goes by alphabet",
        ),
        pytest.param(
            "Grüße", {"lines": 0, "words": 1, "different": 1, "bytes": 7, "top": "grüße"}, id="not only ASCII"
        ),
        pytest.param(
            "...", {"lines": 0, "words": 0, "different": 0, "bytes": 3, "top": None}, id="no word at all"
        ),
    ],
)
def test_wordcount_handler_counts_words(text: str, result: dict[str, object]) -> None:
    assert count(text.encode()) == result


def test_message_without_reply_to_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        handle(Message(b"one two"))
    assert [record.message for record in caplog.records] == ["Counted a document."]
