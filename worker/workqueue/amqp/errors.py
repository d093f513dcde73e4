"""Errors of RabbitMQ, and clauses about errors of pika."""

# BrokerError, a WorkerError
# |-- UnreachableError
# |-- DeclareError
# |-- PublishError
# |   |-- Returned
# |   |-- Refused
# |   |-- Unconfirmed
# |   |-- NotSent
# |   |   |-- Unencodable

from __future__ import annotations

import re

import pika.exceptions

from workqueue.contract.errors import WorkerError


class BrokerError(WorkerError):
    """RabbitMQ refused a request, or cannot be reached."""


class UnreachableError(BrokerError):
    """RabbitMQ cannot be reached, or refuses the login."""


class DeclareError(BrokerError):
    """RabbitMQ refused to declare or bind a queue or exchange.

    Attributes:
        name: the queue or exchange.
        code: RabbitMQ's reply code: 406 if it exists with other arguments, 403 without permission.
        advice: what to do about it, or an empty text.
    """

    def __init__(self, name: str, code: int, reason: str, advice: str = "") -> None:
        super().__init__(f"{name} cannot be declared: {code} {reason.rstrip('.')}. {advice}".rstrip())
        self.name = name
        self.code = code
        self.advice = advice


class PublishError(BrokerError):
    """A message was returned as unroutable, refused, or not confirmed.

    Attributes:
        exchange, routing_key: its destination.
        message_id: its id, from the caller or the publisher.
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
    """No queue took the message: the queue does not exist, or no queue is bound with this routing key."""

    _WHAT = "was returned"


class Refused(PublishError):  # noqa: N818 - the protocol's own word
    """RabbitMQ refused the message: a queue for it is full or failed, or its exchange is missing or forbidden."""

    _WHAT = "was refused"


class Unconfirmed(PublishError):  # noqa: N818 - as its siblings
    """RabbitMQ may or may not have stored the message. A retry with the same message id is recognisable."""

    _WHAT = "was not confirmed, so RabbitMQ may or may not have stored it"


class NotSent(PublishError):  # noqa: N818 - as its siblings
    """The message never left this process: it was not connected, or RabbitMQ blocked publishing."""

    _WHAT = "was not sent"


class Unencodable(NotSent):
    """The message cannot be encoded in AMQP: a property has an unsupported type, or all together are too large."""

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
