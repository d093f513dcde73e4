"""Generated files are up to date."""

from __future__ import annotations

import pytest

from hack.generate.files import COMMAND, FILES, Generated


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_generated_file_is_up_to_date(file: Generated) -> None:
    assert not file.difference(), f"{file.name} is out of date: run `{COMMAND}`."
