"""The queues of a work queue: their names and exact arguments."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workqueue.contract.topology import (
    DEFAULT_DELIVERY_LIMIT,
    HIGH_STEPS,
    LAST,
    LONGEST_DELAY_SECONDS,
    UNLIMITED_DELIVERIES,
    WAKE_ALLOWANCE,
    BrokerVersion,
    Exchange,
    ExchangeType,
    Jitter,
    QueueBinding,
    QueueSettings,
    QueueType,
    RetryBackoff,
    Step,
    conflict_advice,
    dead_letter_queue,
    delay_queue,
    delay_route,
    earlier_delay_queue_name,
    earlier_delay_seconds,
    is_delay_queue,
    plan,
    step_name,
    step_of,
    work_queue,
)
from workqueue.contract.topology import STEPS as ALL_STEPS

DEAD_LETTERING = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "jobs.dead"}
QUORUM = DEAD_LETTERING | {
    "x-queue-type": "quorum",
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
    "x-delivery-limit": DEFAULT_DELIVERY_LIMIT + WAKE_ALLOWANCE,
}

WORK_QUEUES = [
    ("a quorum queue dead-letters at least once and refuses when full", QueueSettings("jobs"), QUORUM),
    (
        "a delivery limit has room for waking up",
        QueueSettings("jobs", delivery_limit=3),
        QUORUM | {"x-delivery-limit": 3 + WAKE_ALLOWANCE},
    ),
    (
        "limits, time to live, single active consumer and consumer timeout are set when requested",
        QueueSettings(
            "jobs",
            max_length=5,
            max_length_bytes=6,
            message_ttl_seconds=7,
            single_active_consumer=True,
            consumer_timeout_seconds=8,
        ),
        QUORUM
        | {
            "x-max-length": 5,
            "x-max-length-bytes": 6,
            "x-message-ttl": 7000,
            "x-single-active-consumer": True,
            "x-consumer-timeout": 8000,
        },
    ),
    (
        "a classic queue without limits and TTL has no arguments",
        QueueSettings("jobs", type=QueueType.CLASSIC, delivery_limit=3, consumer_timeout_seconds=8),
        {},
    ),
    (
        "a classic queue with a TTL dead-letters what expires",
        QueueSettings("jobs", type=QueueType.CLASSIC, message_ttl_seconds=7),
        DEAD_LETTERING | {"x-message-ttl": 7000},
    ),
    (
        "a classic queue with a single active consumer has that argument alone",
        QueueSettings("jobs", type=QueueType.CLASSIC, single_active_consumer=True),
        {"x-single-active-consumer": True},
    ),
    (
        "a classic queue with a length refuses when full instead of dropping what was confirmed",
        QueueSettings("jobs", type=QueueType.CLASSIC, max_length=5),
        DEAD_LETTERING | {"x-overflow": "reject-publish", "x-max-length": 5},
    ),
    (
        "a classic queue with a size refuses when full too",
        QueueSettings("jobs", type=QueueType.CLASSIC, max_length_bytes=5),
        DEAD_LETTERING | {"x-overflow": "reject-publish", "x-max-length-bytes": 5},
    ),
]


@pytest.mark.parametrize(
    ("settings", "arguments"), [row[1:] for row in WORK_QUEUES], ids=[row[0] for row in WORK_QUEUES]
)
def test_work_queue_has_exactly_these_arguments(settings, arguments):
    assert dict(work_queue(settings).arguments) == arguments


def test_conflict_advice_for_work_queue_offers_both_remedies():
    advice = conflict_advice("jobs")

    assert "Classic without limits and TTL" in advice
    assert "passively" in advice


@pytest.mark.parametrize(
    "queue",
    ["jobs.dead", "jobs.retry.last", "jobs.retry.step.8s", "jobs.retry.step.500ms", "jobs.retry.high.8s"],
)
def test_conflict_advice_for_derived_queue_does_not_blame_a_publisher(queue):
    assert conflict_advice(queue) == f"Delete '{queue}' when it is empty. It is then declared again."


def test_dead_letter_queue_is_declared_first():
    assert [queue.name for queue in plan(QueueSettings("jobs")).queues] == ["jobs.dead", "jobs"]


def test_existing_dead_letter_queue_is_required_and_not_declared():
    made = plan(QueueSettings("jobs", dead_letter_queue="failed"))
    assert [queue.name for queue in made.queues] == ["jobs"]
    assert made.queues[0].arguments["x-dead-letter-routing-key"] == "failed"
    assert made.required == ("failed",)


def test_looking_at_a_dead_letter_never_drops_it():
    assert dict(dead_letter_queue("jobs").arguments) == {
        "x-queue-type": "quorum",
        "x-delivery-limit": UNLIMITED_DELIVERIES,
    }


STEPS = {
    "longer step": (Step(8000), "jobs.retry.step.8s", {"x-dead-letter-exchange": "jobs.retry.step.4s"}),
    "longer step for high priorities": (
        Step(8000, is_high=True),
        "jobs.retry.high.8s",
        {"x-dead-letter-exchange": "jobs.retry.high.4s"},
    ),
    "shortest step": (
        Step(500),
        "jobs.retry.step.500ms",
        {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "jobs.retry.last"},
    ),
    "last queue": (
        LAST,
        "jobs.retry.last",
        {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "jobs"},
    ),
}


@pytest.mark.parametrize(("step", "name", "target"), STEPS.values(), ids=STEPS)
def test_delay_queue_passes_messages_on_at_least_once(step, name, target):
    queue = delay_queue("jobs", step)
    assert queue.name == name
    assert dict(queue.arguments) == target | {
        "x-queue-type": "quorum",
        "x-message-ttl": step.milliseconds,
        "x-delivery-limit": UNLIMITED_DELIVERIES,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def test_work_queue_has_at_most_forty_delay_queues():
    assert len(set(ALL_STEPS)) == 40
    assert len(delay_route("jobs", LONGEST_DELAY_SECONDS).queues) == 24


HIGH_SECONDS = (2**HIGH_STEPS - 1) / 2
"""The longest delay with steps of its own for a high priority."""

ROUTES = {
    "no-priority": (HIGH_SECONDS, None, "jobs.retry.step.16384s", True),
    "low-priority": (HIGH_SECONDS, 4, "jobs.retry.step.16384s", True),
    "high-priority": (HIGH_SECONDS, 5, "jobs.retry.high.16384s", True),
    "low-priority-for-long": (HIGH_SECONDS + 0.5, 4, "jobs.retry.step.32768s", True),
    "high-priority-for-too-long": (HIGH_SECONDS + 0.5, 5, "jobs.retry.step.32768s", False),
}


@pytest.mark.parametrize(("seconds", "priority", "first", "keeps_priority"), ROUTES.values(), ids=ROUTES)
def test_message_waits_only_with_messages_that_cannot_block_it(seconds, priority, first, keeps_priority):
    route = delay_route("jobs", seconds, priority)

    assert (route.exchange, route.queues[0], route.keeps_priority) == (first, first, keeps_priority)


def way(seconds, priority):
    """Follow a message through exchanges and queues as RabbitMQ does; returns its steps in milliseconds."""
    route = delay_route("jobs", seconds, priority)
    made = route.plan
    queues = {queue.name: queue.arguments for queue in made.queues}
    words = route.routing_key.split(".")

    def matches(pattern):
        expected = pattern.removesuffix(".#").split(".")
        return all(one in {"*", word} for one, word in zip(expected, words, strict=False))

    targets = [
        *((one.exchange, one.routing_key, ("queue", one.queue)) for one in made.bindings),
        *((one.source, one.routing_key, ("exchange", one.exchange)) for one in made.step_bindings),
    ]
    passed, place = [], ("exchange", route.exchange)
    while place != ("queue", "jobs"):
        kind, name = place
        if kind == "exchange":
            [place] = [target for source, key, target in targets if source == name and matches(key)]
        else:
            passed.append(queues[name]["x-message-ttl"])
            exchange = queues[name]["x-dead-letter-exchange"]
            queue = queues[name].get("x-dead-letter-routing-key")
            place = ("exchange", exchange) if exchange else ("queue", queue)
    return passed


@given(st.floats(0, LONGEST_DELAY_SECONDS) | st.floats(0, HIGH_SECONDS), st.sampled_from([None, 0, 9]))
def test_delay_is_the_sum_of_its_steps_and_never_early(seconds, priority):
    passed = way(seconds, priority)

    assert sum(passed) / 1000 >= seconds
    assert sum(passed) / 1000 <= seconds + 0.5
    assert passed == sorted(set(passed), reverse=True), "no queue twice, or RabbitMQ drops the message"
    assert passed[-1] == 0


BINDINGS = [
    ("no exchange, no binding", None, ()),
    ("every routing key is bound", Exchange("e", routing_keys=("a", "b")), ("a", "b")),
    ("a direct exchange without a key is bound with the queue's name", Exchange("e"), ("jobs",)),
    ("a topic exchange likewise", Exchange("e", ExchangeType.TOPIC), ("jobs",)),
    ("a fanout exchange needs no key", Exchange("e", ExchangeType.FANOUT), ("",)),
    ("a headers exchange is bound by queue.bindings only", Exchange("e", ExchangeType.HEADERS), ()),
]


@pytest.mark.parametrize(
    ("exchange", "keys"), [row[1:] for row in BINDINGS], ids=[row[0] for row in BINDINGS]
)
def test_work_queue_is_bound_by_its_routing_keys(exchange, keys):
    made = plan(QueueSettings("jobs", exchange=exchange))
    assert made.exchange is exchange
    assert made.bindings == tuple(QueueBinding("e", "jobs", key) for key in keys)


def test_bindings_to_other_exchanges_come_last_and_once():
    other = QueueBinding("amq.headers", "jobs", "", (("format", "pdf"),))
    same = QueueBinding("e", "jobs", "jobs")
    made = plan(QueueSettings("jobs", exchange=Exchange("e"), bindings=(other, same)))
    assert made.bindings == (same, other)


@given(queue=st.text(min_size=1), step=st.sampled_from(ALL_STEPS))
def test_delay_queue_is_recognized_by_its_name(queue, step):
    assert is_delay_queue(step_name(queue, step), queue)
    assert step_of(step_name(queue, step), queue) == step


@given(queue=st.text(min_size=1), seconds=st.integers(min_value=1, max_value=10**6))
def test_delay_queue_of_an_earlier_release_is_recognized(queue, seconds):
    assert is_delay_queue(earlier_delay_queue_name(queue, seconds), queue)
    assert earlier_delay_seconds(earlier_delay_queue_name(queue, seconds), queue) == seconds


LADDERS = {
    "doubling": (RetryBackoff(1, 2, 8), (1, 2, 4, 8)),
    "last-step-shortened": (RetryBackoff(5, 3, 50), (5, 15, 45, 50)),
    "one-delay": (RetryBackoff(60, 2, 60), (60,)),
    "most-delays": (RetryBackoff(1, 2, 86_400), (*(2**power for power in range(17)), 86_400)),
}


@pytest.mark.parametrize(("backoff", "delays"), LADDERS.values(), ids=LADDERS)
def test_backoff_grows_by_its_factor_up_to_its_maximum(backoff, delays):
    assert backoff.delays_seconds == delays


@pytest.mark.parametrize("backoff", [backoff for backoff, _ in LADDERS.values()], ids=LADDERS)
@pytest.mark.parametrize("jitter", Jitter)
def test_backoff_survives_as_text(backoff, jitter):
    whole = backoff._replace(jitter=jitter)
    assert RetryBackoff.parse(str(whole)) == whole


NOT_DELAY_QUEUES = [
    ("the work queue", "jobs"),
    ("the dead-letter queue", "jobs.dead"),
    ("a delay queue of another queue", "other.retry.10s"),
    ("a delay queue of a queue whose name matches as a pattern", "jobsXretry.10s"),
    ("a name that goes on", "jobs.retry.10s.dead"),
    ("no number", "jobs.retry.s"),
    ("no power of two", "jobs.retry.step.3s"),
    ("a step that high priorities do not have", "jobs.retry.high.32768s"),
]


@pytest.mark.parametrize(
    "name", [row[1] for row in NOT_DELAY_QUEUES], ids=[row[0] for row in NOT_DELAY_QUEUES]
)
def test_other_names_are_not_delay_queues(name):
    assert not is_delay_queue(name, "jobs")


def test_queue_name_is_not_used_as_a_pattern():
    assert not is_delay_queue("jobs.retry.10s", "j..s")


VERSIONS = [
    ("3.10.8", (3, 10), True, False),
    ("3.13.7", (3, 13), True, False),
    ("4.0.5", (4, 0), True, False),
    ("4.2.0", (4, 2), True, False),
    ("4.3.0-rc.1", (4, 3), False, True),
    ("4.10.0", (4, 10), False, True),
    ("unknown", (3, 10), True, False),
]


@pytest.mark.parametrize(
    ("text", "version", "nack_counts", "timeout_as_argument"), VERSIONS, ids=[row[0] for row in VERSIONS]
)
def test_broker_behaviour_follows_from_its_version(text, version, nack_counts, timeout_as_argument):
    parsed = BrokerVersion.parse(text)
    assert parsed == BrokerVersion(*version)
    assert parsed.nack_counts_as_delivery is nack_counts
    assert parsed.consumer_timeout_as_consumer_argument is timeout_as_argument
