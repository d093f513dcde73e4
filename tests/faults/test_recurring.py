"""Recurring messages, while the leader is killed around their slots and another process takes over."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from tests.faults.site import NOWHERE, OperatorProcess, Site, second_operator
from tests.support.kubernetes import apply, kubectl_json
from tests.support.rabbitmq import VirtualHost
from tests.support.wait import eventually
from tests.support.worker import take_all
from workqueue_operator.api.reasons import Reason

EVERY: Final = 10
WORKQUEUES: Final = 10
ENTRIES: Final = 5
KILLS: Final = 20
AROUND: Final = EVERY / 2
"""Seconds before and after a slot in which the leader is killed: at any moment between two slots."""

TAKEOVER_SECONDS: Final = 180.0
"""Until another process leads and has caught up, and the killed one is back, on a busy machine."""

_AGAIN: Final = re.compile(r"The message (\S+) is published again")


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_leader_killed_around_a_thousand_slots_loses_none(place: Site, tmp_path: Path) -> None:
    """What is published twice is named in an Event."""
    chance = random.Random(11)
    place.operator.start(leader_election=True).wait_serving()
    workqueues = [
        place.lab.workqueue(
            f"tick-{number}",
            replicas=0,
            recurring=[{"name": f"e{entry}", "everySeconds": EVERY} for entry in range(ENTRIES)],
            worker={"nodeSelector": NOWHERE},
        )
        for number in range(WORKQUEUES)
    ]
    apply(*(workqueue.body for workqueue in workqueues))
    wait_published(place, int(time.time()))
    with second_operator(place, tmp_path, leader_election=True) as (second, _):
        second.start()
        operators = [place.operator, second]
        around: set[int] = set()
        while len(around) < KILLS:
            eventually(lambda: all(map(serves, operators)), TAKEOVER_SECONDS)
            wait_published(place, next_slot(time.time()) - EVERY)
            leader = find_leader(operators)
            slot = next_slot(time.time() + AROUND)
            at = slot + chance.uniform(-AROUND, AROUND)
            eventually(lambda at=at: time.time() >= at, 2 * EVERY)
            leader.kill()
            around.add(slot)
            leader.start(leader_election=True)
        find_leader(operators)
        last = next_slot(time.time())
        wait_published(place, last)
    place.operator.kill()

    vhost = VirtualHost(place.broker, place.lab.vhost)
    published = Counter(
        str(properties.message_id) for one in workqueues for properties, _ in take_all(vhost, one.name)
    )
    first = min(around)
    due = {name for slot in range(first, last + 1, EVERY) for name in ids_of(slot)}
    killed_at = {name for slot in around for name in ids_of(slot)}
    again = {found[1] for event in events(place) if (found := _AGAIN.search(event))}
    repeated = {name for name, count in published.items() if count > 1}
    print(f"missing: {sorted(due - set(published))}; twice and unnamed: {sorted(repeated - again)}")
    place.report.row(
        "recurring messages: leader killed (-9) around each slot",
        place.broker.version,
        len(due),
        len(due - set(published)),
        published.total() - len(published),
        len(repeated - again),
        None,
        {
            "slots with a kill": len(killed_at),
            "of them published exactly once": sum(published[name] == 1 for name in killed_at),
            "named in an Event": len(again),
        },
    )
    place.operator.start(leader_election=False)
    for workqueue in workqueues:
        workqueue.delete(wait=False)
    eventually(lambda: not any(workqueue.exists() for workqueue in workqueues), TAKEOVER_SECONDS)


def serves(operator: OperatorProcess) -> bool:
    """Whether a process is ready. One that has lost its Lease on a busy machine has ended, and starts again."""
    if operator.process.poll() is not None:
        operator.start(leader_election=True)
    with suppress(OSError, AssertionError):
        return operator.get("/readyz") != ""
    return False


def find_leader(operators: list[OperatorProcess]) -> OperatorProcess:
    return eventually(lambda: next((one for one in operators if one.leads()), None), TAKEOVER_SECONDS)


def wait_published(place: Site, slot: int) -> None:
    """Wait until each WorkQueue has recorded that the message of a slot was published."""
    wanted = f"{moment(slot):%Y-%m-%dT%H:%M:%SZ}"

    def are_published() -> bool:
        found = kubectl_json("get", "wq", f"--namespace={place.namespace}")["items"]
        recorded = [entry for one in found for entry in one.get("status", {}).get("recurring", ())]
        published = [entry for entry in recorded if entry.get("published", "") >= wanted]
        return len(published) == WORKQUEUES * ENTRIES

    eventually(are_published, TAKEOVER_SECONDS)


def next_slot(after: float) -> int:
    return (int(after) // EVERY + 1) * EVERY


def moment(slot: int) -> datetime:
    return datetime.fromtimestamp(slot, UTC)


def ids_of(slot: int) -> list[str]:
    """The ids of all messages of one slot."""
    return [
        f"tick-{number}/e{entry}/{moment(slot):%Y-%m-%dT%H:%M:%SZ}"
        for number in range(WORKQUEUES)
        for entry in range(ENTRIES)
    ]


def events(place: Site) -> list[str]:
    """The messages of the Events about uncertain slots."""
    where = f"--namespace={place.namespace}"
    found = kubectl_json("get", "events", where, f"--field-selector=reason={Reason.RECURRING_UNCERTAIN}")
    return [event["message"] for event in found["items"]]
