"""The documentation as a site: every page, every link, and the search.

Slow: Sphinx builds about 60 pages.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it: a warning, such as a dead link, is an error."""
    target = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--fail-on-warning", "--keep-going", "--conf-dir", "docs"]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, ".", str(target)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return target


def test_every_page_is_published_and_searchable(site: Path) -> None:
    pages = {str(page.relative_to(ROOT).with_suffix("")) for page in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if not (site / f"{page}.html").exists()} == set()
    index = (site / "searchindex.js").read_text()
    assert {page for page in pages if f'"{page}"' not in index} == set()


def test_site_index_leads_to_get_started(site: Path) -> None:
    target = re.search(r'url=([^"]+)"', (site / "index.html").read_text())
    assert target
    assert "get-started.html" in (site / target[1]).read_text()
