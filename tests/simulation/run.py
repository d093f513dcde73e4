"""Run one scenario, and shrink one that fails."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from tests.simulation.cluster import installed
from tests.simulation.controllers import BACK_OFF
from tests.simulation.loop import DeadlockError
from tests.simulation.properties import SETTLES_WITHIN, Properties
from tests.simulation.scenario import END, Scenario
from tests.simulation.stage import Stage
from tests.simulation.world import World, own_time_and_chance
from workqueue_operator import __main__ as main

LOOK_SECONDS: Final = 10.0


@dataclass
class Result:
    """What became of a run.

    Attributes:
        violations: empty when every property held.
        story: what happened, as (seconds, who, what).
        cpu: seconds of processor time.
    """

    scenario: Scenario
    violations: list[str]
    story: list[tuple[float, str, str]] = field(repr=False)
    cpu: float = 0.0

    @property
    def rules(self) -> set[str]:
        """The properties that did not hold."""
        return {one.partition(":")[0] for one in self.violations}


def run(
    scenario: Scenario, mutate: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
) -> Result:
    """Run a scenario to its end, or until a property does not hold. Leaves about 1 MiB of garbage behind."""
    begun = time.process_time()
    world = World(scenario.seed)
    # The garbage collector would end coroutines of killed operators in the middle of another step.
    gc.disable()
    asyncio.set_event_loop(world.loop)
    try:
        with own_time_and_chance(world):
            stage = Stage(scenario, world)
            with installed(stage.cluster), _recorded(stage), mutate():
                try:
                    world.loop.run_until_complete(_run(stage, world))
                except DeadlockError:
                    world.violated("deadlock", "nothing is ready and no timer is set")
    finally:
        asyncio.set_event_loop(None)
    return Result(scenario, world.violations, world.story, time.process_time() - begun)


@contextlib.contextmanager
def _recorded(stage: Stage) -> Any:
    """Keep the reconciler that each operator makes, for the properties."""
    real = main.Reconciler

    def made(parts: Any) -> Any:
        reconciler = real(parts)
        current = stage.cluster._current()
        if current is not None:
            current.parts, current.reconciler = parts, reconciler
        reconcile, tell = reconciler.reconcile, parts.recurring._tell

        def told(workqueue: Any, reason: Any, message: str) -> None:
            stage.told.append((workqueue.key, reason, message))
            tell(workqueue, reason, message)

        parts.recurring._tell = told

        def counted(key: Any) -> Any:
            stage.passes[key] += 1
            return reconcile(key)

        reconciler.reconcile = counted  # type: ignore[method-assign]
        return reconciler

    main.Reconciler = made  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        main.Reconciler = real  # type: ignore[misc]


async def _run(stage: Stage, world: World) -> None:
    ended = asyncio.Event()
    world.on_violation = ended.set
    properties = Properties(stage)
    watching = asyncio.create_task(properties.watch(), name="properties")
    playing = asyncio.create_task(_play(stage, world, properties), name="scenario")
    stop = asyncio.create_task(ended.wait(), name="violation")
    await asyncio.wait({watching, playing, stop}, return_when=asyncio.FIRST_COMPLETED)
    for task in (watching, playing):
        if task.done() and task.exception() is not None:
            raise task.exception() or AssertionError
    for task in (watching, playing, stop):
        task.cancel()


async def _play(stage: Stage, world: World, properties: Properties) -> None:
    await stage.play()
    world.tell("FAULT", "the last one is over")
    # One pod may have to take all that crash, with a pause after each.
    seconds = SETTLES_WITHIN + stage.crashing() * BACK_OFF[1]
    for number in range(int(seconds / LOOK_SECONDS)):
        await asyncio.sleep(LOOK_SECONDS)
        if number and not (missing := properties.settled()):
            break
    else:
        for rule, what in missing or []:
            world.violated(rule, what)
        return
    world.tell("FAULT", "everything has converged")
    if (rest := END - world.now) > 0:
        await asyncio.sleep(rest)
    for rule, what in properties.settled():
        world.violated(rule, what)


def shrink(
    scenario: Scenario, mutate: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
) -> Scenario:
    """Leave out steps as long as the same property still does not hold."""
    rules = run(scenario, mutate).rules
    size = max(len(scenario.steps) // 2, 1)
    while True:
        position = 0
        while position < len(scenario.steps):
            smaller = scenario.without(set(range(position, position + size)))
            if rules & run(smaller, mutate).rules:
                scenario = smaller
            else:
                position += size
        if size == 1:
            return scenario
        size //= 2
