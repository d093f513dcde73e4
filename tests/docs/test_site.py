"""The documentation as a site: every page, every link, and the search.

Slow: Sphinx builds about 60 pages.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

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
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return target


def test_every_page_is_published_and_searchable(site: Path) -> None:
    pages = {str(page.relative_to(ROOT).with_suffix("")) for page in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if not (site / f"{page}.html").exists()} == set()
    index = (site / "searchindex.js").read_text()
    assert {page for page in pages if f'"{page}"' not in index} == set()


class Links(HTMLParser):
    """The targets and the anchors of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.anchors: set[str] = {""}
        self.relations: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        self.targets |= {found[name] for name in ("href", "src") if name in found}
        if tag == "link":
            self.relations.add(found.get("rel", ""))


links = cache(Links)


def dead_links(site: Path) -> Iterator[str]:
    for page in site.rglob("*.html"):
        for target in links(page).targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not file.exists() or (file.suffix == ".html" and parts.fragment not in links(file).anchors):
                yield f"{page.relative_to(site)}: {target}"


def test_every_internal_link_and_picture_of_the_site_exists(site: Path) -> None:
    assert sorted(dead_links(site)) == []


def test_pages_lead_to_the_next_and_the_previous_one_and_to_the_search(site: Path) -> None:
    page = links(site / "docs/handlers.html")
    assert {"next", "prev", "search"} <= page.relations


def test_landing_page_shows_the_moving_picture(site: Path) -> None:
    shown = {Path(target).name for target in links(site / "docs/index.html").targets}
    assert "demo.svg" in shown


def test_site_index_leads_to_get_started(site: Path) -> None:
    target = re.search(r'url=([^"]+)"', (site / "index.html").read_text())
    assert target
    assert "get-started.html" in (site / target[1]).read_text()
