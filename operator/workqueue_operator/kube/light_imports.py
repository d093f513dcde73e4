"""kopf and the asynchronous Kubernetes client, without the parts of them that the operator does not use.

The packages `kubernetes` and `kubernetes.aio` import everything in them: a synchronous client, informers, streams and
elections. kopf imports the synchronous client too, to recognise its classes. All of that is 37 MiB, of which the
operator needs 11, and most of the time of its start. The client's parser of dates takes 2 MiB more, and the operator
reads JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from types import ModuleType

from workqueue_operator import light_aiohttp  # noqa: F401 - before kopf imports aiohttp


@contextmanager
def _without(package: str) -> Iterator[None]:
    """Let imports of a package fail, unless it was imported before."""
    hidden: dict[str, ModuleType | None] = {} if package in sys.modules else {package: None}
    sys.modules.update(hidden)  # type: ignore[arg-type]  # None is what the import system looks for
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextmanager
def _without_init_of(*packages: str) -> Iterator[None]:
    """Let imports find the modules in packages without running `__init__`. Later imports run it."""
    skipped = []
    try:
        for package in packages:
            spec = find_spec(package)
            if package not in sys.modules and spec is not None:
                sys.modules[package] = module_from_spec(spec)
                skipped.append(package)
        yield
    finally:
        for package in skipped:
            del sys.modules[package]


@contextmanager
def _with_late_dateutil() -> Iterator[None]:
    """Let imports find `dateutil.parser.parse`, whose module is imported when it is first called."""
    if "dateutil" in sys.modules:
        yield
        return
    package, parser = ModuleType("dateutil"), ModuleType("dateutil.parser")
    parser.parse = lambda text: import_module("dateutil.parser").parse(text)  # type: ignore[attr-defined]
    sys.modules |= {"dateutil": package, "dateutil.parser": parser}
    try:
        yield
    finally:
        del sys.modules["dateutil"], sys.modules["dateutil.parser"]


with _without("kubernetes"):
    import kopf

    # The types of a parameter of `kopf.spawn_tasks`.
    from kopf._core.reactor.inventory import ResourceMemories, ResourceMemory

with _without_init_of("kubernetes", "kubernetes.aio"), _with_late_dateutil():
    ApiClient = import_module("kubernetes.aio.client.api_client").ApiClient
    Configuration = import_module("kubernetes.aio.client.configuration").Configuration
    ApiException = import_module("kubernetes.aio.client.exceptions").ApiException
    load_incluster_config = import_module("kubernetes.aio.config.incluster_config").load_incluster_config
    load_kube_config = import_module("kubernetes.aio.config.kube_config").load_kube_config

__all__ = [
    "ApiClient",
    "ApiException",
    "Configuration",
    "ResourceMemories",
    "ResourceMemory",
    "kopf",
    "load_incluster_config",
    "load_kube_config",
]
