"""The connections to all brokers, when some of the brokers do not answer."""

from __future__ import annotations

import asyncio

import pytest

from workqueue.contract.binding import from_url
from workqueue_operator.broker import connection
from workqueue_operator.broker.confirmed import OwnMessage
from workqueue_operator.broker.connection import Broker
from workqueue_operator.broker.pool import BrokerPool
from workqueue_operator.errors import ReconcileError


class SilentBroker(Broker):
    """A broker that does not confirm that its connection is closed, and one beside it for large messages."""

    waiting = most = 0

    def with_another(self) -> None:
        self._beside = SilentBroker(self.binding, self._on_ring, self._on_removed, self._on_state)

    async def _close_own(self) -> None:
        self._closed = asyncio.get_running_loop().create_future()
        SilentBroker.waiting += 1
        SilentBroker.most = max(SilentBroker.most, SilentBroker.waiting)
        await super()._close_own()
        SilentBroker.waiting -= 1


async def test_silent_brokers_do_not_add_up_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workqueue_operator.broker.pool.Broker", SilentBroker)
    monkeypatch.setattr(connection, "CLOSE_TIMEOUT", 0.01)
    pool = BrokerPool(lambda _: None, lambda _: None, 60, 60)
    for number in range(50):
        key, url = ("team", f"jobs-{number}"), f"amqp://user:secret@127.0.0.1:1/{number}"
        handle = await pool.handle(key, from_url(url))
        assert isinstance(handle.broker, SilentBroker)
        handle.broker.with_another()

    await pool.close()

    # One after the other, they would keep the Lease of a leader that no longer does anything.
    assert SilentBroker.most == 100
    assert SilentBroker.waiting == 0


async def test_closed_broker_opens_no_connection_for_a_late_message() -> None:
    """A recurring message may be about to be published when the last WorkQueue leaves the connection."""
    binding = from_url("amqp://user:secret@127.0.0.1:1/")
    broker = Broker(binding, lambda _: None, lambda _queue, _refusal: None, lambda: None)
    await broker.close()

    with pytest.raises(ReconcileError):
        await broker.publish(OwnMessage("jobs", "jobs/tick/2026-01-01T00:00:00Z", b"", None, {}))
    with pytest.raises(ReconcileError):
        await broker.publish_tokens("jobs.limit.starts", b"1", 1)
    broker._note_size("jobs", connection.LARGE_MESSAGE)
    assert not await broker.install_doorbell("jobs")

    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("broker ")] == []
