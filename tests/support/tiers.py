"""Slow rows of a parametrised test."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def some_slow(titles: Iterable[str], slow: Collection[str]) -> list[Any]:
    """Return the titles as parameters, of which the slow ones are part of `make slow` only."""
    rows = list(titles)
    if missing := set(slow) - set(rows):
        raise ValueError(f"No row is called {sorted(missing)}; the rows are {rows}.")
    return [pytest.param(title, marks=pytest.mark.slow if title in slow else ()) for title in rows]
