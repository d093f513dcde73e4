"""The prose check of `make lint`."""

from __future__ import annotations

import pytest

from hack.lint.prose import ROOT, Ceiling, ceiling_of, complaints, count

FILLER = "word " * 200


@pytest.mark.parametrize(
    ("path", "text", "phrases"),
    [
        pytest.param("a.md", "Whoever reads this, reads it anew.\n", 2, id="markdown-paragraph"),
        pytest.param("a.md", "```\nwhoever\n```\n| whoever |\n", 0, id="markdown-code-and-table"),
        pytest.param("a.py", '"""Ask somebody, in a sentence of words."""\n', 1, id="docstring"),
        pytest.param("a.py", "x = 1  # of which there is none\n", 2, id="python-comment"),
        pytest.param("a.py", 'somebody = {"nobody": "that which"}\n', 0, id="python-names-and-keys"),
        pytest.param(
            "a.yaml", "# anew\nkey: anew\n  description: anew\n", 2, id="yaml-comment-and-description"
        ),
    ],
)
def test_check_counts_phrases_in_english_only(path: str, text: str, phrases: int) -> None:
    assert count(path, text).phrases == phrases


def test_check_names_the_file_above_its_ceiling() -> None:
    plain = [count(f"{number}.md", FILLER) for number in range(9)]
    bad = count("bad.md", FILLER + "whoever, somebody")

    assert complaints(plain, Ceiling(1.0, 5.0)) == []
    assert complaints([*plain, bad], Ceiling(1.0, 5.0)) == [
        "bad.md has 9.9 roundabout phrases per 1,000 words, more than 5."
    ]
    assert complaints([*plain, bad], Ceiling(0.9, 10.0)) == [
        "All files have 1.00 roundabout phrases per 1,000 words, more than 0.9."
    ]


def test_check_ignores_the_rate_of_a_short_file() -> None:
    assert complaints([count("short.md", "whoever")], Ceiling(2000.0, 5.0)) == []


def test_ceiling_is_set_in_pyproject() -> None:
    assert ceiling_of(ROOT / "pyproject.toml").total > 0
