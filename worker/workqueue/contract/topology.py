"""The queues of a WorkQueue: their names, arguments and order of declaration.

A work queue `jobs` has

    jobs                  the messages to process
    jobs.dead             messages that were given up, with the reason in their headers
    jobs.retry.step.8s    messages that wait for eight seconds, as a part of their delay
    jobs.retry.high.8s    the same for messages with a high priority
    jobs.retry.last       messages whose delay has passed, on their way to the work queue
    jobs.limit.handlers   one token for each handler that may run at the same time, if there is a limit
    jobs.cancels          a stream of the ids of cancelled messages, from the first one that was cancelled
    jobs.limit.starts     tokens for handlers that may start now, if there is a limit per second

A delay is a sum of steps, each a power of two (docs/adr/0016-exact-delays.md).

Only arguments that differ from RabbitMQ's defaults are sent. An argument that repeats a default still makes the
declaration differ from one without it (406 PRECONDITION_FAILED).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from functools import cache
from itertools import pairwise
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


LONGEST_QUEUE_NAME_BYTES: Final = 230
"""Of a work queue. AMQP allows 255, and names that follow from it are up to 25 longer."""

LONGEST_DELAY_SECONDS: Final = 30 * 86_400

CANCEL_SECONDS: Final = LONGEST_DELAY_SECONDS + 86_400
"""How long a message stays cancelled: longer than any delay, so that a delayed message is still cancelled when it
arrives."""

CANCELS_BYTES: Final = 2_000_000
CANCELS_SEGMENT_BYTES: Final = 500_000
"""The size of the stream of cancels. RabbitMQ removes whole segments, when it starts a new one."""

STEPS_MILLISECONDS: Final = tuple(500 << power for power in range(23))
"""The steps of delays: powers of two, so that each delay is a sum of different steps. It is rounded up to 0.5 s."""

HIGH_STEPS: Final = 16
"""How many of these steps there are for messages with a high priority, so that a work queue has at most 40 delay
queues. They are enough for 9 hours."""

HIGH_PRIORITY: Final = 5
"""From this priority on, RabbitMQ 4.0 to 4.2 puts messages into the second of the two classes of a quorum queue."""

_MINUTES: Final = tuple(60 * minutes for minutes in (1, 2, 5, 10, 20, 30))
_HOURS: Final = tuple(3600 * hours for hours in (1, 2, 4, 8, 12, 24))

EARLIER_DELAYS_SECONDS: Final = (1, 2, 5, 10, 20, 30, *_MINUTES, *_HOURS)
"""Delays for which earlier releases declared a delay queue each, in addition to those of `retry`. Messages stay in
such a queue until they expire."""


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
    """Delays that grow by a factor up to a maximum. Jitter chooses among them.

    Attributes:
        factor: at least 2, so that there are at most 23 delays.
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


class ExchangeBinding(NamedTuple):
    """A binding of an exchange to another one, `source`, from which it gets messages."""

    source: str
    exchange: str
    routing_key: str


class Plan(NamedTuple):
    """Everything to declare for one work queue, with `queues` in the order of declaration.

    The dead-letter queue comes first: dead-lettering to a missing queue stalls without an error.

    Attributes:
        required: queues that must exist before anything is declared.
        steps: the exchanges of delays.
    """

    queues: tuple[Queue, ...]
    exchange: Exchange | None
    bindings: tuple[QueueBinding, ...]
    required: tuple[str, ...] = ()
    steps: tuple[Exchange, ...] = ()
    step_bindings: tuple[ExchangeBinding, ...] = ()

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """All exchanges to declare."""
        return self.steps if self.exchange is None else (self.exchange, *self.steps)

    def declares(self, exchange: str) -> bool:
        """Return whether the plan declares this exchange. The others must exist."""
        return any(one.name == exchange for one in self.exchanges)


def check_queue_name(queue: str) -> None:
    """Check that a work queue can have this name, and the queues that follow from it theirs.

    Raises:
        ValueError: it is too long, or cannot be encoded.
        TypeError: it is no text.
    """
    if not isinstance(queue, str):
        raise TypeError(f"The queue is of the type {type(queue).__qualname__}; it must be text.")
    size = len(queue.encode())
    if size > LONGEST_QUEUE_NAME_BYTES:
        raise ValueError(
            f"The name of the queue has {size} bytes; a work queue's has at most {LONGEST_QUEUE_NAME_BYTES}."
        )


def dead_letter_queue_name(queue: str) -> str:
    """Return the name of a work queue's dead-letter queue."""
    return f"{queue}.dead"


def earlier_delay_queue_name(queue: str, seconds: int) -> str:
    """Return the name of the queue that earlier releases declared for one delay in whole seconds."""
    return f"{queue}.retry.{seconds}s"


class Step(NamedTuple):
    """A part of a delay, with a queue of its own.

    Attributes:
        milliseconds: a power of two times 500, or 0 for the queue that every delayed message passes last.
        is_high: whether it is for messages with a high priority. Of two classes in one queue, RabbitMQ 4.0 to 4.2
            looks at the head of only one, so that messages of the other would be late.
    """

    milliseconds: int
    is_high: bool = False

    @property
    def power(self) -> int:
        """Which binary digit of a delay the step stands for, from 0."""
        return STEPS_MILLISECONDS.index(self.milliseconds)


LAST: Final = Step(0)

STEPS: Final = (
    *(Step(milliseconds, is_high=True) for milliseconds in reversed(STEPS_MILLISECONDS[:HIGH_STEPS])),
    *(Step(milliseconds) for milliseconds in reversed(STEPS_MILLISECONDS)),
    LAST,
)
"""All steps, in the order in which messages pass them."""


def step_name(queue: str, step: Step) -> str:
    """Return the name of a work queue's delay queue for one step, and of the exchange in front of it."""
    if step == LAST:
        return f"{queue}.retry.last"
    milliseconds = step.milliseconds
    text = f"{milliseconds // 1000}s" if milliseconds >= _SECOND else f"{milliseconds}ms"
    return f"{queue}.retry.{'high' if step.is_high else 'step'}.{text}"


@cache
def _steps_by_suffix() -> dict[str, Step]:
    return {step_name("", step): step for step in STEPS}


def step_of(name: str, queue: str) -> Step | None:
    """Return the step of a delay queue of the work queue `queue`; None when `name` is no such queue."""
    return _steps_by_suffix().get(name.removeprefix(queue)) if name.startswith(queue) else None


def is_delay_queue(name: str, queue: str) -> bool:
    """Whether `name` is a delay queue of the work queue `queue`, of this release or of an earlier one."""
    return step_of(name, queue) is not None or earlier_delay_seconds(name, queue) is not None


def earlier_delay_seconds(name: str, queue: str) -> int | None:
    """Return the delay of a delay queue of an earlier release; None when `name` is no such queue."""
    found = re.fullmatch(re.escape(queue) + r"\.retry\.(\d+)s", name)
    return int(found[1]) if found else None


class DelayRoute(NamedTuple):
    """The way of a delayed message to its work queue: publish it to `exchange` with `routing_key`.

    Each word of the routing key is a bit of the delay, the lowest one first. The exchange of a step passes a message
    with bit 1 to the queue of the step, where it expires after the step's time, and one with bit 0 to the exchange of
    the next shorter step. Expired messages go there, too.

    Attributes:
        steps: all steps that may be part of the way.
        keeps_priority: whether the message may have its priority on this way. Otherwise a header has it.
    """

    queue: str
    exchange: str
    routing_key: str
    steps: tuple[Step, ...]
    keeps_priority: bool

    @property
    def queues(self) -> tuple[str, ...]:
        """The delay queues of the steps."""
        return tuple(step_name(self.queue, step) for step in self.steps)

    @property
    def plan(self) -> Plan:
        """What must exist before the message is published, without the work queue."""
        return delay_plan(self.queue, self.steps)


def delay_route(queue: str, seconds: float, priority: int | None = None) -> DelayRoute:
    """Return the way of a message to a work queue that takes `seconds`, rounded up to 0.5 s, at most 30 days."""
    units = max(1, math.ceil(min(seconds, LONGEST_DELAY_SECONDS) * _SECOND / STEPS_MILLISECONDS[0]))
    bits = f"{units:b}"[::-1]
    wants_high = priority is not None and priority >= HIGH_PRIORITY
    is_high = wants_high and len(bits) <= HIGH_STEPS
    steps = steps_from(Step(STEPS_MILLISECONDS[len(bits) - 1], is_high))
    return DelayRoute(queue, step_name(queue, steps[0]), ".".join(bits), steps, is_high or not wants_high)


def steps_from(longest: Step) -> tuple[Step, ...]:
    """Return this step and all that must exist for its messages, in the order in which they pass them.

    The shortest step for high priorities leads to the last queue through the shortest one for the others.
    """
    if not longest.is_high:
        return STEPS[STEPS.index(longest) :]
    return (*STEPS[STEPS.index(longest) : HIGH_STEPS], *STEPS[-2:])


def delay_plan(queue: str, steps: Sequence[Step]) -> Plan:
    """Return the delay queues and exchanges of a step and of all shorter ones, the shortest first.

    A step that exists has all shorter ones below it. So a program that has declared the steps once knows from one
    message that is not returned that its whole way exists.

    Args:
        steps: as from `steps_from`.
    """
    names = [step_name(queue, step) for step in reversed(steps)]
    last, exchanges = names[0], names[1:]
    shortest_first = steps[-2::-1]
    return Plan(
        tuple(delay_queue(queue, step) for step in reversed(steps)),
        None,
        (
            QueueBinding(exchanges[0], last, _pattern(shortest_first[0], "0")),
            *(
                QueueBinding(name, name, _pattern(step, "1"))
                for step, name in zip(shortest_first, exchanges, strict=True)
            ),
        ),
        steps=tuple(Exchange(name, ExchangeType.TOPIC) for name in exchanges),
        step_bindings=tuple(
            ExchangeBinding(longer, shorter, _pattern(step, "0"))
            for step, (shorter, longer) in zip(shortest_first[1:], pairwise(exchanges), strict=True)
        ),
    )


def _pattern(step: Step, bit: str) -> str:
    """Return the pattern of the routing keys with this bit for the step."""
    return f"{'*.' * step.power}{bit}.#"


def dead_letter_queue(queue: str) -> Queue:
    """Return the declaration of the dead-letter queue: quorum, without limits, so that RabbitMQ drops no message."""
    return Queue(
        dead_letter_queue_name(queue),
        {"x-queue-type": "quorum", "x-delivery-limit": UNLIMITED_DELIVERIES},
    )


def delay_queue(queue: str, step: Step) -> Queue:
    """Return the declaration of the delay queue of one step.

    All its messages wait equally long, and RabbitMQ does not order them by priority, or it looks at the head of each
    priority (from 4.3). So the message that it looks at is always the next to expire.

    Always quorum with at-least-once dead-lettering, also for a classic work queue: a classic delay queue
    loses every message whose target is missing at expiry (tried on 3.10, 4.0 and 4.3).

    Only the last queue leads to the work queue, and by the default exchange. So a work queue that is full blocks no
    message that has time left, and one that is deleted and declared again needs no binding.
    """
    if step == LAST:
        target: Arguments = _dead_letter_to(queue)
    elif step.milliseconds == STEPS_MILLISECONDS[0]:
        target = _dead_letter_to(step_name(queue, LAST))
    else:
        shorter = step._replace(milliseconds=step.milliseconds // 2)
        target = {"x-dead-letter-exchange": step_name(queue, shorter)}
    return Queue(
        step_name(queue, step),
        {
            "x-queue-type": "quorum",
            "x-message-ttl": step.milliseconds,
            "x-delivery-limit": UNLIMITED_DELIVERIES,
            **target,
            **_AT_LEAST_ONCE,
        },
    )


TOKEN_MILLISECONDS: Final = 7 * 86_400_000
"""For so long a worker may hold a token: longer than any handler may run. RabbitMQ ignores it before 3.12."""


class Limit(NamedTuple):
    """A limit on the handlers that run at the same time, in all workers together.

    Its queue holds a token for each of them. An exchange of the same name says that all tokens have been published.

    Attributes:
        name: the queue of the tokens, and the exchange.
        concurrency: how many tokens there are.
    """

    name: str
    concurrency: int

    def queue(self, version: BrokerVersion) -> Queue:
        """Return the declaration of the queue.

        Classic: a token returns to its queue after each use, and each return would make the log of a quorum queue
        longer, without end. The length tells a changed limit. RabbitMQ does not count tokens that workers hold.

        A worker holds a token for as long as a handler runs. From RabbitMQ 4.3, classic queues have no consumer
        timeout and refuse one (406).
        """
        arguments: dict[str, ArgumentValue] = {
            "x-queue-type": "classic",
            "x-max-length": self.concurrency,
            "x-overflow": "reject-publish",
        }
        if not version.consumer_timeout_as_consumer_argument:
            arguments["x-consumer-timeout"] = TOKEN_MILLISECONDS
        return Queue(self.name, arguments)

    @property
    def seal(self) -> Exchange:
        """The exchange that is declared last."""
        return Exchange(self.name)


def limit_queue_name(queue: str) -> str:
    """Return the name of the queue with the tokens of one work queue."""
    return f"{queue}.limit.handlers"


def group_limit_queue_name(namespace: str, group: str) -> str:
    """Return the name of the queue with the tokens that the work queues of a group share."""
    return f"limit.{namespace}.{group}.handlers"


def cancels_name(queue: str) -> str:
    """Return the name of the stream with the cancels of a work queue, and of the exchange in front of it."""
    return f"{queue}.cancels"


def cancels_exchange(queue: str) -> Exchange:
    """Return the declaration of the exchange of cancels. Each worker binds a queue of its own, and hears new ones."""
    return Exchange(cancels_name(queue), ExchangeType.FANOUT)


def cancels_plan(queue: str) -> Plan:
    """Return what must exist before a message of a work queue is cancelled.

    A stream: each worker that starts later reads it all, and takes nothing away from the others.
    """
    name = cancels_name(queue)
    stream = Queue(
        name,
        {
            "x-queue-type": "stream",
            "x-max-age": f"{CANCEL_SECONDS}s",
            "x-max-length-bytes": CANCELS_BYTES,
            "x-stream-max-segment-size-bytes": CANCELS_SEGMENT_BYTES,
        },
    )
    return Plan((stream,), cancels_exchange(queue), (QueueBinding(name, name, ""),), (queue,))


MOST_TOKENS_PER_SECOND: Final = 100
"""Of a higher rate, each token allows several starts. So a high rate costs RabbitMQ, operator and workers little."""


class RateLimit(NamedTuple):
    """A limit on the handlers that start per second, in all workers together.

    The operator publishes tokens to its queue at this rate. A worker takes one before it starts a handler.

    Attributes:
        name: the queue of the tokens.
        per_second: how many handlers may start per second on average.
        burst: how many starts the queue saves while none are used.
    """

    name: str
    per_second: float
    burst: int

    @property
    def starts_per_token(self) -> int:
        """How many handlers may start with one token."""
        return min(max(int(self.per_second / MOST_TOKENS_PER_SECOND), 1), self.burst)

    @property
    def most_tokens(self) -> int:
        """How many tokens the queue saves."""
        return self.burst // self.starts_per_token

    @property
    def queue(self) -> Queue:
        """The declaration of the queue. A full one refuses further tokens, which tells the operator to stop."""
        return Queue(
            self.name,
            {
                "x-queue-type": "classic",
                "x-max-length": self.most_tokens,
                "x-overflow": "reject-publish",
            },
        )


def rate_limit_queue_name(queue: str) -> str:
    """Return the name of the queue with the tokens for starts of one work queue."""
    return f"{queue}.limit.starts"


def group_rate_limit_queue_name(namespace: str, group: str) -> str:
    """Return the name of the queue with the tokens for starts that the work queues of a group share."""
    return f"limit.{namespace}.{group}.starts"


LEDGER_MILLISECONDS: Final = 3_600_000
"""How long a ledger keeps an id, and exists after its last declaration."""

LEDGER_LENGTH: Final = 200


def ledger(queue: str) -> Queue:
    """Return the declaration of the queue with the ids of recurring messages that RabbitMQ has just confirmed.

    A new leader reads it, if the one before has ended between the confirm and its record in the status.

    Old ids go to a queue that does not exist. Otherwise a policy could send them to a dead-letter exchange.
    """
    name = f"{queue}.recurring"
    return Queue(
        name,
        {
            "x-queue-type": "classic",
            "x-max-length": LEDGER_LENGTH,
            "x-message-ttl": LEDGER_MILLISECONDS,
            "x-expires": LEDGER_MILLISECONDS,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": f"{name}.old",
        },
    )


def conflict_advice(queue: str) -> str:
    """Return what to do when RabbitMQ answers 406 because `queue` exists with other arguments."""
    if queue.endswith(".cancels"):
        return (
            "To cancel messages, RabbitMQ needs streams. If it has them (from 3.9, feature flag stream_queue), "
            f"delete {queue!r}. It is then declared again."
        )
    if queue.endswith(".dead") or re.search(r"\.retry\.(last|(step|high)\.\d+m?s)$", queue):
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


_SECOND: Final = 1000

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
