"""The documentation against its subjects: links, commands, resources, metrics, reasons and tests."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import jsonschema
import pytest
import yaml

from hack.generate import metrics
from workqueue.cli import main
from workqueue_operator import names
from workqueue_operator.api import crd
from workqueue_operator.api.reasons import Reason
from workqueue_operator.api.workqueue import WorkQueue

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
        ROOT / "charts/workqueue-operator/README.md",
    ]
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)", re.DOTALL)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
DOCKERFILE = re.compile(r"^```dockerfile\n.*?^```", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"^ {4}.*\S.*$", re.MULTILINE)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")

Schema = dict[str, Any]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


pages = pytest.mark.parametrize("page", PAGES, ids=name_of)


# -- links ----------------------------------------------------------------------------------------


def slug(heading: str) -> str:
    """The anchor of a heading in rendered Markdown."""
    text = LINK.sub(lambda link: link[0].partition("]")[0][1:], heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    prose = FENCE.sub("", page.read_text())
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", prose, re.MULTILINE)}


@pages
def test_every_link_has_an_existing_target(page: Path) -> None:
    dead = []
    for target in LINK.findall(INDENTED.sub("", FENCE.sub("", page.read_text()))):
        if re.match(r"\w+:", target):
            assert re.fullmatch(r"https://[a-z0-9-]+(\.[a-z0-9-]+)+(/[^\s<>\"|]*)?", target), target
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(target)
    assert not dead


def test_no_link_leads_to_a_domain_that_the_project_does_not_hold() -> None:
    """See docs/adr/0014-names.md."""
    links = re.compile(rf"https?://(?:[\w-]+\.)*{re.escape(names.GROUP)}\b")
    places = [*PAGES, *(ROOT / "charts").rglob("*.yaml"), *(ROOT / "manifests").rglob("*.yaml")]
    assert [name_of(place) for place in places if links.search(place.read_text())] == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    todo = [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page.is_dir():
            todo += page.glob("*.md")
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        targets = (target.partition("#")[0] for target in LINK.findall(page.read_text()))
        todo += [(page.parent / path).resolve() for path in targets if path and "://" not in path]
    assert not {name_of(page) for page in PAGES if page not in reached and page.is_relative_to(ROOT / "docs")}


@pages
def test_every_named_file_exists(page: Path) -> None:
    folders = "|".join(("tests", "hack", "examples", "charts", "manifests", "operator", "worker"))
    named = (
        text for text in INLINE.findall(page.read_text()) if re.fullmatch(rf"({folders})/[\w./-]+", text)
    )
    assert not [text for text in named if not (ROOT / text).exists()]


@pages
def test_every_linked_test_exists_in_its_file(page: Path) -> None:
    links = re.findall(r"\[`(test_\w+)`\]\(([^)]+)\)", page.read_text())
    assert not [
        (test, path)
        for test, path in links
        if not re.search(rf"^(async )?def {test}\(", (page.parent / path).read_text(), re.MULTILINE)
    ]


def fault_rows() -> dict[str, list[str]]:
    """The rows of the fault matrix: the fault, and the cells behind it."""
    page = (ROOT / "docs/fault-matrix.md").read_text()
    table = page.partition("<!-- faults: generated -->")[2].partition("<!-- end of faults -->")[0]
    rows = [
        [cell.strip() for cell in row.split("|")[1:-1]]
        for row in re.findall(r"^\|.+\|$", table, re.MULTILINE)
    ]
    return {fault: cells for fault, *cells in rows[2:]}


def test_no_fault_of_the_matrix_lost_a_message() -> None:
    rows = fault_rows()
    assert len(rows) > 50
    assert {fault: lost for fault, (_, _, _, lost, *_) in rows.items() if lost != "0"} == {}


def named_faults() -> list[str]:
    """The rows of the fault matrix that a promise names."""
    page = (ROOT / "docs/guarantees.md").read_text()
    named = re.findall(r"^In the \[fault matrix\][^:]*: (.+?)\n\n", page, re.MULTILINE | re.DOTALL)
    return [" ".join(fault.split()) for line in named for fault in re.findall(r"\*([^*]+)\*", line)]


def test_every_fault_that_a_promise_names_is_in_the_matrix() -> None:
    rows, named = fault_rows(), named_faults()
    assert len(named) > 10
    assert [
        fault for fault in named if fault != "Lost" and not any(row.startswith(fault) for row in rows)
    ] == []


def complaints() -> list[str]:
    """The rows of the tables under "What users ask for" in the comparison."""
    page = (ROOT / "docs/comparison.md").read_text()
    section = page.partition("## What users ask for")[2].partition("\n## ")[0]
    return [
        row for row in re.findall(r"^\| (?!Complaint|---).+\|$", section, re.MULTILINE) if "---|" not in row
    ]


@pytest.mark.parametrize("row", complaints(), ids=lambda row: row.split("|", 2)[1].strip())
def test_every_complaint_about_a_peer_links_a_counter_test(row: str) -> None:
    _, _, where, here, _ = row.split("|")
    assert where.strip()
    assert re.search(r"\[`test_\w+`\]\(", here)


def test_every_picture_is_well_formed() -> None:
    for picture in (ROOT / "docs/images").glob("*.svg"):
        ET.fromstring(picture.read_text())


# -- commands --------------------------------------------------------------------------------------


def blocks(page: Path) -> list[str]:
    """The lines of a page to type."""
    text = page.read_text().replace("\\\n", " ")
    lines = INDENTED.findall(FENCE.sub("", text))
    for language, block in FENCE.findall(text):
        if language in {"", "sh"}:
            lines += block.splitlines()
    return lines


def prose(page: Path) -> list[str]:
    """Commands that a page mentions in passing, which may be incomplete."""
    return INLINE.findall(FENCE.sub("", page.read_text()))


def commands(lines: list[str], program: str) -> Iterator[list[str]]:
    """The words behind `program` wherever it is run."""
    for part in (part for line in lines for part in re.split(r"\||&&|;", line)):
        if found := re.match(rf"\s*{program}(?: (.+))?$", part):
            words = shlex.split(found[1] or "", comments=True)
            yield words[: next((n for n, word in enumerate(words) if word in set("<>&")), len(words))]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pages
def test_every_named_make_target_exists(page: Path) -> None:
    run = commands([*blocks(page), *prose(page)], r"(?:CLUSTER=current )?make")
    assert {word for words in run for word in words if "=" not in word} <= targets()


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"workqueue {command}", exit_on_error=False)
    import_module(f"workqueue.cli.{command}").add_arguments(parser)
    return parser


def options(parser: argparse.ArgumentParser) -> set[str]:
    """The flags of a command and of those below it."""
    known: set[str] = set()
    for action in parser._actions:
        known |= set(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            known.update(*(options(below) for below in action.choices.values()), action.choices)
    return known


@pages
def test_documented_workqueue_commands_parse(page: Path) -> None:
    for command, *words in commands(blocks(page), "workqueue"):
        parser_of(command).parse_args(words)


@pages
def test_mentioned_workqueue_commands_exist(page: Path) -> None:
    for words in commands(prose(page), "workqueue"):
        if words:
            assert words[0] in main.COMMANDS
            assert {word for word in words[1:] if word.startswith("-")} <= options(parser_of(words[0]))


def test_every_command_is_documented() -> None:
    lines = [line for page in PAGES for line in (*blocks(page), *prose(page))]
    assert set(main.COMMANDS) <= {words[0] for words in commands(lines, "workqueue") if words}


# -- resources -------------------------------------------------------------------------------------


def workqueues() -> list[Any]:
    found = []
    for page in PAGES:
        for language, block in FENCE.findall(page.read_text()):
            if language == "yaml":
                found += [
                    pytest.param(made, id=f"{name_of(page)}: {made['metadata']['name']}")
                    for made in yaml.safe_load_all(block)
                    if made.get("kind") == names.KIND
                ]
    return found


def unknown_fields(value: Any, schema: Schema, path: str = "") -> Iterator[str]:
    """Fields that the API server would drop."""
    if isinstance(value, list):
        for item in value:
            yield from unknown_fields(item, schema.get("items", {}), f"{path}[]")
    if not isinstance(value, dict) or "properties" not in schema:
        return
    for key, below in value.items():
        if key in schema["properties"]:
            yield from unknown_fields(below, schema["properties"][key], f"{path}.{key}")
        elif not schema.get("x-kubernetes-preserve-unknown-fields"):
            yield f"{path}.{key}"


@pytest.mark.parametrize("made", workqueues())
def test_documented_workqueue_is_valid(made: dict[str, Any]) -> None:
    schema = crd.schema()
    spec = schema["properties"]["spec"]
    assert made["apiVersion"] == names.API_VERSION
    assert not list(unknown_fields(made["spec"], spec))
    jsonschema.validate(made["spec"], spec)
    WorkQueue.model_validate(made)


def test_port_from_celery_is_shown_as_it_is() -> None:
    """The test of the port runs the files, so the page must not differ from them."""
    page = (ROOT / "docs/migrate-from-celery.md").read_text()
    section = page.partition("## A port, worked through")[2].partition("## Feature by feature")[0]
    files = "".join(file.read_text() for file in sorted((ROOT / "examples/docs-host").rglob("*.*")))

    shown = [block for _, block in FENCE.findall(section)]

    assert len(shown) > 5
    assert not [block for block in shown if block not in files]


# -- the vocabulary --------------------------------------------------------------------------------


def test_every_reason_is_documented() -> None:
    page = anchors(ROOT / "docs/conditions.md")
    assert not {reason for reason in Reason if reason.lower() not in page}


def test_documented_metrics_match_existing_metrics() -> None:
    known = set(re.findall(r"^\| `(workqueue_\w+)`", metrics.page(), re.MULTILINE))
    packages = {"workqueue_kubectl", "workqueue_operator", "workqueue_web", "workqueue"}
    alerts = ROOT / "charts/workqueue-operator/files/alerts.yaml"
    for place in (*PAGES, alerts):
        named = {
            re.sub(r"_(bucket|count|sum)$", "", name)
            for name in re.findall(r"\bworkqueue_[a-z_]*[a-z]\b", place.read_text())
        }
        assert named - packages <= known, place.name


WEB_ADDRESS = re.compile(r"\b(?:https?|amqps?)://\S+")
ABSOLUTE_PATH = re.compile(r"(?<![\w.<>*)}\]-])/([A-Za-z][\w-]*)")
SPOKEN_OF = {
    *("api", "metrics", "readyz", "retire", "status"),  # of our endpoints
    *("app", "bindings", "proc", "usr"),  # in containers
    *("handler", "job", "jobs", "spec"),  # of examples and JSON patches
}
"""Allowed beginnings of absolute paths. Paths of an author's machine have other beginnings."""


@pages
def test_project_text_mentions_no_workplace_tools(page: Path) -> None:
    text = page.read_text()
    assert not re.findall(r"pypi\.org|docker\.io|ghcr\.io|quay\.io", text)
    of_this_machine = WEB_ADDRESS.sub("", DOCKERFILE.sub("", text))
    assert set(ABSOLUTE_PATH.findall(of_this_machine)) <= SPOKEN_OF
