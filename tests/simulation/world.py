"""The parts that every model shares: the loop, the seed, the story, and stand-ins for Python's own modules."""

from __future__ import annotations

import contextvars
import importlib
import pkgutil
import random
import sys
import time as real_time
import uuid as real_uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, Final

from tests.simulation.loop import SimulatedLoop

BEGIN: Final = datetime(2026, 1, 1, tzinfo=UTC)

_REPLACED: Final = ("time", "random", "secrets", "uuid")


class PropertyError(AssertionError):
    """A property does not hold. The message says which, where and when."""


class World:
    """One simulated world.

    Attributes:
        random: decides whatever the models choose.
        story: what happened, as (seconds, who, what).
        violations: properties that did not hold.
    """

    def __init__(self, seed: object) -> None:
        self.loop = SimulatedLoop()
        self.begun = self.loop.time()
        self.random = random.Random(f"models {seed}")
        self.code_random = random.Random(f"code {seed}")
        self.story: list[tuple[float, str, str]] = []
        self.violations: list[str] = []
        self.on_violation: Callable[[], None] = lambda: None
        self._context = contextvars.Context()

    @property
    def now(self) -> float:
        """Seconds since the begin."""
        return self.loop.time() - self.begun

    def unix(self) -> float:
        """Unix seconds."""
        return BEGIN.timestamp() + self.now

    def timestamp(self) -> str:
        """The time as Kubernetes writes it."""
        return (BEGIN + timedelta(seconds=self.now)).strftime("%Y-%m-%dT%H:%M:%SZ")

    def tell(self, who: str, what: str) -> None:
        """Add a line to the story."""
        self.story.append((self.now, who, what))

    def violated(self, rule: str, what: str) -> None:
        """Note that a property does not hold, and end the run."""
        line = f"{rule}: {what}"
        if line not in self.violations:
            self.violations.append(line)
            self.tell("PROPERTY", line)
            self.on_violation()

    def later(self, seconds: float, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a function after some seconds, whatever becomes of the process that asks for it."""
        self.loop.call_later(seconds, function, *arguments, context=self._context)


def _modules() -> list[Any]:
    """All modules of the worker and the operator that the simulation runs."""
    for package in ("workqueue_operator", "workqueue.worker", "workqueue.amqp", "workqueue.contract"):
        for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if not found.name.endswith("__main__"):
                importlib.import_module(found.name)
    return [
        module
        for name, module in sys.modules.items()
        if name.partition(".")[0] in {"workqueue", "workqueue_operator"}
    ]


def _places() -> Iterator[tuple[Any, str]]:
    for module in _modules():
        for name in _REPLACED:
            if getattr(module, name, None) is sys.modules.get(name):
                yield module, name


PLACES: Final[list[tuple[Any, str]]] = list(_places())
"""Where the code under test reads time or chance, found by looking. `asyncio` gets its time from the loop."""


@contextmanager
def own_time_and_chance(world: World) -> Iterator[None]:
    """Give the code under test the virtual time, and numbers that follow from the seed."""
    loop, chance = world.loop, world.code_random

    class _DateTime(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            begin = BEGIN if tz is UTC else BEGIN.astimezone(tz)
            return begin + timedelta(seconds=world.now)

    modules = {
        "time": SimpleNamespace(
            monotonic=loop.time, time=world.unix, gmtime=real_time.gmtime, strftime=real_time.strftime
        ),
        "random": chance,
        "secrets": SimpleNamespace(token_hex=lambda size=16: f"{chance.getrandbits(8 * size):0{2 * size}x}"),
        "uuid": SimpleNamespace(uuid4=lambda: real_uuid.UUID(int=chance.getrandbits(128), version=4)),
    }
    clocks: list[Any] = [
        importlib.import_module(f"workqueue_operator.{name}") for name in ("clock", "broker.declare")
    ]
    for module, name in PLACES:
        setattr(module, name, modules[name])
    # `Backoff` imports it when it is called.
    real_random, sys.modules["random"] = sys.modules["random"], chance  # type: ignore[assignment]
    for clock in clocks:
        clock.datetime = _DateTime
    try:
        yield
    finally:
        sys.modules["random"] = real_random
        for module, name in PLACES:
            setattr(module, name, sys.modules[name])
        for clock in clocks:
            clock.datetime = datetime
