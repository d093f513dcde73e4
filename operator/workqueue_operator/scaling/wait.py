"""Decide how many slots start messages within `scaling.maxWaitSeconds`. PURE: the clock is an argument.

`observe` follows how long messages have waited and how long handlers take. `needed_slots` uses both. RabbitMQ does
not tell the age of a message, and no running handler tells when it will return.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Final

from workqueue.contract.handler_times import bucket_of, seconds_of

if TYPE_CHECKING:
    from workqueue_operator.broker.connection import QueueCounts
    from workqueue_operator.workers.client import WorkerStatus

COUNTED: Final = 1_000.0
"""Handlers that the distribution remembers. Later ones replace earlier ones, so that it follows a change."""

COHORTS: Final = 16
"""Messages that arrived within this fraction of the limit share one arrival time, which limits the memory."""

LONGEST_PASS: Final = 2.0
"""Seconds between two passes up to which new messages count from the earlier one. After a longer pause, a message
woke the operator, and counts from now."""

START_SECONDS: Final = 2.0
"""The assumed start time of a pod until one has become Ready."""

HURRY: Final = 0.1
"""The fraction of the limit that a further slot gets for messages that are late or nearly late. Without it, each of
them would ask for a slot of its own."""

DEVIATIONS: Final = 2.0
"""Standard deviations by which handlers may be slower, and arrivals more, than on average until a further pod helps.
Later passes correct what comes after that."""


class HandlerTimes:
    """How long handlers take: a weight for each bucket of `contract.handler_times`. Never changed."""

    __slots__ = ("_before", "_seconds", "_sums", "_total", "weights")

    def __init__(self, weights: Mapping[int, float]) -> None:
        self.weights = weights
        ordered = sorted(weights)
        self._seconds = [seconds_of(bucket) for bucket in ordered]
        self._before = [0.0, *accumulate(weights[bucket] for bucket in ordered)]
        self._sums = [0.0, *accumulate(weights[bucket] * seconds_of(bucket) for bucket in ordered)]
        self._total = self._before[-1]

    def add(self, counts: Mapping[int, float]) -> HandlerTimes:
        """Return the distribution with further handlers."""
        merged = {**self.weights}
        for bucket, count in counts.items():
            merged[bucket] = merged.get(bucket, 0.0) + count
        scale = min(COUNTED / sum(merged.values()), 1.0)
        return HandlerTimes({bucket: weight * scale for bucket, weight in merged.items()})

    def mean(self, limit: float = math.inf) -> float:
        """Return the mean time. What a handler runs beyond `limit` seconds does not count."""
        shorter = bisect_right(self._seconds, limit)
        longer = self._total - self._before[shorter]
        return (self._sums[shorter] + (longer * limit if longer else 0.0)) / self._total

    def variation(self, limit: float) -> float:
        """Return the coefficient of variation of the times, of which each counts up to `limit` seconds."""
        squares = sum(weight * min(seconds_of(bucket), limit) ** 2 for bucket, weight in self.weights.items())
        return math.sqrt(max(squares / self._total / self.mean(limit) ** 2 - 1.0, 0.0))

    def starts(self, seconds: float) -> float:
        """Return how many messages an idle slot starts within `seconds` on average, or a little less.

        By Wald's equation, n starts take at least n times the mean of the times, each cut at `seconds`.
        """
        return seconds / self.mean(seconds) if seconds > 0 else 1.0

    def starts_when_busy(self, age: float, seconds: float) -> float:
        """Return the same for a slot whose handler has run for `age` seconds."""
        first = bisect_right(self._seconds, age)
        last = bisect_right(self._seconds, age + seconds)
        longer = self._total - self._before[first]
        started = 0.0
        for number in range(first, last):
            weight = self._before[number + 1] - self._before[number]
            started += weight * self.starts(seconds - (self._seconds[number] - age))
        return started / longer if started else 0.0


@dataclass(frozen=True, slots=True)
class Waits:
    """What a pass knows about waiting messages and about slots.

    Attributes:
        waiting: (age in seconds, count) of the waiting messages, oldest first.
        busy_seconds: for how long the handler of each busy slot has run.
        slots: of all pods, including pods that start.
        times: None before the first handler returned.
        start_seconds: from the write of a count to a pod that takes messages.
    """

    waiting: Sequence[tuple[float, int]] = ()
    busy_seconds: Sequence[float] = ()
    slots: int = 0
    times: HandlerTimes | None = None
    start_seconds: float = START_SECONDS


def needed_slots(waits: Waits, handler_seconds: float, arrivals_per_second: float, limit: float) -> float:
    """Return how many slots start the waiting messages, and those that arrive soon, within `limit` of their arrival.

    For each time at which messages are due, it compares their number with the number that the present slots start by
    then on average. Further slots help after the start of their pod.

    Args:
        handler_seconds: the mean time, used until `waits.times` is known. A handler that already runs for longer
            counts with what it has run.
    """
    times, start = waits.times, waits.start_seconds
    if times is None:
        times = HandlerTimes({bucket_of(max([handler_seconds, *waits.busy_seconds])): 1.0})
    ages = Counter(map(bucket_of, waits.busy_seconds))
    slots = max(waits.slots, len(waits.busy_seconds))
    idle = slots - len(waits.busy_seconds)
    # The fewest starts by which one slot may fall behind before a further one helps. It grows with the root of slots.
    behind = DEVIATIONS * times.variation(limit) * math.sqrt(start / times.mean(limit))
    needed = 0.0
    for seconds, due in _due(waits.waiting, arrivals_per_second, start, limit):
        one_idle = times.starts(seconds)
        from_busy = sum(
            count * times.starts_when_busy(seconds_of(bucket), seconds) for bucket, count in ages.items()
        )
        started = idle * one_idle + from_busy - behind * math.sqrt(slots)
        if due > started:
            needed = max(needed, slots + (due - started) / times.starts(seconds - start))
        elif due:
            # By the same rule, or the count would swing. Idle slots go first.
            busy = len(waits.busy_seconds)
            fewest = _solve(one_idle, behind, due + busy * one_idle - from_busy)
            if fewest < busy and from_busy:
                fewest = _solve(from_busy / busy, behind, due)
            needed = max(needed, fewest)
    return needed


def _solve(rate: float, behind: float, messages: float) -> float:
    """Return the number of slots n for which `rate * n - behind * sqrt(n) = messages`."""
    root = (behind + math.sqrt(behind**2 + 4 * rate * max(messages, 0.0))) / (2 * rate)
    return root**2


def _due(
    waiting: Sequence[tuple[float, int]], arrivals_per_second: float, start: float, limit: float
) -> Iterator[tuple[float, float]]:
    """Yield (seconds, messages): so many messages should start within so many seconds."""
    soonest = start + HURRY * limit
    messages = 0
    for age, count in waiting:
        messages += count
        yield max(limit - age, soonest), messages
    if soonest > limit:
        # A slot that is asked for when a message arrives is too late for it.
        arriving = arrivals_per_second * start
        yield start + limit, messages + arriving + DEVIATIONS * math.sqrt(arriving)


@dataclass(frozen=True, slots=True)
class Line:
    """The waiting messages, by the time of their arrival.

    Attributes:
        at: when it was last looked at, in seconds on the monotonic clock.
        cohorts: (time of arrival, count), oldest first.
        arrived: how many messages have arrived since the first look.
        late: how many of them waited for longer than the limit.
    """

    at: float
    cohorts: tuple[tuple[float, int], ...] = ()
    arrived: int = 0
    late: int = 0

    @property
    def ages(self) -> list[tuple[float, int]]:
        """(age in seconds, count) of the waiting messages, oldest first."""
        return [(self.at - since, count) for since, count in self.cohorts]

    def advance(self, now: float, ready: int, received: int, limit: float) -> Line:
        """Return the line at a later look. RabbitMQ delivers in the order of arrival.

        Args:
            ready: waiting messages.
            received: messages that workers have received since the last look, as far as they said so.
        """
        before = sum(count for _, count in self.cohorts)
        taken = max(received, before - ready)
        left = list(_without(self.cohorts, taken))
        new = ready - sum(count for _, count in left)
        if new:
            left.append((self.at if now - self.at <= LONGEST_PASS else now, new))
        late = sum(count for since, count in left if self.at - since <= limit < now - since)
        return Line(
            now, tuple(_merged(left, now, limit)), self.arrived + ready - before + taken, self.late + late
        )


def _without(cohorts: Sequence[tuple[float, int]], taken: int) -> Iterator[tuple[float, int]]:
    for since, count in cohorts:
        if count > taken:
            yield since, count - taken
        taken = max(taken - count, 0)


def _merged(cohorts: Sequence[tuple[float, int]], now: float, limit: float) -> Iterator[tuple[float, int]]:
    """Merge messages that arrived at about the same time, and all that have waited for longer than the limit."""

    def group_of(cohort: tuple[float, int]) -> float:
        return -math.inf if now - cohort[0] > limit else math.floor(cohort[0] * COHORTS / limit)

    for _, some in groupby(cohorts, key=group_of):
        group = list(some)
        count = sum(number for _, number in group)
        yield sum(since * number for since, number in group) / count, count


@dataclass(frozen=True, slots=True)
class WaitState:
    """What is kept between two passes over a WorkQueue with `maxWaitSeconds`.

    Attributes:
        workers: (messages received, handlers by bucket of their time) of each worker, by pod name.
    """

    line: Line
    times: HandlerTimes | None = None
    start_seconds: float = START_SECONDS
    workers: Mapping[str, tuple[int, Mapping[int, int]]] = field(default_factory=dict)


def observe(
    state: WaitState | None, counts: QueueCounts, answers: Mapping[str, WorkerStatus | None], limit: float
) -> WaitState:
    """Return the state after a look at the queue and its workers.

    Messages that wait at the first look count from then, since nothing tells when they arrived.

    Args:
        state: None before the first look.
        answers: of all workers, by pod name; None of a worker that did not answer.
    """
    is_first = state is None
    state = state or WaitState(Line(counts.at))
    workers = {pod: state.workers[pod] for pod in answers if pod in state.workers}
    received, handled = 0, Counter[int]()
    for pod, status in answers.items():
        if status is None or status.received is None:
            continue
        before, times_before = workers.get(pod, (0, {}))
        if status.received < before:  # its container has started again
            before, times_before = 0, {}
        received += status.received - before
        handled.update(status.handler_times)
        handled.subtract(times_before)
        workers[pod] = status.received, status.handler_times
    times = state.times
    if handled := +handled:
        times = (times or HandlerTimes({})).add(handled)
    line = state.line.advance(counts.at, counts.ready, 0 if is_first else received, limit)
    return replace(state, line=line, times=times, workers=workers)


def busy_seconds(statuses: Iterable[WorkerStatus]) -> list[float]:
    """Return for how long the handler of each busy slot has run. A worker tells that of its oldest one only."""
    return [
        (status.busy_seconds or 0.0) if number == 0 else 0.0
        for status in statuses
        for number in range(status.busy)
    ]
