"""What can happen to RabbitMQ itself: it restarts, crashes, runs full, forgets, and changes its mind about us."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.work import DELAY_QUEUE, QUEUE, Work
from tests.support.wait import eventually
from workqueue.contract.topology import QueueType

KINDS = [QueueType.QUORUM, pytest.param(QueueType.CLASSIC, marks=pytest.mark.nightly)]
RESTARTS = [
    pytest.param("broker restarted", False, marks=pytest.mark.nightly),
    ("broker killed (-9) and started", True),
]


@pytest.mark.parametrize(("fault", "kill"), RESTARTS)
def test_work_survives_broker_restart(work: Work, fault: str, kill: bool) -> None:
    work.declare()
    work.broker.save_queues()
    work.start(2)
    with work.through(fault, within=60):
        work.broker.restart(kill=kill)


@pytest.mark.parametrize("alarm", ["memory", pytest.param("disk", marks=pytest.mark.nightly)])
def test_work_survives_resource_alarm(work: Work, alarm: str, tmp_path: Path) -> None:
    """Who publishes is blocked: acknowledgements pass, copies wait."""
    sign = tmp_path / "sign"
    work.declare()
    work.start(2)
    raised = work.broker.memory_alarm if alarm == "memory" else work.broker.disk_alarm
    with work.through(f"{alarm} alarm", within=60, duplicates=False):
        work.publish(*({"id": f"fails {n}", "do": "fail on sign", "sign": str(sign)} for n in range(4)))
        with raised():
            sign.touch()
            work.await_blocked()
    assert work.lost_leases() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_work_continues_after_queue_is_recreated(work: Work, kind: QueueType) -> None:
    work.declare(kind)
    work.start(2)
    with work.through(f"queue deleted ({kind.value}), declared again", within=60):
        with work.quiet():
            work.delete(QUEUE)
            eventually(lambda: work.consuming == 0)
        work.await_refused(20)
        work.declare(kind)


def test_work_continues_after_virtual_host_is_recreated(work: Work) -> None:
    work.declare()
    work.start(2)
    with work.through("virtual host deleted, made again", within=60):
        with work.quiet():
            work.broker.delete_vhost(work.vhost.name)
            eventually(lambda: work.connected == 0)
        work.broker.add_vhost(work.vhost.name)
        work.declare()


@pytest.mark.nightly
def test_work_continues_after_broker_loses_its_data(work: Work) -> None:
    work.declare()
    work.start(2)
    with work.through("all data wiped, queues declared again", within=60):
        with work.quiet():
            work.broker.wipe()
        work.broker.add_vhost(work.vhost.name)
        work.declare()


def test_work_survives_credential_rotation(work: Work, tmp_path: Path) -> None:
    folder = tmp_path / "binding"
    folder.mkdir()
    work.declare()
    with user_of(work, "old") as name:
        (folder / "uri").write_text(work.broker.url_of(work.vhost.name, name, "old"))
        work.start(2, "--binding", str(folder), url="")
        with work.through("credentials rotated", within=60):
            work.broker.change_password(name, "new")
            work.broker.close_connections()
            eventually(lambda: all("ACCESS_REFUSED" in error for error in work.errors))
            (folder / "uri").write_text(work.broker.url_of(work.vhost.name, name, "new"))


@contextmanager
def user_of(work: Work, password: str = "secret") -> Iterator[str]:
    """A user who may do everything in the virtual host."""
    name = f"user-{work.vhost.name}"
    work.broker.add_user(name, password, work.vhost.name)
    try:
        yield name
    finally:
        work.broker.delete_user(name)


@pytest.mark.nightly
def test_work_resumes_when_virtual_host_access_returns(work: Work) -> None:
    work.declare()
    with user_of(work) as name:
        work.start(2, url=work.broker.url_of(work.vhost.name, name, "secret"))
        with work.through("permission withdrawn: virtual host (403 or 530)", within=60):
            work.broker.forbid(name, work.vhost.name)
            work.broker.close_connections()
            eventually(lambda: work.connected == 0 and all(work.errors))
            work.await_sent(20)
            work.broker.allow(name, work.vhost.name)


@pytest.mark.nightly
def test_work_resumes_when_consume_permission_returns(work: Work) -> None:
    work.declare()
    with user_of(work) as name:
        work.start(2, url=work.broker.url_of(work.vhost.name, name, "secret"))
        with work.through("permission withdrawn: read (403)", within=60):
            work.broker.allow(name, work.vhost.name, read="^$")
            work.broker.close_connections()
            eventually(lambda: all("403" in error for error in work.errors))
            work.await_sent(20)
            work.broker.allow(name, work.vhost.name)


def test_work_resumes_when_publish_permission_returns(work: Work) -> None:
    """A message whose copy is refused stays unacknowledged."""
    work.declare()
    with user_of(work) as name:
        work.start(2, url=work.broker.url_of(work.vhost.name, name, "secret"))
        with work.through("permission withdrawn: write (403)", within=60):
            work.broker.allow(name, work.vhost.name, write="^$")
            work.broker.close_connections()
            eventually(lambda: work.copies_refused > 0)
            work.broker.allow(name, work.vhost.name)


@pytest.mark.nightly
def test_work_survives_conflicting_delay_queue(work: Work) -> None:
    """It is in the way (406): whatever should be tried again waits until it is gone."""
    work.declare()
    work.delete(DELAY_QUEUE)
    work.declare_foreign(DELAY_QUEUE)
    work.start(2)
    with work.through("delay queue declared otherwise (406)", within=60, duplicates=False):
        eventually(lambda: work.copies_refused > 0)
        work.delete(DELAY_QUEUE)
    assert work.lost_leases() == 0


@pytest.mark.slow
def test_work_survives_exceeded_consumer_timeout(work: Work) -> None:
    """RabbitMQ closes the channel before 4.3, and cancels the consumer since."""
    # From 4.3 a worker brings a timeout of its own, unless it takes the queue for a classic one.
    newest = work.broker.series == "4.3"
    work.declare(consumer_timeout_seconds=2 if newest else None)
    with work.broker.consumer_timeout(2):
        work.start(2, *(("--queue-type", "Classic") if newest else ()))
        with work.through("consumer timeout", within=60):
            work.publish(*({"id": f"long {n}", "do": "linger", "seconds": 7} for n in range(2)))
            eventually(lambda: work.lost_leases() >= 2, 30)
