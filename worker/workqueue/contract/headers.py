"""The headers that a worker adds to a message that is retried or given up, and how they are removed again.

The attempt header is our own, since `x-death` does not count correctly across republishing on RabbitMQ 4.x.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from workqueue.contract.properties import Headers, Properties

ATTEMPT: Final = "x-workqueue-attempt"
"""How many attempts were made before this copy was published; missing means none."""

FAILURE_REASON: Final = "x-workqueue-failure-reason"
"""Why the last attempt failed: a value of `FailureReason`."""

FAILURE_MESSAGE: Final = "x-workqueue-failure-message"
FAILURE_TRACEBACK: Final = "x-workqueue-failure-traceback"
FAILED_AT: Final = "x-workqueue-failed-at"
"""When the last attempt failed, as RFC 3339 text in UTC."""

WORKER: Final = "x-workqueue-worker"
"""The pod, or the host and process, that made the last attempt."""

EXPIRES_AT: Final = "x-workqueue-expires-at"
"""When the message's own TTL (`expiration`) passes, in Unix milliseconds. RabbitMQ removes the TTL of a message that
returns from a delay queue, so the worker keeps the time itself."""

QUEUE: Final = "x-workqueue-queue"
"""The work queue of a dead letter. Several work queues may share a dead-letter queue."""

FIRST_ATTEMPT_AT: Final = "x-workqueue-first-attempt-at"
"""When the first attempt began, in Unix milliseconds. The worker sets it at the first failure."""

DUE_AT: Final = "x-workqueue-due-at"
"""When a delayed message is due in its work queue, in Unix milliseconds, by the clock of the delaying program."""

CANCELS_UNTIL: Final = "x-workqueue-cancels-until"
"""Cancels up to this time, in Unix milliseconds, do not concern the message: it was cancelled or replayed then."""

ORIGINAL_EXPIRATION: Final = "x-workqueue-original-expiration"
ORIGINAL_PRIORITY: Final = "x-workqueue-original-priority"
"""Of a message that a publisher has delayed, and of copies by workers of earlier releases."""

ORIGINAL_USER_ID: Final = "x-workqueue-original-user-id"
ORIGINAL_CC: Final = "x-workqueue-original-cc"
ORIGINAL_BCC: Final = "x-workqueue-original-bcc"

DROPPED: Final = "x-workqueue-dropped-headers"
"""Names of headers that a copy of the message had no room for. All headers must fit into one frame."""

MOST_ATTEMPTS: Final = 1_000_000

OURS: Final = frozenset(
    {
        ATTEMPT,
        FAILURE_REASON,
        FAILURE_MESSAGE,
        FAILURE_TRACEBACK,
        FAILED_AT,
        WORKER,
        DROPPED,
        EXPIRES_AT,
        FIRST_ATTEMPT_AT,
        QUEUE,
        DUE_AT,
        CANCELS_UNTIL,
    }
)

DELIVERY_COUNT: Final = "x-delivery-count"
"""How often a message returned to its quorum queue. From RabbitMQ 4.3 this counts dead consumers and rejections.
Before 4.3 it also counts each nack. A classic queue does not set it."""

FIRST_DEATH_QUEUE: Final = "x-first-death-queue"
"""Set by RabbitMQ: the first queue in which the message expired."""

HIGHEST_PRIORITY: Final = 255

_PRESERVED_HEADERS: Final = {"CC": ORIGINAL_CC, "BCC": ORIGINAL_BCC}
_PRESERVED: Final = (
    ORIGINAL_EXPIRATION,
    ORIGINAL_PRIORITY,
    ORIGINAL_USER_ID,
    *_PRESERVED_HEADERS.values(),
)
_BROKERS_OWN: Final = frozenset(
    {
        DELIVERY_COUNT,
        "x-acquired-count",
        "x-death",
        "x-first-death-exchange",
        FIRST_DEATH_QUEUE,
        "x-first-death-reason",
        "x-last-death-exchange",
        "x-last-death-queue",
        "x-last-death-reason",
    }
)


def attempts_made(headers: Headers) -> int:
    """Return how many attempts were made. A header that is not a number counts as none."""
    value = headers.get(ATTEMPT)
    # A publisher may write any value, and the next number must still fit into a header.
    return min(value, MOST_ATTEMPTS) if isinstance(value, int) and value >= 0 else 0


def preserve(properties: Properties, headers: Headers) -> tuple[Properties, dict[str, Any]]:
    """Return properties and headers for a copy: all of the original, except what would take effect a second time.

    `expiration` would cut a delay short or empty the dead-letter queue. CC and BCC would send copies, and RabbitMQ
    refuses a `user_id` that is not the connection's. These move into `x-workqueue-original-` headers. A `priority`
    stays, and one in a header becomes a property again. RabbitMQ's own records are removed: it would see a cycle in
    them and drop the message.
    """
    kept = {key: value for key, value in headers.items() if key not in _BROKERS_OWN}
    for name, place in _PRESERVED_HEADERS.items():
        if name in kept:
            kept[place] = kept.pop(name)
    if properties.expiration is not None:
        kept[ORIGINAL_EXPIRATION] = properties.expiration
    if ORIGINAL_PRIORITY in kept:
        properties = properties._replace(priority=priority_in(kept))
        del kept[ORIGINAL_PRIORITY]
    if properties.user_id is not None:
        kept[ORIGINAL_USER_ID] = properties.user_id
    return properties._replace(expiration=None, user_id=None), kept


def restore(properties: Properties, headers: Headers) -> tuple[Properties, dict[str, Any]]:
    """Return properties and headers as the publisher set them, for a handler or a replay."""
    restored = {key: value for key, value in headers.items() if key not in OURS}
    changed: dict[str, Any] = {}
    for field, place in (("expiration", ORIGINAL_EXPIRATION), ("user_id", ORIGINAL_USER_ID)):
        if place in restored:
            changed[field] = restored.pop(place)
    if ORIGINAL_PRIORITY in restored:
        changed["priority"] = priority_in(restored)
        del restored[ORIGINAL_PRIORITY]
    for name, place in _PRESERVED_HEADERS.items():
        if place in restored:
            restored[name] = restored.pop(place)
    return (properties._replace(**changed) if changed else properties), restored


def has_preserved(headers: Mapping[str, Any]) -> bool:
    """Whether `restore` would change properties or headers of the publisher. Cheap, as it runs for each message."""
    return bool(headers) and any(place in headers for place in _PRESERVED)


def priority_in(headers: Headers) -> int | None:
    """Return the preserved priority, or None if it is missing or not valid in AMQP."""
    value = headers.get(ORIGINAL_PRIORITY)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= HIGHEST_PRIORITY:
        return None
    return int(value)


def deliveries_failed(headers: Headers, *, redelivered: bool) -> int:
    """Return how often the message returned unsettled, as counted by RabbitMQ. A missing header means never.

    Args:
        redelivered: RabbitMQ's own flag. Without it, the header comes from the publisher and does not count.
    """
    value = headers.get(DELIVERY_COUNT)
    return value if redelivered and isinstance(value, int) else 0


def was_retried(headers: Headers) -> bool:
    """Whether a worker has published this message again, also when the attempt did not count."""
    return ATTEMPT in headers or FAILED_AT in headers


def first_attempt_at(headers: Headers, begun_at: float) -> float:
    """Return when the first attempt began, in Unix seconds.

    A header that is not a time in the past is not used.

    Args:
        begun_at: when the present attempt began, in Unix seconds.
    """
    known = headers.get(FIRST_ATTEMPT_AT)
    return min(known / 1000, begun_at) if isinstance(known, int) and known > 0 else begun_at


def expires_at(properties: Properties, headers: Headers, received_at: float) -> float | None:
    """Return when the message's own TTL passes, in Unix seconds; None if it has none.

    The TTL counts from the publisher's `timestamp`. A timestamp that is missing, or contradicts RabbitMQ, which
    delivers no message whose TTL has passed, is not used: the TTL then counts from the first delivery.

    Args:
        received_at: when the message was delivered, in Unix seconds.
    """
    known = headers.get(EXPIRES_AT)
    if isinstance(known, int) and known > 0:
        return known / 1000
    text = properties.expiration
    if not isinstance(text, str) or not text.isdecimal():
        return None
    seconds = int(text) / 1000
    start = received_at
    if isinstance(properties.timestamp, int):
        latest = properties.timestamp + 1  # a timestamp has whole seconds, rounded down
        if received_at - seconds <= latest < received_at:
            start = latest
    return start + seconds
