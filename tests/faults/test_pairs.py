"""Two faults at once, chosen at random, while messages keep coming and workers work."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

import pytest

from tests.faults.site import BYSTANDER, Site
from tests.support.apiproxy import Fault
from tests.support.kubernetes import kubectl
from tests.support.ledger import Ledger
from tests.support.wait import eventually
from tests.support.workqueues import WorkQueueUnderTest

SEED: Final = random.SystemRandom().randrange(10_000)
PAIRS: Final = 6
MESSAGES: Final = 20
"""As many come while the faults last."""

Injected = Callable[[Site, WorkQueueUnderTest], AbstractContextManager[object]]


def api(fault: Fault) -> Injected:
    return lambda site, _: site.proxy.fault(fault)


@contextmanager
def killed(site: Site, _: WorkQueueUnderTest) -> Iterator[None]:
    site.operator.kill()
    yield
    site.operator.keep_alive()


@contextmanager
def a_worker_dies(site: Site, workqueue: WorkQueueUnderTest) -> Iterator[None]:
    pod = workqueue.pods()[0]["metadata"]["name"]
    kubectl(
        "delete", "pod", pod, "--force", "--grace-period=0", "--wait=false", f"--namespace={site.namespace}"
    )
    yield


@contextmanager
def connections_closed(site: Site, _: WorkQueueUnderTest) -> Iterator[None]:
    site.broker.close_connections(spared=BYSTANDER)
    yield
    site.broker.close_connections(spared=BYSTANDER)


@contextmanager
def marks_refused(site: Site, _: WorkQueueUnderTest) -> Iterator[None]:
    with site.proxy.fault(Fault(lambda asked: asked.write == "merge pods", status=409)):
        yield


FAULTS: Final[dict[str, Injected]] = {
    "API server answers 503": api(Fault(lambda _: True, status=503)),
    "API server answers nothing": api(Fault(lambda _: True, status=0)),
    "API server answers writes with 409": api(Fault(lambda asked: asked.write is not None, status=409)),
    "watches are dropped": api(Fault(lambda asked: asked.watch, refused=True)),
    "reads are stale": api(Fault(lambda asked: asked.write is None, stale=True)),
    "operator killed": killed,
    "operator frozen": lambda site, _: site.operator.frozen(),
    "RabbitMQ unreachable": lambda site, _: site.relay.refusing(),
    "all connections to RabbitMQ closed": connections_closed,
    "worker pod killed": a_worker_dies,
    "pods cannot be marked": marks_refused,
}


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_site_survives_two_simultaneous_faults(place: Site) -> None:
    print(f"seed {SEED}")
    pairs = random.Random(SEED).sample(list(itertools.combinations(FAULTS, 2)), PAIRS)
    for first, second in pairs:
        print(f"{first} + {second}")
        together(place, FAULTS[first], FAULTS[second])


def together(site: Site, first: Injected, second: Injected) -> None:
    ledger = Ledger()
    site.operator.start().wait_serving()
    workqueue = site.ready()
    with site.flowing(workqueue, ledger):
        eventually(lambda: workqueue.status().get("readyReplicas", 0) > 0, 60, "a worker is Ready")
        with first(site, workqueue), second(site, workqueue):
            enough = len(ledger.confirmed) + MESSAGES
            eventually(lambda: len(ledger.confirmed) >= enough, 60, "messages came meanwhile")
        site.operator.keep_alive()
    begun = time.monotonic()
    site.settle(workqueue, ledger)
    seconds = site.wait_converged(lambda: site.asleep(workqueue), begun)
    site.report.ledger("two faults at once, chosen at random", site.broker.version, ledger, seconds)
    workqueue.delete()
    site.operator.kill()
