"""The delivery lease: settled once, and never after it is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pika.exceptions import ChannelWrongStateError

from workqueue.worker.lease import Lease, LeaseState


class Channel:
    """Notes what it is asked for; one that is closing refuses, as pika's does."""

    def __init__(self) -> None:
        self.is_closing = False
        self.asked: list[tuple[str, int]] = []

    def basic_ack(self, delivery_tag: int) -> None:
        self._note("ack", delivery_tag)

    def basic_nack(self, delivery_tag: int, *, requeue: bool) -> None:
        assert requeue
        self._note("nack", delivery_tag)

    def _note(self, what: str, tag: int) -> None:
        if self.is_closing:
            raise ChannelWrongStateError
        self.asked.append((what, tag))


SETTLE: dict[str, tuple[Callable[[Lease], bool], str]] = {
    "acknowledging": (Lease.ack, "ack"),
    "handing back": (Lease.hand_back, "nack"),
}
ENDS: dict[str, tuple[Callable[[Lease], bool], LeaseState]] = {
    "an acknowledgement": (Lease.ack, LeaseState.SETTLED),
    "being handed back": (Lease.hand_back, LeaseState.SETTLED),
    "the loss of its channel": (Lease.lose, LeaseState.LOST),
}


@pytest.mark.parametrize(("settle", "asked"), SETTLE.values(), ids=SETTLE)
def test_lease_is_settled_on_its_own_channel(settle: Callable[[Lease], bool], asked: str) -> None:
    lease = Lease(1, channel := Channel(), 7)
    assert lease.held
    assert settle(lease)
    assert channel.asked == [(asked, 7)]
    assert not lease.held


@pytest.mark.parametrize(("end", "state"), ENDS.values(), ids=ENDS)
def test_lease_is_settled_at_most_once(end: Callable[[Lease], Any], state: LeaseState) -> None:
    lease = Lease(1, channel := Channel(), 7)
    assert end(lease)
    asked = list(channel.asked)
    assert not any(again(lease) for again in (Lease.ack, Lease.hand_back, Lease.lose))
    assert channel.asked == asked
    assert lease.state is state


@pytest.mark.parametrize("settle", [Lease.ack, Lease.hand_back], ids=SETTLE)
def test_lease_is_lost_when_its_channel_refuses_to_settle(settle: Callable[[Lease], bool]) -> None:
    lease = Lease(1, channel := Channel(), 7)
    channel.is_closing = True
    assert not settle(lease)
    assert lease.state is LeaseState.LOST
