"""The delivery lease: the right to settle one delivery, once, on the channel that brought it.

A delivery tag is valid on its channel only. On another channel, or after a reconnect, the same number means another
message.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from pika.exceptions import AMQPError


class SettlingChannel(Protocol):
    """The two methods of a pika channel that a lease needs."""

    def basic_ack(self, delivery_tag: int) -> None:
        """Acknowledge the message."""

    def basic_nack(self, delivery_tag: int, *, requeue: bool) -> None:
        """Requeue the message."""


class LeaseState(Enum):
    """A lease starts as HELD and changes at most once, except when the channel refuses to settle it."""

    HELD = "held"
    SETTLED = "settled"
    LOST = "lost"


class Lease:
    """Connection generation, channel and delivery tag. Use it under the lock of the connection."""

    __slots__ = ("channel", "generation", "state", "tag")

    def __init__(self, generation: int, channel: SettlingChannel, tag: int) -> None:
        self.generation = generation
        self.channel = channel
        self.tag = tag
        self.state = LeaseState.HELD

    def ack(self) -> bool:
        """Acknowledge the message if the lease is held; return whether it was."""
        if self.state is not LeaseState.HELD:
            return False
        self.state = LeaseState.SETTLED
        try:
            self.channel.basic_ack(self.tag)
        except AMQPError:  # the channel is closing, and RabbitMQ has requeued the message
            self.state = LeaseState.LOST
            return False
        return True

    def hand_back(self) -> bool:
        """Requeue the message if the lease is held; return whether it was."""
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
        """Note that the channel is closed and RabbitMQ redelivers the message; return whether the lease was held."""
        if self.state is not LeaseState.HELD:
            return False
        self.state = LeaseState.LOST
        return True

    @property
    def held(self) -> bool:
        """Whether the delivery may still be settled."""
        return self.state is LeaseState.HELD
