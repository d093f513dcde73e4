"""The API server refuses, is slow, silent, gone, or behind the times, while a message rings and a spec changes.

What is looked at is what the operator does: its pods find no node, and messages wait.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.faults.site import NOWHERE, Site, release_all
from tests.support.apiproxy import Fault, Request
from tests.support.kubernetes import kubectl
from tests.support.ledger import Ledger
from tests.support.wait import eventually
from tests.support.workqueues import WorkQueueUnderTest

EXPIRED = {
    "type": "ERROR",
    "object": {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410},
}
"""The API server's response to a watch from a version that is too old."""


def everything(_: Request) -> bool:
    return True


def is_write(request: Request) -> bool:
    return request.write is not None


def is_read(request: Request) -> bool:
    return request.write is None


def is_watch(request: Request) -> bool:
    return request.watch


@dataclass(frozen=True)
class Trouble:
    """What the API server does to the operator.

    Attributes:
        seconds: how long at least.
        asked: how many requests must have met it, or it would prove nothing.
    """

    fault: Fault
    seconds: float = 3.0
    asked: int = 3


TROUBLES = {
    "refuses connections": Trouble(Fault(everything, refused=True)),
    "refuses connections for 20 s, as in a restart": Trouble(Fault(everything, refused=True), 20),
    "answers nothing (black hole)": Trouble(Fault(everything, status=0), 10, 1),
    "answers each request 2 s late": Trouble(Fault(everything, delay=2.0)),
    "drops every watch": Trouble(Fault(is_watch, refused=True)),
    "has forgotten what a watch asks for (410)": Trouble(Fault(is_watch, event=EXPIRED)),
    "answers LISTs and watches from the past": Trouble(Fault(is_read, stale=True), asked=1),
    "answers 401": Trouble(Fault(everything, status=401)),
    "answers writes with 401": Trouble(Fault(is_write, status=401)),
    "answers 403": Trouble(Fault(everything, status=403)),
    "answers writes with 403": Trouble(Fault(is_write, status=403)),
    "answers writes with 404": Trouble(Fault(is_write, status=404)),
    "answers writes with 409": Trouble(Fault(is_write, status=409)),
    "answers writes with 422": Trouble(Fault(is_write, status=422)),
    "answers 429": Trouble(Fault(everything, status=429, headers=(("Retry-After", "1"),))),
    "answers 500": Trouble(Fault(everything, status=500)),
    "answers 503": Trouble(Fault(everything, status=503)),
}
SLOW = {"refuses connections", "answers 401", "answers writes with 409"}


def row(name: str) -> object:
    marks = pytest.mark.slow if name in SLOW else pytest.mark.nightly
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", [row(name) for name in TROUBLES])
def test_operator_recovers_from_api_server_fault(name: str, place: Site) -> None:
    """A message comes and another WorkQueue is made meanwhile; both are served once the fault is over."""
    site, problem, ledger = place, TROUBLES[name], Ledger()
    site.operator.start().wait_serving()
    restarts = site.operator.restarts
    workqueue = site.ready(worker={"nodeSelector": NOWHERE})
    later = site.workqueue(worker={"nodeSelector": NOWHERE})
    with meeting(site, problem):
        site.publish(workqueue, ledger, 3)
        later.apply()
    begun = time.monotonic()
    seconds = site.wait_converged(lambda: workqueue.replicas() >= 1 and site.asleep(later), begun)
    site.settle(workqueue, ledger)
    assert site.operator.restarts == restarts, "no fault of the API server ends the operator"
    site.report.ledger(f"API server {name}", site.broker.version, ledger, seconds)
    workqueue.delete()
    later.delete()


@contextmanager
def meeting(site: Site, problem: Trouble) -> Iterator[None]:
    """The fault begins before the body and ends some time after it, when the operator has met it."""
    met = 0

    def applies(request: Request) -> bool:
        nonlocal met
        hit = problem.fault.applies(request)
        met += hit
        return hit

    fault = Fault(**{**vars(problem.fault), "applies": applies})
    until = time.monotonic() + problem.seconds

    def over() -> bool:
        site.operator.keep_alive()
        return time.monotonic() >= until and met >= problem.asked

    with site.proxy.fault(fault):
        site.proxy.cut_watches()
        yield
        eventually(over, 60, "the operator has met the fault")


# -- nothing destructive from stale data -----------------------------------------------------------


def keep_the_past(site: Site, workqueue: WorkQueueUnderTest) -> None:
    """Have the proxy remember how things are, by an operator that looks and can do nothing."""
    passive = Fault(lambda asked: is_write(asked) or asks_for(workqueue, asked), status=503)
    with site.proxy.fault(passive):
        before = len(site.proxy.seen)
        site.operator.start()
        eventually(lambda: sum(map(is_watch, site.proxy.seen[before:])) >= 3, 30, "it has listed and watches")
        site.operator.kill()


def asks_for(workqueue: WorkQueueUnderTest, asked: Request) -> bool:
    return asked.path.endswith(f"/workqueues/{workqueue.name}")


@pytest.mark.slow
def test_stale_workqueue_does_not_cause_queue_deletion(place: Site) -> None:
    """In the past a WorkQueue with deletionPolicy Delete is being deleted; today another one has its name."""
    site, ledger = place, Ledger()
    site.operator.start().wait_serving()
    workqueue = site.ready(queue={"deletionPolicy": "Delete"}, worker={"nodeSelector": NOWHERE})
    site.operator.kill()
    workqueue.delete(wait=False)
    keep_the_past(site, workqueue)
    release_all(site.namespace)
    eventually(lambda: not workqueue.exists(), 20, "the old one is gone")
    workqueue.apply()
    site.publish(workqueue, ledger, 2)
    with site.proxy.fault(Fault(is_read, stale=True)):
        before = len(site.proxy.seen)
        site.operator.start()
        looked = lambda: sum(asks_for(workqueue, asked) for asked in site.proxy.seen[before:])  # noqa: E731
        eventually(lambda: looked() >= 2, 30, "it has asked for the present one, and again")
        assert site.consumers(workqueue.name) >= 0, "the queue is there"
    begun = time.monotonic()
    seconds = site.wait_converged(lambda: workqueue.replicas() >= 1, begun)
    site.settle(workqueue, ledger)
    fault = "stale reads after a restart: a WorkQueue that was deleted and made again"
    site.report.ledger(fault, site.broker.version, ledger, seconds)
    workqueue.delete()


@pytest.mark.nightly
def test_stale_count_is_no_base_for_scaling(place: Site) -> None:
    """In the past there was one worker with nothing to do; today a person has set three."""
    site, ledger = place, Ledger()
    site.operator.start().wait_serving()
    workqueue = site.ready(
        worker={"nodeSelector": NOWHERE}, scaling={"scaleInDelaySeconds": 0, "messagesPerReplica": 1}
    )
    site.operator.kill()
    scale = ("scale", f"deployment/{workqueue.name}-worker", f"--namespace={site.namespace}")
    kubectl(*scale, "--replicas=1")
    eventually(workqueue.pods, 20, "there is a pod")
    keep_the_past(site, workqueue)
    kubectl(*scale, "--replicas=3")
    with site.proxy.fault(Fault(is_read, stale=True)):
        before = len(site.proxy.seen)
        site.operator.start()

        def passes() -> bool:
            return any(asked.write == "apply workqueues/status" for asked in site.proxy.seen[before:])

        eventually(passes, 30, "a pass went through to its end")
        assert workqueue.replicas() == 3, "three stay"
    site.publish(workqueue, ledger, 3)
    begun = time.monotonic()
    # Not Ready: no node takes its pod.
    seconds = site.wait_converged(lambda: workqueue.replicas() == 3, begun)
    site.settle(workqueue, ledger)
    fault = "stale reads after a restart: a count that was changed since"
    site.report.ledger(fault, site.broker.version, ledger, seconds)
    workqueue.delete()
