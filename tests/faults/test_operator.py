"""The operator dies, freezes, doubles and is replaced, while messages are on their way."""

from __future__ import annotations

import json
import random
import secrets
import subprocess
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.site import NOWHERE, Site, second_operator
from tests.support import helm
from tests.support.crash import Point
from tests.support.inside import drain
from tests.support.kubernetes import CHECKOUT, KubectlError, kubectl, temporary_namespace
from tests.support.ledger import Ledger
from tests.support.operators import OperatorRelease
from tests.support.wait import eventually
from tests.support.workqueues import WorkQueueUnderTest

SEED = random.SystemRandom().randrange(10_000)
SHORT = 2
"""Points of each scene in the short form, at random."""

PREVIOUS_CHART = "793a322"
"""The commit whose chart is upgraded from. There is no release yet; the first one takes its place."""


# -- killed between any two writes -----------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """Something that makes the operator write.

    Attributes:
        doing: how the table says it.
        prepare: creates the prerequisites while the operator runs.
        act: begins it.
        holds: whether it has led to where it should.
        after: what is done then, until the ledger has every message.
    """

    doing: str
    prepare: Callable[[Site], WorkQueueUnderTest]
    act: Callable[[Site, WorkQueueUnderTest, Ledger], None]
    holds: Callable[[Site, WorkQueueUnderTest, Ledger], bool]
    after: Callable[[Site, WorkQueueUnderTest, Ledger], object]


def not_applied(site: Site) -> WorkQueueUnderTest:
    return site.workqueue(
        queue={"deletionPolicy": "Delete", "exchange": {"name": "jobs", "routingKeys": ["all"]}},
        worker={"nodeSelector": NOWHERE},
    )


def apply(workqueue: WorkQueueUnderTest) -> None:
    workqueue.apply()


def wakes(site: Site, workqueue: WorkQueueUnderTest, ledger: Ledger) -> None:
    """A message that comes now rings, and waits for its worker."""
    site.publish(workqueue, ledger, 1)
    eventually(lambda: workqueue.replicas() == 1, 30, "the message wakes its queue")
    site.settle(workqueue, ledger)


def drift(site: Site, workqueue: WorkQueueUnderTest, _: Ledger) -> None:
    """A person deletes the queue and sets another image."""
    site.lab.channel.queue_delete(workqueue.name)
    container = {"name": "worker", "image": "theirs:1"}
    patch = json.dumps({"spec": {"template": {"spec": {"containers": [container]}}}})
    where = f"--namespace={site.namespace}"
    kubectl("patch", "deployment", f"{workqueue.name}-worker", where, f"--patch={patch}")


def put_right(site: Site, workqueue: WorkQueueUnderTest, _: object) -> bool:
    container = workqueue.deployment()["spec"]["template"]["spec"]["containers"][0]
    return bool(container["image"] == workqueue.body["spec"]["worker"]["image"]) and site.asleep(workqueue)


def delete_with_a_message(site: Site, workqueue: WorkQueueUnderTest, ledger: Ledger) -> None:
    """The message is in the way until the test takes it out, some time during all this."""
    site.publish(workqueue, ledger, 1)
    workqueue.delete(wait=False)


def gone(site: Site, workqueue: WorkQueueUnderTest, ledger: Ledger) -> bool:
    if not workqueue.exists():
        return site.consumers(workqueue.name) == -1
    with suppress(KubectlError):  # gone since it was asked for
        # Taken once: from then on the queue may go at any moment.
        if ledger.lost and workqueue.condition("Ready")["reason"] == "QueueNotEmpty":
            ledger.read_waiting(drain(site.lab.channel, workqueue.name))
    return False


def asleep(site: Site, workqueue: WorkQueueUnderTest, _: Ledger) -> bool:
    return site.asleep(workqueue)


def all_done_and_asleep(site: Site, workqueue: WorkQueueUnderTest, _: Ledger) -> bool:
    queue = site.lab.channel.queue_declare(workqueue.name, passive=True)
    return not queue.method.message_count and site.asleep(workqueue)


SCENES = [
    Scene("creating a WorkQueue", not_applied, lambda _, made, __: apply(made), asleep, wakes),
    Scene(
        "scaling from 0 to workers and back",
        lambda site: site.ready(),
        lambda site, made, ledger: site.publish(made, ledger, 6, seconds=0.3),
        all_done_and_asleep,
        lambda site, made, ledger: site.settle(made, ledger),
    ),
    Scene(
        "repairing a deleted queue and an edited Deployment",
        lambda site: site.ready(worker={"nodeSelector": NOWHERE}),
        drift,
        put_right,
        wakes,
    ),
    Scene(
        "deleting a WorkQueue and its queues",
        lambda site: site.ready(queue={"deletionPolicy": "DeleteIfEmpty"}, worker={"nodeSelector": NOWHERE}),
        delete_with_a_message,
        gone,
        lambda _, __, ___: None,
    ),
]


def run_scene(site: Site, scene: Scene, enough: int | None = None) -> None:
    """Play it once undisturbed to learn its writes, then once for each point at which the operator dies.

    Args:
        enough: stop when it has died so often; else 70 in 100 points must be reached. Not all can be: how often
            numbers of the status change, say, is a matter of time.
    """
    site.operator.start().wait_serving()
    points = play(site, scene, None)
    print(f"seed {SEED}")
    random.Random(SEED).shuffle(points)
    reached: list[Point] = []
    missed: list[Point] = []
    for point in points:
        (reached if play(site, scene, point) else missed).append(point)
        if len(reached) == enough:
            break
    print(f"died {', '.join(map(str, reached))}; not reached: {', '.join(map(str, missed))}")
    assert points
    assert len(reached) >= (enough or 0.7 * len(points))


def play(site: Site, scene: Scene, point: Point | None) -> list[Point]:
    """One performance.

    Returns:
        Every point of it; with a point to die at that point alone, or nothing when it was not reached.
    """
    ledger = Ledger()
    workqueue = scene.prepare(site)
    if point is None:
        site.crash.disarm()
    else:
        site.crash.arm(point, site.operator.kill)
    scene.act(site, workqueue, ledger)
    begun, seen = time.monotonic(), []
    if point is not None:
        eventually(
            lambda: site.crash.fired.is_set() or scene.holds(site, workqueue, ledger), 60, f"it dies {point}"
        )
        if site.crash.fired.is_set():
            begun, seen = time.monotonic(), [point]
            site.operator.start()
        site.crash.disarm()
    seconds = site.wait_converged(lambda: scene.holds(site, workqueue, ledger), begun)
    if point is None:
        seen = site.crash.points()
    scene.after(site, workqueue, ledger)
    if point is not None and seen:
        fault = f"operator killed between two writes: {scene.doing}"
        site.report.ledger(fault, site.broker.version, ledger, seconds)
    workqueue.delete()
    return seen


BY_DOING = {scene.doing: scene for scene in SCENES}


@pytest.mark.slow
@pytest.mark.parametrize("doing", BY_DOING)
def test_operator_survives_kills_between_some_writes(doing: str, place: Site) -> None:
    run_scene(place, BY_DOING[doing], SHORT)


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("doing", BY_DOING)
def test_operator_survives_kills_around_each_write(doing: str, place: Site) -> None:
    run_scene(place, BY_DOING[doing])


# -- frozen, doubled, restarted --------------------------------------------------------------------


def test_standby_wakes_queues_after_the_leader_is_killed(place: Site, tmp_path: Path) -> None:
    """The standby is connected, but has no doorbell while another process leads."""
    site, ledger = place, Ledger()
    site.operator.start(leader_election=True).wait_serving()
    workqueue = site.ready(worker={"nodeSelector": NOWHERE})
    with second_operator(site, tmp_path, leader_election=True) as (second, _):
        second.start()
        eventually(lambda: "Connected to the broker" in second.tail(), 60, "the standby is warm")
        assert site.consumers(workqueue.queue_name) == 1
        site.operator.leave()
        begun = time.monotonic()

        site.publish(workqueue, ledger, 1)

        eventually(lambda: workqueue.replicas() == 1, 60, "the message wakes its queue")
        seconds = time.monotonic() - begun
        print(f"first wake {seconds:.1f} s after the leader was killed")
        assert second.leads()
        site.settle(workqueue, ledger)
        site.report.ledger("leader killed (-9) beside a warm standby", site.broker.version, ledger, seconds)
        workqueue.delete()


@pytest.mark.slow
def test_leader_frozen_past_its_lease_writes_nothing(place: Site, tmp_path: Path) -> None:
    """It holds the message of a ring until it exits; RabbitMQ then requeues the message."""
    site, ledger = place, Ledger()
    site.operator.start(leader_election=True).wait_serving()
    workqueue = site.ready(worker={"nodeSelector": NOWHERE})
    with second_operator(site, tmp_path, leader_election=True) as (second, _):
        second.start()
        with site.operator.frozen():
            site.publish(workqueue, ledger, 1)
            eventually(second.leads, 40, "the second one leads")
            before = len(site.proxy.seen)
        begun = time.monotonic()
        assert site.operator.process.wait(20) == 3, "it has noticed that it no longer leads"
        writes = [seen for seen in site.proxy.seen[before:] if seen.write and "leases" not in seen.path]
        assert writes == []
        seconds = site.wait_converged(lambda: workqueue.replicas() == 1, begun)
        site.settle(workqueue, ledger)
        site.report.ledger(
            "operator frozen for longer than its Lease, with a ring in hand",
            site.broker.version,
            ledger,
            seconds,
        )
        workqueue.delete()


@pytest.mark.nightly
def test_two_simultaneous_leaders_converge(place: Site, tmp_path: Path) -> None:
    """The writes' own guards have to do."""
    site, ledger = place, Ledger()
    site.operator.start().wait_serving()
    workqueue = site.ready()
    with second_operator(site, tmp_path) as (second, _):
        second.start().wait_serving()
        site.publish(workqueue, ledger, 30, seconds=0.2)
        site.settle(workqueue, ledger)
        seconds = site.wait_converged(lambda: site.converged(workqueue, 0))
        site.report.ledger("two leaders at once", site.broker.version, ledger, seconds)
        workqueue.delete()


@pytest.mark.slow
def test_operator_survives_restarts_under_load(place: Site) -> None:
    site, ledger = place, Ledger()
    site.operator.start().wait_serving()
    workqueue = site.ready()
    with site.flowing(workqueue, ledger):
        for end in (site.operator.stop, site.operator.kill) * 2:
            eventually(lambda: workqueue.status().get("readyReplicas", 0) > 0, 60, "a worker is Ready")
            end()
            site.operator.start().wait_serving()
    begun = time.monotonic()
    site.settle(workqueue, ledger)
    seconds = site.wait_converged(lambda: site.asleep(workqueue), begun)
    site.report.ledger("operator restarted under load", site.broker.version, ledger, seconds)
    workqueue.delete()


# -- upgraded --------------------------------------------------------------------------------------


def chart_of(commit: str, folder: Path) -> Path:
    """The chart as it was."""
    archive = folder / "chart.tar"
    command = ["git", "archive", f"--output={archive}", commit, "charts/workqueue-operator"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"the commit {commit} is needed, which a shallow clone lacks: {done.stderr}"
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return folder / "charts/workqueue-operator"


@pytest.mark.nightly
def test_upgrade_from_previous_chart_keeps_work_in_flight(place: Site, tmp_path: Path) -> None:
    """Both charts with the same image: what changes under way is everything that a chart says."""
    site, ledger = place, Ledger()
    site.operator.leave()
    with temporary_namespace("faults-system", pod_security="restricted") as system:
        release = OperatorRelease(f"faults-{secrets.token_hex(3)}", system, helm.run)
        release.install(chart_of(PREVIOUS_CHART, tmp_path), watchNamespaces=[site.namespace])
        try:
            workqueue = site.ready()
            with site.flowing(workqueue, ledger):
                eventually(lambda: workqueue.status().get("readyReplicas", 0) > 0, 60, "a worker is Ready")
                before = {pod["metadata"]["uid"] for pod in release.pods()}
                release.install(watchNamespaces=[site.namespace], podAnnotations={"upgraded": "yes"})
                eventually(
                    lambda: not before & {pod["metadata"]["uid"] for pod in release.pods()},
                    60,
                    "the old pods are gone",
                )
            begun = time.monotonic()
            site.settle(workqueue, ledger)
            seconds = site.wait_converged(lambda: site.asleep(workqueue), begun)
            fault = "operator upgraded from the previous chart under load"
            site.report.ledger(fault, site.broker.version, ledger, seconds)
            workqueue.delete()
        finally:
            release.uninstall()
