"""Calls to the workers' endpoints: GET /status, and the signed calls of the retire protocol.

`gather` asks which workers are busy. `retire` asks workers to leave, or to stay after all.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from http import HTTPStatus
from typing import Any, Final, TypeVar

from workqueue.contract import handler_times, signing
from workqueue.contract.topology import LONGEST_DELAY_SECONDS
from workqueue.contract.worker_api import PORT, RETIRE_PATH, STATUS_PATH, StatusField
from workqueue_operator.api.workqueue import MOST_RETRY_DELAYS
from workqueue_operator.backoff import delay
from workqueue_operator.bounded_http import PLAIN, body
from workqueue_operator.light_aiohttp import aiohttp

TIMEOUT: Final = aiohttp.ClientTimeout(total=2.0, sock_connect=1.0)
ANSWER_SECONDS: Final = 3.0
"""Seconds for all answers to one call, including the wait for a connection."""

CONNECTIONS: Final = 16
"""Connections of one call. A call asks the workers of one WorkQueue, so that no WorkQueue waits for the workers of
another one."""

KEPT_OPEN_SECONDS: Final = 2.0
"""Seconds for which an unused connection stays open: from the status to the request to retire. Kept for longer, the
connections to thousands of workers would take more memory than new ones take time."""

SILENT_PAUSE: Final = (1.0, 15.0)
"""The first and the longest pause, in seconds, after a worker has not answered. No pass begins to ask it again within
the pause. A worker that let the request time out is not asked at all, so that no pass waits for it."""

SILENCES_KEPT: Final = 1000
"""Number of silent workers above which deleted ones are removed from memory."""

LARGEST_ANSWER: Final = 16 * 1024
"""Bytes."""

_Said = TypeVar("_Said")

_WITHOUT_RETIREMENT_KEY: Final = b'{"error": "Wrong"}'
"""The answer of a worker without a retirement key: its image or its pod is of an older release."""


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """The keys that sign calls to the workers of one WorkQueue.

    Attributes:
        current: the WorkQueue's retirement key.
        previous: the connection Secret's password or private key, for workers without a retirement key. Empty while
            the Secret is unknown: such workers stay.
    """

    current: bytes = field(repr=False)
    previous: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker's answer.

    Attributes:
        busy: slots in a handler.
        consuming: whether it takes messages (false while retired or cut off from the broker).
        queue_answers: false while it waits for RabbitMQ to start or to end its consumer.
        handler_seconds: mean time of recent handlers, None before the first.
        deliveries_per_second: its recent rate.
        delay_queues: names of the delay queues that it knows, which are not checked; None from a worker of an older
            release.
        retry_delays: seconds of the delay queues that a worker of an older release has declared; None from one of
            a still older release.
        busy_seconds: for how long its oldest handler has run; None without one, or from a worker of an older release.
        received: messages received since its start; None from a worker of an older release.
        handler_times: how many handlers returned since its start, by the bucket of `handler_times`.
    """

    slots: int
    busy: int
    consuming: bool
    handler_seconds: float | None
    deliveries_per_second: float
    retry_delays: frozenset[int] | None = None
    delay_queues: frozenset[str] | None = None
    busy_seconds: float | None = None
    received: int | None = None
    handler_times: Mapping[int, int] = field(default_factory=dict)
    queue_answers: bool = True


ENDED: Final = WorkerStatus(
    slots=0,
    busy=0,
    consuming=False,
    handler_seconds=None,
    deliveries_per_second=0.0,
    retry_delays=frozenset(),
)
"""A terminating worker whose port is closed: its process has ended, and the kubelet has not reported it yet."""


class Answer(Enum):
    """A worker's answer to being asked to leave. The values are those of the metric's label."""

    RETIRED = "retired"
    BUSY = "busy"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a worker's endpoint is, and the uid that its signature is for."""

    pod: str
    uid: str
    ip: str


@dataclass(frozen=True, slots=True)
class _Silence:
    """A worker that did not answer.

    Attributes:
        failures: how often in a row.
        until: the end of its pause, on the monotonic clock.
        timed_out: whether it let the request time out.
    """

    failures: int
    until: float
    timed_out: bool


class Workers:
    """Calls to the workers' endpoints. Must be made inside the running loop.

    A worker that does not answer has a growing pause, so that its silence costs its own WorkQueue one second now and
    then, and the silence of a thousand workers does not keep the operator busy.
    """

    def __init__(self, port: int = PORT) -> None:
        self._port = port
        connector = aiohttp.TCPConnector(limit=0, limit_per_host=2, keepalive_timeout=KEPT_OPEN_SECONDS)
        self._session = aiohttp.ClientSession(timeout=TIMEOUT, connector=connector, **PLAIN)
        self._silences: dict[str, _Silence] = {}

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def statuses(self, addresses: Sequence[Address]) -> dict[str, WorkerStatus]:
        """Ask all workers concurrently.

        Returns:
            The answers by pod name, without the workers that did not answer.
        """
        answers = await self._ask(addresses, self._status)
        return {pod: answer for pod, answer in answers.items() if answer is not None}

    async def stopping(self, addresses: Sequence[Address]) -> dict[str, WorkerStatus]:
        """Ask terminating workers. They answer until their process ends; then they count as ENDED.

        Returns:
            The answers by pod name, without the workers that did not answer.
        """
        answers = await self._ask(addresses, lambda address: self._status(address, closed=ENDED))
        return {pod: answer for pod, answer in answers.items() if answer is not None}

    def pause(self, addresses: Sequence[Address]) -> float:
        """Return the seconds until the first pause of these workers ends; 0 if one of them has none."""
        now, found = time.monotonic(), [self._silences.get(address.uid) for address in addresses]
        ends = [silence.until for silence in found if silence is not None]
        return max(min(ends) - now, 0.0) if ends and len(ends) == len(found) else 0.0

    async def retire(self, addresses: Iterable[Address], keys: SigningKeys) -> dict[str, Answer]:
        """Ask workers to stop consuming for the duration of a lease.

        Returns:
            The answers by pod name. Only RETIRED means that the worker no longer takes messages.
        """
        asked = list(addresses)
        answers = await self._ask(
            asked, lambda address: self._signed("POST", address, signing.Purpose.RETIRE, keys)
        )
        return {address.pod: answers.get(address.pod, Answer.UNREACHABLE) for address in asked}

    async def resume(self, addresses: Iterable[Address], keys: SigningKeys) -> None:
        """Let retired workers consume again. An unreachable worker does so when its lease ends."""
        await self._ask(
            list(addresses), lambda address: self._signed("DELETE", address, signing.Purpose.RESUME, keys)
        )

    async def _ask(
        self, addresses: Sequence[Address], call: Callable[[Address], Awaitable[_Said]]
    ) -> dict[str, _Said]:
        """Make a call to each worker, to a few at a time.

        Returns:
            The results by pod name, without the workers that are left alone or were not reached in time. Workers
            that answered last time come first.
        """
        now = time.monotonic()
        places = asyncio.Semaphore(CONNECTIONS)
        said: dict[str, _Said] = {}

        async def ask(address: Address) -> None:
            async with places:
                said[address.pod] = await call(address)

        due = [address for address in addresses if not self._is_left_alone(address, now)]
        due.sort(key=lambda address: address.uid in self._silences)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS), asyncio.TaskGroup() as calls:
                for address in due:
                    calls.create_task(ask(address))
        return said

    def _is_left_alone(self, address: Address, now: float) -> bool:
        silence = self._silences.get(address.uid)
        return silence is not None and silence.timed_out and now < silence.until

    def _note(self, address: Address, error: Exception | None) -> None:
        """Note whether a worker answered."""
        if error is None:
            self._silences.pop(address.uid, None)
            return
        now = time.monotonic()
        if len(self._silences) >= SILENCES_KEPT:
            self._silences = {
                uid: silence
                for uid, silence in self._silences.items()
                if now - silence.until < 2 * SILENT_PAUSE[1]
            }
        known = self._silences.get(address.uid)
        failures = 1 if known is None else known.failures + 1
        until = now + delay(failures, *SILENT_PAUSE)
        self._silences[address.uid] = _Silence(failures, until, isinstance(error, TimeoutError))

    def _url(self, address: Address, path: str) -> str:
        host = f"[{address.ip}]" if ":" in address.ip else address.ip
        return f"http://{host}:{self._port}{path}"

    async def _status(self, address: Address, closed: WorkerStatus | None = None) -> WorkerStatus | None:
        try:
            async with self._session.get(self._url(address, STATUS_PATH), allow_redirects=False) as response:
                text = await body(response, LARGEST_ANSWER)
            if response.status != HTTPStatus.OK:
                raise ValueError(f"the status of the answer is {response.status}")  # noqa: TRY301 - no answer, too
            status = _parse(json.loads(text))
        except aiohttp.ClientConnectorError as error:
            is_answer = closed is not None and isinstance(error.os_error, ConnectionRefusedError)
            self._note(address, None if is_answer else error)
            return closed if is_answer else None
        except (
            aiohttp.ClientError,
            TimeoutError,
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            self._note(address, error)
            return None
        self._note(address, None)
        return status

    async def _signed(
        self, method: str, address: Address, purpose: signing.Purpose, keys: SigningKeys
    ) -> Answer:
        status, said = await self._call(method, address, purpose, keys.current)
        if status == HTTPStatus.UNAUTHORIZED and said == _WITHOUT_RETIREMENT_KEY and keys.previous:
            status, _ = await self._call(method, address, purpose, keys.previous)
        if status is None:
            return Answer.UNREACHABLE
        return {200: Answer.RETIRED, 409: Answer.BUSY}.get(status, Answer.REFUSED)

    async def _call(
        self, method: str, address: Address, purpose: signing.Purpose, key: bytes
    ) -> tuple[int | None, bytes]:
        """Return the status and the body of the answer; None as the status without one."""
        headers = {signing.HEADER: signing.sign(purpose, address.uid, key, time.time())}
        try:
            async with self._session.request(
                method, self._url(address, RETIRE_PATH), headers=headers, allow_redirects=False
            ) as response:
                said = response.status, await body(response, LARGEST_ANSWER)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            self._note(address, error)
            return None, b""
        self._note(address, None)
        return said


def _parse(said: Any) -> WorkerStatus:
    """Parse an answer. Any process may listen on a pod's address, so the answer is not trusted.

    Raises:
        ValueError, KeyError, TypeError: this is no status of a worker.
    """
    if not isinstance(said, dict):
        raise TypeError("the answer is no object")
    recent = said.get(StatusField.RECENT_HANDLER_SECONDS)
    busy_seconds = said.get(StatusField.BUSY_SECONDS)
    received = said.get(StatusField.RECEIVED)
    seconds = recent if recent is not None else said.get(StatusField.MEAN_HANDLER_SECONDS)
    return WorkerStatus(
        slots=int(_number(said[StatusField.SLOTS])),
        busy=int(_number(said[StatusField.BUSY])),
        consuming=bool(said[StatusField.CONSUMING]),
        handler_seconds=None if seconds is None else _number(seconds),
        deliveries_per_second=_number(said.get(StatusField.ARRIVAL_PER_SECOND) or 0.0),
        retry_delays=_delays(said.get(StatusField.RETRY_DELAYS_SECONDS)),
        delay_queues=_names(said.get(StatusField.DELAY_QUEUES)),
        busy_seconds=None if busy_seconds is None else _number(busy_seconds),
        received=None if received is None else int(_number(received)),
        handler_times=_times(said.get(StatusField.HANDLER_TIMES) or {}),
        queue_answers=bool(said.get(StatusField.QUEUE_ANSWERS, True)),
    )


def _times(said: Any) -> dict[int, int]:
    """Parse counts by bucket. Other buckets than a worker's are refused, so that their number is limited."""
    times = {int(bucket): int(_number(count)) for bucket, count in said.items()}
    if not all(handler_times.LOWEST <= bucket <= handler_times.HIGHEST for bucket in times):
        raise ValueError("these are no buckets of handler times")
    return times


def _delays(said: Any) -> frozenset[int] | None:
    """Parse delays. The operator polls a queue for each, so impossible delays, or too many, are refused."""
    if said is None:
        return None
    delays = frozenset(int(_number(seconds)) for seconds in said)
    if len(delays) > MOST_RETRY_DELAYS or not all(
        1 <= seconds <= LONGEST_DELAY_SECONDS for seconds in delays
    ):
        raise ValueError("these are no delays")
    return delays


def _names(said: Any) -> frozenset[str] | None:
    return None if said is None else frozenset(map(str, said))


def _number(value: Any) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not 0 <= number < math.inf:
        raise ValueError("the number is not finite, or below zero")
    return number
