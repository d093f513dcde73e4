"""prometheus_client in a process of a handler.

With `PROMETHEUS_MULTIPROC_DIR` the library names its files after the process id. A worker that replaces its processes
would collect more and more files, so a name of ours is used instead: a process continues the files of an earlier one.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

MODULE: Final = "prometheus_client.values"


def install(name: str) -> None:
    """Have prometheus_client use this name if the handler imports it."""
    sys.meta_path.insert(0, _Finder(name))


class _Finder:
    """Finds one module, and changes it after its import."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._name)  # type: ignore[assignment]
        return spec


class _Loader:
    def __init__(self, loader: Any, name: str) -> None:
        self._loader = loader
        self._name = name

    def create_module(self, spec: ModuleSpec) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        self._loader.exec_module(module)
        module.ValueClass = module.MultiProcessValue(lambda: self._name)
