"""The walkthrough of pages: an error on a page is detected."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.walkthrough import walk

PAGE = """
```text
# greeting.txt
hello
```

<!-- walkthrough: background -->
```sh
echo begun; sleep 60
```

<!-- walkthrough: skip -->
```sh
exit 3
```

```sh
export WHOM=you
```

```sh
cat greeting.txt | tail -1
echo "NAME    AGE"
echo "$WHOM   7s"
```

```text
hello
NAME   AGE
me     3s
```
"""


def followed(page: str, folder: Path) -> None:
    (folder / "page.md").write_text(page.replace("```text\n# ", "```ini\n# "))
    walk(folder / "page.md", folder, {}, seconds=20)


def test_walkthrough_writes_files_runs_commands_and_compares_tables(
    tmp_path: Path,
) -> None:
    followed(PAGE, tmp_path)
    assert (tmp_path / "greeting.txt").read_text() == "# greeting.txt\nhello\n"


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        pytest.param("hello\nNAME", "goodbye\nNAME", id="another line"),
        pytest.param("NAME   AGE", "NAME   SIZE", id="another header"),
        pytest.param("export WHOM=you", "false", id="a command that fails"),
    ],
)
def test_walkthrough_detects_an_untrue_page(right: str, wrong: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        followed(PAGE.replace(right, wrong), tmp_path)
