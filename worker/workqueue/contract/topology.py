"""The queues of a WorkQueue: their names, arguments and order of declaration.

A work queue `jobs` has

    jobs              the messages to process
    jobs.dead         messages that were given up, with the reason in their headers
    jobs.retry.10s    messages that wait ten seconds before they return; one queue per delay, since only the head of a
                      queue can expire
    jobs.retry.10s.p7 the same for retries of messages with the priority 7

Only arguments that differ from RabbitMQ's defaults are sent. An argument that repeats a default still makes the
declaration differ from one without it (406 PRECONDITION_FAILED).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias

ArgumentValue: TypeAlias = str | int | bool
Arguments: TypeAlias = Mapping[str, ArgumentValue]

WAKE_ALLOWANCE: Final = 20
"""Deliveries that RabbitMQ allows a message in addition to the limit that the user sets.

The worker enforces the exact limit. RabbitMQ's own is higher, because before 4.3 each nack of the doorbell
counts as a delivery. The number is the same on every version, so that an upgrade of the broker does not
change the declaration.
"""

DEFAULT_DELIVERY_LIMIT: Final = 10
"""How often a message may come back without an answer, unless the user sets another limit."""

DEFAULT_RETRY_DELAYS: Final = (1, 10, 60)
"""Seconds before the second attempt, the third, and all later ones, unless the user sets others."""

FACTORS: Final = range(2, 11)
"""By what a backoff may grow."""

DEFAULT_MAX_AGE_SECONDS: Final = 86_400
"""How long after its first attempt a message may be retried without counting the attempt."""

UNLIMITED_DELIVERIES: Final = 2_000_000_000
"""A delivery limit that means no limit.

From RabbitMQ 4.0, a quorum queue without a limit drops a message after 20 returns, so that looking at a dead letter
21 times would lose it. -1 means unlimited from 4.0, but on 3.10 it drops the message at the first return. This number
works on every version (tried on 3.10, 4.0 and 4.3).
"""


_MINUTES: Final = tuple(60 * minutes for minutes in (1, 2, 5, 10, 20, 30))
_HOURS: Final = tuple(3600 * hours for hours in (1, 2, 4, 8, 12, 24))

DELAY_STEPS: Final = (1, 2, 5, 10, 20, 30, *_MINUTES, *_HOURS)
"""Seconds of the delay queues for delays that handlers and publishers ask for. A few queues serve all delays."""

LONGEST_DELAY_SECONDS: Final = DELAY_STEPS[-1]

LONGEST_NAME_BYTES: Final = 255
"""Of a queue in AMQP."""

HIGHEST_ORDERED_PRIORITY: Final = 31
"""A quorum queue orders higher priorities as this one (RabbitMQ 4.3)."""


class QueueType(StrEnum):
    """The queue types that can hold work."""

    QUORUM = "Quorum"
    CLASSIC = "Classic"


class ExchangeType(StrEnum):
    """The exchange types that a WorkQueue can declare."""

    DIRECT = "Direct"
    TOPIC = "Topic"
    FANOUT = "Fanout"
    HEADERS = "Headers"


class Jitter(StrEnum):
    """Which of its delays a retry takes."""

    NONE = "None"
    """The delay of the attempt."""
    FULL = "Full"
    """At random one of the delays up to that of the attempt."""


class RetryBackoff(NamedTuple):
    """Delays that grow by a factor up to a maximum. Jitter chooses among them, so that it needs no more delay queues.

    Attributes:
        factor: at least 2, so that there are at most 18 delays.
    """

    initial_seconds: int = 1
    factor: int = 2
    max_seconds: int = 3600
    jitter: Jitter = Jitter.NONE

    @property
    def delays_seconds(self) -> tuple[int, ...]:
        """The delays after the first attempt, the second, and so on. The last one repeats."""
        delays = [self.initial_seconds]
        while delays[-1] < self.max_seconds:
            delays.append(min(delays[-1] * self.factor, self.max_seconds))
        return tuple(delays)

    @classmethod
    def parse(cls, text: str) -> RetryBackoff:
        """Read `initialSeconds=1,factor=2,maxSeconds=3600,jitter=Full`. Each part is optional.

        Raises:
            ValueError: what the text must be.
        """
        parts = dict(part.strip().partition("=")[::2] for part in text.split(","))
        numbers = {key: parts.pop(key) for key in ("initialSeconds", "factor", "maxSeconds") if key in parts}
        jitters = {kind.lower(): kind for kind in Jitter}
        jitter = jitters.get(parts.pop("jitter", Jitter.NONE).lower())
        if parts or jitter is None or not all(number.isdecimal() for number in numbers.values()):
            raise ValueError(
                "like initialSeconds=1,factor=2,maxSeconds=3600,jitter=Full, with jitter None or Full"
            )
        default = cls()
        backoff = cls(
            int(numbers.get("initialSeconds", default.initial_seconds)),
            int(numbers.get("factor", default.factor)),
            int(numbers.get("maxSeconds", default.max_seconds)),
            jitter,
        )
        if not 1 <= backoff.initial_seconds <= backoff.max_seconds <= LONGEST_DELAY_SECONDS:
            raise ValueError(
                "such that initialSeconds is at least 1, and maxSeconds from initialSeconds to "
                f"{LONGEST_DELAY_SECONDS}"
            )
        if not FACTORS.start <= backoff.factor < FACTORS.stop:
            raise ValueError(f"such that factor is from {FACTORS.start} to {FACTORS.stop - 1}")
        return backoff

    def __str__(self) -> str:
        return (
            f"initialSeconds={self.initial_seconds},factor={self.factor},maxSeconds={self.max_seconds},"
            f"jitter={self.jitter}"
        )


class PriorityOrder(StrEnum):
    """How a quorum queue orders its messages by priority."""

    IGNORED = "Ignored"
    TWO_CLASSES = "TwoClasses"
    """Two messages with a priority from 5 for each other one, while both wait."""
    STRICT = "Strict"
    """Higher ones first, from 0 to 31. A higher priority counts as 31, and none as 4."""


class BrokerVersion(NamedTuple):
    """RabbitMQ's version, from its server properties. Behaviour depends on these two numbers only."""

    major: int
    minor: int

    @classmethod
    def parse(cls, text: str) -> BrokerVersion:
        """Read `4.0.5`, `3.10.8` or `4.3.0-rc.1`; another text counts as the oldest supported version."""
        found = re.match(r"(\d+)\.(\d+)", text)
        return cls(int(found[1]), int(found[2])) if found else cls(3, 10)

    @property
    def nack_counts_as_delivery(self) -> bool:
        """Whether nack(requeue) moves a message towards its delivery limit (tried: through 4.2)."""
        return self < BrokerVersion(4, 3)

    @property
    def priority_order(self) -> PriorityOrder:
        """How quorum queues order messages (tried on 3.10, 4.0 and 4.3). Our classic queues ignore priorities."""
        if self >= BrokerVersion(4, 3):
            return PriorityOrder.STRICT
        return PriorityOrder.TWO_CLASSES if self >= BrokerVersion(4, 0) else PriorityOrder.IGNORED

    @property
    def consumer_timeout_as_consumer_argument(self) -> bool:
        """Whether a consumer of a quorum queue may set its own timeout (tried: from 4.3)."""
        return self >= BrokerVersion(4, 3)


class Exchange(NamedTuple):
    """A durable exchange to declare, and the routing keys that bind the work queue to it."""

    name: str
    type: ExchangeType = ExchangeType.DIRECT
    routing_keys: tuple[str, ...] = ()


class QueueSettings(NamedTuple):
    """The user's settings of a work queue. None leaves a setting to RabbitMQ.

    Units: seconds where the name says so, bytes for `max_length_bytes`, messages for `max_length`.

    Attributes:
        bindings: in addition to those of `exchange`, to exchanges that exist.
        dead_letter_queue: a queue that exists and takes the dead letters, instead of one that is declared.
    """

    name: str
    type: QueueType = QueueType.QUORUM
    exchange: Exchange | None = None
    bindings: tuple[QueueBinding, ...] = ()
    max_length: int | None = None
    max_length_bytes: int | None = None
    message_ttl_seconds: int | None = None
    delivery_limit: int | None = None
    single_active_consumer: bool = False
    consumer_timeout_seconds: int | None = None
    dead_letter_queue: str | None = None

    @property
    def dead_letter_queue_name(self) -> str:
        """The queue that takes the dead letters."""
        return self.dead_letter_queue or dead_letter_queue_name(self.name)


class Queue(NamedTuple):
    """One durable queue: its name and exactly the arguments to declare it with."""

    name: str
    arguments: Arguments = MappingProxyType({})


class QueueBinding(NamedTuple):
    """A binding of a queue to an exchange.

    Attributes:
        arguments: for an exchange of the type Headers, by name.
    """

    exchange: str
    queue: str
    routing_key: str
    arguments: tuple[tuple[str, ArgumentValue], ...] = ()


class Plan(NamedTuple):
    """Everything to declare for one work queue, with `queues` in the order of declaration.

    The dead-letter queue comes first: dead-lettering to a missing queue stalls without an error.

    Attributes:
        required: queues that must exist before anything is declared.
    """

    queues: tuple[Queue, ...]
    exchange: Exchange | None
    bindings: tuple[QueueBinding, ...]
    required: tuple[str, ...] = ()

    def declares(self, exchange: str) -> bool:
        """Return whether the plan declares this exchange. The others must exist."""
        return self.exchange is not None and self.exchange.name == exchange


def dead_letter_queue_name(queue: str) -> str:
    """Return the name of a work queue's dead-letter queue."""
    return f"{queue}.dead"


def delay_queue_name(queue: str, seconds: int, priority: int | None = None) -> str:
    """Return the name of a work queue's delay queue for one delay in whole seconds.

    Each priority has its own. In a common queue a newer message with a higher priority would become the head, and the
    older ones would be late.

    Args:
        priority: of the messages. What RabbitMQ does not tell apart shares a queue.
    """
    name = f"{queue}.retry.{seconds}s"
    if priority is None:
        return name
    of_priority = f"{name}.p{min(priority, HIGHEST_ORDERED_PRIORITY)}"
    return of_priority if len(of_priority.encode()) <= LONGEST_NAME_BYTES else name


def is_delay_queue(name: str, queue: str) -> bool:
    """Whether `name` is a delay queue of the work queue `queue`."""
    return delay_seconds(name, queue) is not None or is_priority_delay_queue(name, queue)


def is_priority_delay_queue(name: str, queue: str) -> bool:
    """Whether `name` is a delay queue of the work queue `queue` for one priority."""
    return re.fullmatch(re.escape(queue) + r"\.retry\.\d{1,5}s\.p\d{1,2}", name) is not None


def delay_seconds(name: str, queue: str) -> int | None:
    """Return the delay of a delay queue of the work queue `queue`; None if `name` is none, or one for a priority."""
    found = re.fullmatch(re.escape(queue) + r"\.retry\.(\d+)s", name)
    return int(found[1]) if found else None


def delay_step(seconds: float) -> int:
    """Return the shortest delay of a delay queue, in seconds, that is at least `seconds`, up to one day."""
    return next((step for step in DELAY_STEPS if step >= seconds), LONGEST_DELAY_SECONDS)


def dead_letter_queue(queue: str) -> Queue:
    """Return the declaration of the dead-letter queue: quorum, without limits, so that RabbitMQ drops no message."""
    return Queue(
        dead_letter_queue_name(queue),
        {"x-queue-type": "quorum", "x-delivery-limit": UNLIMITED_DELIVERIES},
    )


def delay_queue(queue: str, seconds: int, priority: int | None = None) -> Queue:
    """Return the declaration of a delay queue, whose messages return to `queue` after `seconds`.

    Always quorum with at-least-once dead-lettering, also for a classic work queue: a classic delay queue
    loses every message whose target is missing at expiry (tried on 3.10, 4.0 and 4.3).
    """
    return Queue(
        delay_queue_name(queue, seconds, priority),
        {
            "x-queue-type": "quorum",
            "x-message-ttl": seconds * 1000,
            **_dead_letter_to(queue),
            **_AT_LEAST_ONCE,
        },
    )


def conflict_advice(queue: str) -> str:
    """Return what to do when RabbitMQ answers 406 because `queue` exists with other arguments."""
    if queue.endswith(".dead") or re.search(r"\.retry\.\d+s(\.p\d+)?$", queue):
        return f"Delete {queue!r} when it is empty. It is then declared again."
    return (
        f"If a publisher declares {queue!r} without arguments, use the queue type Classic without limits and TTL, "
        "or let the publisher skip the declaration or declare the queue passively."
    )


def work_queue(settings: QueueSettings) -> Queue:
    """Return the declaration of the work queue itself."""
    return Queue(settings.name, dict(_work_queue_arguments(settings)))


def plan(settings: QueueSettings) -> Plan:
    """Return everything that must exist before a message is published to the work queue."""
    exchange = settings.exchange
    bindings: tuple[QueueBinding, ...] = ()
    if exchange is not None and exchange.type is not ExchangeType.HEADERS:
        keys = exchange.routing_keys or ("" if exchange.type is ExchangeType.FANOUT else settings.name,)
        bindings = tuple(QueueBinding(exchange.name, settings.name, key) for key in keys)
    bindings = tuple(dict.fromkeys((*bindings, *settings.bindings)))
    if settings.dead_letter_queue is not None:
        return Plan((work_queue(settings),), exchange, bindings, (settings.dead_letter_queue,))
    return Plan((dead_letter_queue(settings.name), work_queue(settings)), exchange, bindings)


_AT_LEAST_ONCE: Final[Arguments] = {
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}


def _dead_letter_to(queue: str) -> Arguments:
    return {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue}


def _work_queue_arguments(settings: QueueSettings) -> Iterator[tuple[str, ArgumentValue]]:
    limits = (settings.max_length, settings.max_length_bytes, settings.message_ttl_seconds)
    if settings.type is QueueType.QUORUM or any(limit is not None for limit in limits):
        # A Classic queue without limits has no arguments at all. Publishers that declare the queue the way
        # tutorials do, `queue_declare("hello", durable=True)`, would otherwise fail with 406. The worker
        # publishes retries and dead letters itself, so it does not need these arguments.
        yield from _dead_letter_to(settings.dead_letter_queue_name).items()
    if settings.type is QueueType.QUORUM:
        yield "x-queue-type", "quorum"
        yield from _AT_LEAST_ONCE.items()
        yield "x-delivery-limit", (settings.delivery_limit or DEFAULT_DELIVERY_LIMIT) + WAKE_ALLOWANCE
        if settings.consumer_timeout_seconds is not None:
            # RabbitMQ 4.3 refuses it on a classic queue (406), which has no consumer timeout there.
            yield "x-consumer-timeout", settings.consumer_timeout_seconds * 1000
    elif settings.max_length is not None or settings.max_length_bytes is not None:
        # The default, drop-head, drops messages that were already confirmed to their publisher.
        yield "x-overflow", "reject-publish"
    if settings.max_length is not None:
        yield "x-max-length", settings.max_length
    if settings.max_length_bytes is not None:
        yield "x-max-length-bytes", settings.max_length_bytes
    if settings.message_ttl_seconds is not None:
        yield "x-message-ttl", settings.message_ttl_seconds * 1000
    if settings.single_active_consumer:
        yield "x-single-active-consumer", True
