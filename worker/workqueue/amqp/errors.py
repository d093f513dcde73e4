"""The errors of RabbitMQ, and how pika's errors become sentences."""

# BrokerError, a WorkerError
# |-- UnreachableError
# |-- DeclareError
# |-- PublishError
# |   |-- Returned
# |   |-- Nacked
# |   |-- Unconfirmed
# |   |-- NotSent
# |   |   |-- Unencodable

from __future__ import annotations

import re

import pika.exceptions

from workqueue.contract.errors import WorkerError


class BrokerError(WorkerError):
    """RabbitMQ refused something, or cannot be reached."""


class UnreachableError(BrokerError):
    """RabbitMQ cannot be reached, or does not let us in."""


class DeclareError(BrokerError):
    """RabbitMQ refused to declare or bind something.

    Attributes:
        name: the queue or exchange.
        code: RabbitMQ's reply code: 406 when it exists with other arguments, 403 when we may not.
        advice: what to do about it; empty when nothing is known.
    """

    def __init__(self, name: str, code: int, reason: str, advice: str = "") -> None:
        super().__init__(f"{name} cannot be declared: {code} {reason.rstrip('.')}. {advice}".rstrip())
        self.name = name
        self.code = code
        self.advice = advice


class PublishError(BrokerError):
    """A message was not accepted: it was returned as unroutable, refused, or never confirmed.

    Attributes:
        exchange, routing_key: where it was to go.
        message_id: its id, also when the publisher gave it one.
        reason: why, as a clause.
    """

    _WHAT = "was not published"

    def __init__(self, exchange: str, routing_key: str, message_id: str, reason: str) -> None:
        place = (
            f"exchange {exchange!r} with routing key {routing_key!r}" if exchange else f"queue {routing_key}"
        )
        super().__init__(f"Message {message_id} to {place} {self._WHAT}: {reason}.")
        self.exchange = exchange
        self.routing_key = routing_key
        self.message_id = message_id
        self.reason = reason


class Returned(PublishError):  # noqa: N818 - the protocol's own word
    """No queue took the message: the queue does not exist, or nothing is bound with its routing key."""

    _WHAT = "was returned"


class Nacked(PublishError):  # noqa: N818 - the protocol's own word
    """RabbitMQ refused the message: a queue that would have got it is full, or failed."""

    _WHAT = "was refused"


class Unconfirmed(PublishError):  # noqa: N818 - as its siblings
    """Nobody knows whether RabbitMQ has the message. A retry with the same message id is recognisable."""

    _WHAT = "was not confirmed and may be there or not"


class NotSent(PublishError):  # noqa: N818 - as its siblings
    """The message never left this process: it was not connected, or RabbitMQ takes no messages for now."""

    _WHAT = "was not sent"


class Unencodable(NotSent):
    """The message cannot be written as AMQP: a property has no form there, or all of them are too much."""

    _WHAT = "cannot be sent"


def describe(error: BaseException | None) -> str:
    """Return one clause about an error of pika or the system, in the words of RabbitMQ or of the system.

    Many errors of pika have an empty `str()` or hide the cause in an attribute.
    """
    if error is None:
        return "unknown"
    if isinstance(error, (pika.exceptions.ConnectionClosed, pika.exceptions.ChannelClosed)):
        return f"{error.reply_code} {error.reply_text}"
    inner = getattr(error, "exceptions", None) or error.args
    causes = [cause for cause in inner if isinstance(cause, BaseException)]
    if causes:
        return describe(causes[-1])
    nested = getattr(error, "exception", None)
    if isinstance(nested, BaseException):
        return describe(nested)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error)
    # pika guesses why the broker closed the connection, and keeps the broker's reply only as text.
    reply = re.fullmatch(r"ConnectionClosedByBroker: \((\d+)\) (['\"])(.*)\2", text)
    return f"{reply[1]} {reply[3]}" if reply else text or type(error).__name__
