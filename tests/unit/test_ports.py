"""A pass reaches the outside only through its ports, and its functions take few parameters."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import workqueue_operator

ROOT = Path(workqueue_operator.__path__[0])
ADAPTERS = {"workers/client.py"}
"""Implementations of a port."""

MODULES = sorted(
    path
    for package in ("reconcile", "scaling", "workers")
    for path in (ROOT / package).glob("*.py")
    if str(path.relative_to(ROOT)) not in ADAPTERS
)
EVERY_MODULE = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))

FORBIDDEN_IMPORTS = {"time", "random", "socket", "ssl", "http", "urllib", "aiohttp"}
FORBIDDEN_CALLS = {"asyncio.sleep", "datetime.now", "datetime.utcnow", "asyncio.open_connection"}

MOST_PARAMETERS = 4


@EVERY_MODULE
def test_pass_uses_time_chance_and_the_network_only_through_ports(path: Path) -> None:
    used = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            used |= {alias.name.split(".")[0] for alias in node.names} & FORBIDDEN_IMPORTS
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            used |= {node.module.split(".")[0]} & FORBIDDEN_IMPORTS
        elif isinstance(node, ast.Attribute):
            used |= {ast.unparse(node)} & FORBIDDEN_CALLS

    assert used == set()


@EVERY_MODULE
def test_functions_of_a_pass_take_at_most_four_parameters(path: Path) -> None:
    wide = set()
    for owner in [tree := ast.parse(path.read_text()), *ast.walk(tree)]:
        for node in getattr(owner, "body", ()) if isinstance(owner, ast.ClassDef | ast.Module) else ():
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = [one.arg for one in [*node.args.args, *node.args.kwonlyargs] if one.arg != "self"]
                # A constructor receives the parts of the process.
                if len(names) > MOST_PARAMETERS and node.name != "__init__":
                    wide.add(f"{node.name}({', '.join(names)})")

    assert wide == set()
