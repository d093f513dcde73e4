"""The parts of a start: their order, their errors, and the estimates."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from hack.cluster import commands, kind, lifecycle, packages, plan, toolchain
from hack.cluster.clusters import LocalCluster
from hack.cluster.errors import ClusterError
from hack.cluster.instance import Instance
from hack.cluster.plan import Part
from hack.image import build


def nothing() -> None:
    """Make nothing."""


CHAIN = [
    Part("modules", 60.0, nothing),
    Part("programs", 300.0, nothing, needs=("modules",)),
    Part("image", 80.0, nothing, needs=("packages",)),
    Part("cluster", 10.0, nothing, needs=("programs",)),
]
"""`image` needs a part that is not missing."""


def test_parts_begin_when_the_parts_they_need_are_finished() -> None:
    made: list[str] = []
    both = threading.Barrier(2, timeout=20)

    def part(name: str, *needs: str) -> Part:
        return Part(name, 1.0, lambda: made.append(name), needs)

    beside = [Part(name, 1.0, both.wait) for name in ("left", "right")]
    plan.run([part("last", "middle"), part("middle", "first"), part("first"), *beside])

    assert made == ["first", "middle", "last"]


def test_failure_of_a_part_ends_the_programs_of_the_others() -> None:
    started = threading.Event()

    def endless() -> None:
        started.set()
        commands.run(["sleep", "600"], doing="Waiting")

    def fail() -> None:
        started.wait(20)
        while not commands._running:
            time.sleep(0.01)
        raise ClusterError("The mirror is not reachable.")

    later: list[str] = []
    parts = [
        Part("endless", 1.0, endless),
        Part("broken", 1.0, fail),
        Part("later", 1.0, lambda: later.append("made"), needs=("broken",)),
    ]
    with pytest.raises(ClusterError, match="mirror is not reachable"):
        plan.run(parts)
    assert later == []


def test_estimate_is_the_longest_chain() -> None:
    assert plan.remaining(CHAIN) == 370.0
    assert plan.remaining(CHAIN, ended=["modules"], elapsed={"programs": 100.0}) == 210.0
    assert plan.remaining(CHAIN, ended=["modules", "programs", "cluster"], elapsed={"image": 200.0}) == 0.0
    assert plan.remaining([]) == 0.0


def test_announcement_names_each_part_with_its_duration() -> None:
    first, *lines = plan.announcement(CHAIN)
    assert "4 parts are missing" in first
    assert "about 7 min" in first
    assert [line.split("  ")[1] for line in lines] == ["modules", "programs", "image", "cluster"]
    assert "about 5 min" in lines[1]
    assert lines[1].endswith("after modules")
    assert "after" not in lines[2]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "about 5 s"), (12, "about 20 s"), (90, "about 90 s"), (91, "about 2 min"), (371, "about 7 min")],
)
def test_duration_is_rounded_up(seconds: float, text: str) -> None:
    assert plan.about(seconds) == text


@pytest.fixture
def fresh_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is installed and nothing is in the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    kind.engine.cache_clear()


def parts_of_a_first_start() -> dict[str, Part]:
    return {part.name: part for part in (*lifecycle.parts(), *build._parts(nothing))}


@pytest.mark.usefixtures("fresh_machine")
def test_first_start_fetches_before_it_compiles() -> None:
    parts = parts_of_a_first_start()
    assert parts[toolchain.MODULES_PART].needs == (toolchain.GO_PART,)
    assert parts[toolchain.PROGRAMS_PART].needs == (toolchain.MODULES_PART,)
    assert toolchain.HELM_PART not in parts, "one command compiles it together with Kubernetes"


@pytest.mark.usefixtures("fresh_machine")
def test_first_start_makes_images_while_kubernetes_compiles() -> None:
    parts = parts_of_a_first_start()

    def all_needs(name: str) -> set[str]:
        own = set(parts[name].needs) & set(parts)
        return own.union(*(all_needs(need) for need in own))

    compiled = {toolchain.MODULES_PART, toolchain.PROGRAMS_PART}
    images = set(parts) - compiled - {toolchain.GO_PART, packages.PART}
    assert len(images) == 3
    for image in images:
        assert not all_needs(image) & compiled
        assert packages.PART in all_needs(image)
    slow = max(parts.values(), key=lambda part: part.seconds)
    assert slow.name == toolchain.PROGRAMS_PART
    assert plan.remaining(list(parts.values())) < sum(part.seconds for part in parts.values()) - 150


@pytest.mark.usefixtures("fresh_machine")
def test_finished_parts_are_not_planned(tmp_path: Path) -> None:
    for name in (toolchain.build(), f"helm-{toolchain.HELM}"):
        (tmp_path / "workqueue-operator/bin" / name).mkdir(parents=True)
    assert toolchain.parts() == []
    assert toolchain.MODULES_PART not in parts_of_a_first_start()


@pytest.mark.usefixtures("fresh_machine")
def test_first_start_loads_the_image_when_it_is_built_and_the_cluster_runs() -> None:
    class Recorder(LocalCluster):
        def __init__(self) -> None:
            self.more: list[Part] = []

        def up(self, more: Sequence[Part] = ()) -> None:
            self.more += more

    cluster = Recorder()
    build.build_in(cluster)
    assert set(cluster.more[-1].needs) == {build.PART, plan.CLUSTER}
    assert plan.CLUSTER in {part.name for part in lifecycle._start_parts(Instance("any"))}
