"""The properties themselves: what they accept, and what they do not."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.simulation.properties import CONNECTS_WITHIN, NAMED_WITHIN, Properties
from tests.simulation.scenario import draw
from tests.simulation.stage import Stage
from tests.simulation.world import World

SEED = 3


def _waits(properties: Properties, stage: Stage, seconds: range, *, obstacle: bool) -> list[str]:
    """Let a message wait for some seconds, and return what is violated."""
    (key, spec), *_ = stage.workqueues.items()
    queue: Any = SimpleNamespace(ready=["message"], consumers=[])
    status = {"conditions": [{"type": "Ready", "status": "False" if obstacle else "True"}]}
    for second in seconds:
        properties._check_waiting(key, {"spec": spec.spec, "status": status}, queue, float(second))
    return stage.world.violations


@pytest.fixture
def stage() -> Iterator[Stage]:
    world = World(SEED)
    stage = Stage(draw(SEED), world)
    for namespace, name in stage.workqueues:
        deployment = {"metadata": {}, "spec": {"replicas": 1, "template": {}}}
        stage.cluster.server.put("user", ("deployments", namespace, f"{name}-worker"), deployment)
    yield stage
    world.loop.close()


def test_waiting_message_without_a_named_obstacle_is_a_violation(stage: Stage) -> None:
    violations = _waits(Properties(stage), stage, range(int(NAMED_WITHIN) + 2), obstacle=False)

    assert any(one.startswith("no obstacle is named") for one in violations)


def test_worker_may_connect_again_after_the_obstacle_has_gone(stage: Stage) -> None:
    properties, last = Properties(stage), int(NAMED_WITHIN) + 50
    assert not _waits(properties, stage, range(last), obstacle=True)

    back = range(last, last + int(CONNECTS_WITHIN))

    assert not _waits(properties, stage, back, obstacle=False)
    assert _waits(properties, stage, range(back.stop, back.stop + 2), obstacle=False)
