"""The delivery lease: the right to settle one delivery, once, and only where it came from.

Place in the flow: a slot makes one for each delivery; the runtime settles it when the handler has ended and,
for a retry, when its copy is confirmed. A delivery tag means something only on the channel that brought it.
On another channel, or after a reconnect, the same number is somebody else's message.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from pika.exceptions import AMQPError


class SettlingChannel(Protocol):
    """The two methods of a pika channel that a lease needs."""

    def basic_ack(self, delivery_tag: int) -> None:
        """Say that the message is done."""

    def basic_nack(self, delivery_tag: int, *, requeue: bool) -> None:
        """Give the message back."""


class LeaseState(Enum):
    """A lease begins as HELD and changes at most once."""

    HELD = "held"
    SETTLED = "settled"
    LOST = "lost"


class Lease:
    """(connection generation, channel, delivery tag). Use it only where pika may be touched."""

    __slots__ = ("channel", "generation", "state", "tag")

    def __init__(self, generation: int, channel: SettlingChannel, tag: int) -> None:
        self.generation = generation
        self.channel = channel
        self.tag = tag
        self.state = LeaseState.HELD

    def ack(self) -> bool:
        """Acknowledge, if the delivery is still ours; returns whether it was."""
        if self.state is not LeaseState.HELD:
            return False
        self.state = LeaseState.SETTLED
        try:
            self.channel.basic_ack(self.tag)
        except AMQPError:  # the channel is closing: the broker has taken the message back
            self.state = LeaseState.LOST
            return False
        return True

    def hand_back(self) -> bool:
        """Give the message back to the queue, if the delivery is still ours; returns whether it was."""
        if self.state is not LeaseState.HELD:
            return False
        self.state = LeaseState.SETTLED
        try:
            self.channel.basic_nack(self.tag, requeue=True)
        except AMQPError:
            self.state = LeaseState.LOST
            return False
        return True

    def lose(self) -> bool:
        """The channel is gone, and the broker gives the message to somebody else."""
        if self.state is not LeaseState.HELD:
            return False
        self.state = LeaseState.LOST
        return True

    @property
    def held(self) -> bool:
        """Whether the delivery is still ours to settle."""
        return self.state is LeaseState.HELD
