"""One connection to one broker, whatever the number of queues, and what is asked of the broker over it.

Place in the flow: `observe.brokers` keeps one for each distinct connection Secret content; `act.queues`
declares and deletes through it, `observe.poller` asks depths, `reconcile` hangs bells. It never publishes:
a broker under memory alarm blocks connections that do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pika.adapters.asyncio_connection import AsyncioConnection
from pika.adapters.utils.connection_workflow import (
    AMQPConnectionWorkflowFailed,
    AMQPConnectorAMQPHandshakeError,
    AMQPConnectorException,
    AMQPConnectorWrongState,
)
from pika.connection import ConnectionParameters
from pika.exceptions import (
    AuthenticationError,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
)
from pika.spec import Queue as QueueMethods

from workqueue.amqp.backoff import STEADY_SECONDS, Backoff
from workqueue.amqp.frame_limits import BoundedFrames
from workqueue.amqp.parameters import connection_parameters
from workqueue.amqp.tls import UNUSABLE
from workqueue.contract import topology
from workqueue.contract.binding import Binding
from workqueue.contract.topology import BrokerVersion, Plan, Queue, conflict_advice
from workqueue_operator.api.reasons import Reason
from workqueue_operator.broker.addresses import permitted
from workqueue_operator.broker.channel import (
    DECLARE_TIMEOUT,
    CallChannel,
    ChannelLostError,
    ChannelRefusedError,
    words_of,
)
from workqueue_operator.broker.doorbell import Doorbells
from workqueue_operator.broker.tls import context
from workqueue_operator.destinations import ANYWHERE, Destinations
from workqueue_operator.errors import ReconcileError

logger = logging.getLogger(__name__)

LANES: Final = 8
"""Channels for depth questions: one channel has one question outstanding (8 were cheaper than one, tried)."""

DECLARING: Final = 4
"""Channels for declarations and deletions, so that they never hold up a question."""

HEARTBEAT_SECONDS: Final = 5
"""A frozen operator keeps one message for each rung queue until the broker misses its heartbeat."""

CONNECT_TIMEOUT: Final = 5.0
CLOSE_TIMEOUT: Final = 1.0
RECONNECT_SECONDS: Final = (0.2, 5.0)
"""The first and the longest pause between two attempts; each is drawn at random below it (full jitter)."""

_NOT_FOUND: Final = 404
_ACCESS_REFUSED: Final = 403
_PRECONDITION_FAILED: Final = 406


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """What a declare answers, passive or not.

    Attributes:
        ready: messages that wait.
        consumers: consumers other than our bell.
        bell: whether our bell hung, and was among the consumers that the broker counted.
        at: when, on the loop's clock (seconds).
    """

    ready: int
    consumers: int
    at: float
    doorbell: bool = False


class QueueMissingError(Exception):
    """The queue does not exist."""


class _PikaConnection(BoundedFrames, AsyncioConnection):  # type: ignore[misc]
    """pika's connection with bounded frames. A doorbell needs neither properties nor bodies of messages."""

    reads_properties = False
    keeps_bodies = False


class Broker:
    """Connects, and connects again for as long as it lives.

    Args:
        binding: where, and who we are there.
        on_ring: called with the name of a queue whose bell rang.
        on_fall: called with the name of a queue whose bell fell, and the refusal or None.
        on_state: called when the connection opened or was lost.
        destinations: which hosts may be connected to.
    """

    def __init__(
        self,
        binding: Binding,
        on_ring: Callable[[str], None],
        on_removed: Callable[[str, tuple[int, str] | None], None],
        on_state: Callable[[], None],
        destinations: Destinations = ANYWHERE,
    ) -> None:
        self.binding = binding
        self._destinations = destinations
        self.generation = 0
        self.version = BrokerVersion(0, 0)
        self.cluster = ""
        self.problem: ReconcileError | None = None
        self._on_ring = on_ring
        self._on_removed = on_removed
        self._on_state = on_state
        self._connection: AsyncioConnection | None = None
        self._doorbells: Doorbells | None = None
        self._lanes: list[CallChannel] = []
        self._admins: list[CallChannel] = []
        self._settled = asyncio.Event()
        self._closed: asyncio.Future[BaseException] | None = None
        self._task = asyncio.create_task(self._run(), name=f"broker {binding.display}")

    @property
    def connected(self) -> bool:
        """Whether the connection is open right now."""
        return self._connection is not None and self._connection.is_open

    async def close(self) -> None:
        """Close the connection; every bell falls silently."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        if self._closed is not None:
            # So that the broker hears of it before the process ends; one that does not answer is not waited for.
            await asyncio.wait([self._closed], timeout=CLOSE_TIMEOUT)

    async def ready(self) -> None:
        """Return when connected.

        Raises:
            Trouble: the last attempt failed, and why; or no attempt has ended within the time for one.
        """
        if self.connected:
            return
        if self.problem is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CONNECT_TIMEOUT + 1):
                    await self._settled.wait()
        if not self.connected:
            raise (
                self.problem.with_traceback(None)
                if self.problem
                else ReconcileError(
                    Reason.BROKER_TIMEOUT,
                    f"The broker {self.binding.display} accepts connections but does not answer. Look at the broker.",
                )
            )

    # -- bells ---------------------------------------------------------------------------------------

    async def install_doorbell(self, queue: str, *, ours: bool = True) -> bool:
        """Install a doorbell and wait until the broker confirms it; False when it does not (see Doorbell.hang)."""
        return self._doorbells is not None and await self._doorbells.install(queue, ours=ours)

    def bell_is_silent(self, queue: str) -> bool:
        """Whether the queue leaves our consumer without an answer (see Doorbell.is_silent)."""
        return self._doorbells is not None and self._doorbells.is_silent(queue)

    def remove_doorbell(self, queue: str) -> None:
        """Cancel the bell of a queue, if there is one."""
        if self._doorbells is not None:
            self._doorbells.remove(queue)

    def has_doorbell(self, queue: str) -> bool:
        """Whether a bell of ours counts among the queue's consumers."""
        return self._doorbells is not None and self._doorbells.is_installed(queue)

    def doorbell_installed_at(self, queue: str) -> float | None:
        """When the broker confirmed the bell of this queue, on the loop's clock; None while none hangs."""
        return self._doorbells.installed_at(queue) if self._doorbells is not None else None

    @property
    def doorbells(self) -> int:
        """How many bells hang."""
        return len(self._doorbells) if self._doorbells is not None else 0

    # -- questions -----------------------------------------------------------------------------------

    async def counts(self, queue: str) -> QueueCounts:
        """Ask for ready messages and consumers by passive declare.

        Raises:
            QueueMissingError: there is no such queue.
            Trouble: no connection, no answer, or no permission.
        """
        frame = await self._call(
            _freest(self._lanes),
            lambda channel, done: channel.queue_declare(queue, passive=True, callback=done),
            f"queue {queue!r}",
        )
        return self._counted(frame.method)

    async def counts_if_there(self, queue: str) -> QueueCounts | None:
        """As `counts`; None when there is no such queue."""
        try:
            return await self.counts(queue)
        except QueueMissingError:
            return None

    def _counted(self, answer: QueueMethods.DeclareOk) -> QueueCounts:
        doorbell = self.has_doorbell(answer.queue)
        return QueueCounts(
            ready=answer.message_count,
            consumers=max(answer.consumer_count - doorbell, 0),
            at=asyncio.get_running_loop().time(),
            doorbell=doorbell and answer.consumer_count > 0,
        )

    async def is_same_as(self, other: Broker, queue: str) -> bool | None:
        """Whether another connection leads to the same broker and virtual host, whatever address it uses.

        Cluster names need not be unique (the first pod of many a StatefulSet is rabbit@rabbitmq-0), so equal names
        are checked: an exclusive queue that one connection declares is visible to the other one only if the broker
        is the same.

        Args:
            queue: a work queue of both; the exclusive queue is named as one of its delay queues, which the user of
                each connection may declare.

        Returns:
            None when it is not known: one of them is not connected, or does not answer.
        """
        if self.binding.display == other.binding.display:
            return True
        if self.binding.virtual_host != other.binding.virtual_host:
            return False
        if not (self.connected and other.connected):
            return None
        return await self._shows_to(other, queue) if self.cluster == other.cluster else False

    async def _shows_to(self, other: Broker, queue: str) -> bool | None:
        """Whether an exclusive queue that is declared here is seen, though locked, over another connection.

        Returns:
            None when one of them gave no answer.
        """
        name = f"{topology.delay_queue_name(queue, 0)}.{secrets.token_hex(8)}"
        classic = {"x-queue-type": "classic"}
        try:
            await self._call(
                _freest(self._admins),
                lambda channel, done: channel.queue_declare(
                    name, exclusive=True, auto_delete=True, arguments=classic, callback=done
                ),
                f"queue {name!r}",
            )
            try:
                await other.counts(name)
            finally:
                await self.delete_queue(name)
        except QueueMissingError:
            return False
        except ReconcileError as problem:
            if problem.reason in {Reason.BROKER_TIMEOUT, Reason.BROKER_UNREACHABLE}:
                return None
            # Locked, as expected; or refused, and the equal names decide.
            logger.debug("An exclusive queue is seen.", extra={"queue": name, "detail": problem.message})
        return True

    # -- declarations --------------------------------------------------------------------------------

    async def declare(self, plan: Plan) -> Mapping[str, QueueCounts]:
        """Declare everything of a plan in its order. Idempotent.

        What exists is compared first, and then the exchange, so that a conflict leaves nothing new behind.

        Returns:
            The counts of each queue.

        Raises:
            Trouble: refused (with the argument's name when the queue exists otherwise), or no answer.
        """
        answers: dict[str, QueueCounts] = {}
        missing: list[Queue] = []
        for queue in plan.queues:
            # Nothing new can be left behind by what would be made last.
            makes_last = queue is plan.queues[-1] and not missing and plan.exchange is None
            if makes_last or await self.counts_if_there(queue.name) is not None:
                answers[queue.name] = await self.declare_queue(queue)
            else:
                missing.append(queue)
        if plan.exchange is not None:
            exchange = plan.exchange
            await self._call(
                _freest(self._admins),
                lambda channel, done: channel.exchange_declare(
                    exchange.name, exchange_type=exchange.type.value.lower(), durable=True, callback=done
                ),
                f"exchange {exchange.name!r}",
            )
        for queue in missing:
            answers[queue.name] = await self.declare_queue(queue)
        for binding in plan.bindings:
            await self._call(
                _freest(self._admins),
                lambda channel, done, binding=binding: channel.queue_bind(
                    binding.queue, binding.exchange, binding.routing_key, callback=done
                ),
                f"binding of queue {binding.queue!r} to exchange {binding.exchange!r}",
            )
        return answers

    async def unbind(self, binding: topology.QueueBinding) -> None:
        """Remove a binding; one that is not there is fine.

        Raises:
            Trouble: refused, or no answer.
        """
        with contextlib.suppress(QueueMissingError):
            await self._call(
                _freest(self._admins),
                lambda channel, done: channel.queue_unbind(
                    binding.queue, binding.exchange, binding.routing_key, callback=done
                ),
                f"binding of queue {binding.queue!r} to exchange {binding.exchange!r}",
            )

    async def declare_queue(self, queue: Queue) -> QueueCounts:
        """Declare one durable queue. Idempotent.

        Raises:
            Trouble: as `declare`.
        """
        frame = await self._call(
            _freest(self._admins),
            lambda channel, done: channel.queue_declare(
                queue.name, durable=True, arguments=dict(queue.arguments), callback=done
            ),
            f"queue {queue.name!r}",
            conflict_advice(queue.name),
        )
        return self._counted(frame.method)

    async def delete_queue(self, queue: str, *, if_unused: bool = False, if_empty: bool = False) -> None:
        """Delete a queue with all that is in it; a queue that is not there is fine.

        Args:
            if_unused, if_empty: only for classic queues. On a quorum queue they close the whole connection (540).

        Raises:
            Trouble: refused; with the reason QueueConflict when the queue is in use or not empty.
        """
        with contextlib.suppress(QueueMissingError):
            await self._call(
                _freest(self._admins),
                lambda channel, done: channel.queue_delete(
                    queue, if_unused=if_unused, if_empty=if_empty, callback=done
                ),
                f"queue {queue!r}",
            )

    def mark_vanished(self, queue: str) -> None:
        """Remember that the queue was gone (see Doorbell.mark_vanished)."""
        if self._doorbells is not None:
            self._doorbells.mark_vanished(queue)

    async def _call(self, channel: CallChannel | None, send: Any, what: str, advice: str = "") -> Any:
        if channel is None:
            await self.ready()
            raise ReconcileError(
                Reason.BROKER_UNREACHABLE, self._silent(what, "the connection was just opened again")
            )
        try:
            return await channel.call(send)
        except ChannelLostError as error:
            reason = Reason.BROKER_TIMEOUT if self.connected else Reason.BROKER_UNREACHABLE
            raise ReconcileError(reason, self._silent(what, str(error))) from error
        except ChannelRefusedError as error:
            raise self._refusal(error, what, advice) from error

    def _silent(self, what: str, why: str) -> str:
        return f"The broker {self.binding.display} gave no answer about {what}: {why}. Replicas stay as they are."

    def _refusal(self, error: ChannelRefusedError, what: str, advice: str) -> Exception:
        if error.code == _NOT_FOUND:
            return QueueMissingError(what)
        if error.code == _PRECONDITION_FAILED:
            return ReconcileError(
                Reason.QUEUE_CONFLICT,
                f"The {what} exists with other settings and was not touched. RabbitMQ says: "
                f"{error.text.rstrip('.')}. {advice}".rstrip(),
            )
        if error.code == _ACCESS_REFUSED:
            return ReconcileError(
                Reason.PERMISSION_DENIED,
                f"The user {self.binding.username!r} may not do this with {what}. RabbitMQ says: {error.text}",
            )
        return ReconcileError(Reason.QUEUE_REFUSED, f"RabbitMQ refused {what}: {error.code} {error.text}")

    # -- the connection ------------------------------------------------------------------------------

    async def _run(self) -> None:
        backoff = Backoff(*RECONNECT_SECONDS)
        try:
            while True:
                try:
                    connection = await self._open()
                    opened = time.monotonic()
                    reason = await self._serve(connection)
                    if time.monotonic() - opened >= STEADY_SECONDS:
                        backoff.reset()
                    problem = ReconcileError(
                        Reason.BROKER_UNREACHABLE,
                        f"The connection to the broker {self.binding.display} was lost ({words_of(reason)}). "
                        "Replicas stay as they are until it is back.",
                    )
                except ReconcileError as why:
                    problem = why
                except Exception as error:
                    # Whatever nobody thought of must not end the attempts.
                    logger.exception("Connecting failed.", extra={"broker": self.binding.display})
                    problem = ReconcileError(
                        Reason.INTERNAL_ERROR,
                        f"Connecting to the broker {self.binding.display} failed ({error!r}). Please report it.",
                    )
                self._note(problem)
                await asyncio.sleep(backoff.next())
        finally:
            self._drop()

    async def _serve(self, connection: AsyncioConnection) -> BaseException:
        self._connection = connection
        self.generation += 1
        self.version = BrokerVersion.parse(str((connection.server_properties or {}).get("version", "")))
        self.cluster = str((connection.server_properties or {}).get("cluster_name", ""))
        self._doorbells = Doorbells(connection, self._on_ring, self._on_removed)
        self._lanes = [CallChannel(connection) for _ in range(LANES)]
        self._admins = [CallChannel(connection, DECLARE_TIMEOUT) for _ in range(DECLARING)]
        self.problem = None
        self._settled.set()
        logger.info(
            "Connected to the broker.", extra={"broker": self.binding.display, "version": self.version}
        )
        self._on_state()
        assert self._closed is not None  # noqa: S101 - `_open` has made it
        # Shielded: `close` waits for it after this task was cancelled.
        return await asyncio.shield(self._closed)

    def _note(self, problem: ReconcileError) -> None:
        changed = self.problem is None or self.problem.message != problem.message
        self._connection = self._doorbells = None
        self._lanes, self._admins = [], []
        self.problem = problem
        self._settled.set()
        if changed:
            logger.warning(
                "The broker cannot be used.",
                extra={"broker": self.binding.display, "reason": problem.reason, "detail": problem.message},
            )
            self._on_state()

    async def _open(self) -> AsyncioConnection:
        """Connect to the first address that answers.

        Raises:
            Trouble: none did; the reason is that of the last address.
        """
        parameters = await self._all_parameters()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[AsyncioConnection | AMQPConnectorException] = loop.create_future()
        closed: asyncio.Future[BaseException] = loop.create_future()

        def on_done(result: AsyncioConnection | AMQPConnectorException) -> None:
            if isinstance(result, AMQPConnectorException):
                if not done.done():
                    done.set_result(result)
            elif done.done():
                # Connected after all, when nobody waits for it any more.
                result.close()
            else:
                # At once: it may be lost again before the waiting task runs.
                result.add_on_close_callback(
                    lambda _, reason: None if closed.done() else closed.set_result(reason)
                )
                done.set_result(result)

        # Each address has pika's own time limits.
        workflow = _PikaConnection.create_connection(parameters, on_done=on_done, custom_ioloop=loop)
        try:
            result = await done
        except asyncio.CancelledError:
            if done.cancelled():
                # It raises when it is just coming to its end by itself.
                with contextlib.suppress(AMQPConnectorWrongState, AssertionError):
                    workflow.abort()
            elif isinstance(result := done.result(), AsyncioConnection):
                result.close()
            raise
        if isinstance(result, AMQPConnectorException):
            raise _connect_problem(result, self.binding)
        self._closed = closed
        return result

    async def _all_parameters(self) -> list[ConnectionParameters]:
        binding = await permitted(self.binding, self._destinations)
        tls = binding.tls
        try:
            made = None if tls is None else await context(tls)
        except UNUSABLE as error:
            raise ReconcileError(
                Reason.SECRET_INVALID,
                f"A certificate or key for {self.binding.display} cannot be read ({error}). "
                "Correct ca.crt, tls.crt and tls.key in the Secret: each must be PEM, the key without passphrase.",
            ) from error
        return [
            connection_parameters(
                binding,
                address,
                made,
                {"connection_name": "workqueue-operator"},
                heartbeat=HEARTBEAT_SECONDS,
                socket_timeout=CONNECT_TIMEOUT,
                stack_timeout=CONNECT_TIMEOUT,
            )
            for address in binding.addresses
        ]

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._doorbells = None
        self._lanes, self._admins = [], []
        if connection is not None and connection.is_open:
            connection.close()


def _freest(channels: Sequence[CallChannel]) -> CallChannel | None:
    return min(channels, key=lambda channel: channel.waiting, default=None)


def _connect_problem(error: AMQPConnectorException, binding: Binding) -> ReconcileError:
    """Name the reason of a failed attempt; `str()` of pika's errors is often empty."""
    cause: BaseException = error
    if isinstance(error, AMQPConnectionWorkflowFailed) and error.exceptions:
        cause = error.exceptions[-1]
    if isinstance(cause, AMQPConnectorAMQPHandshakeError):
        cause = cause.exception
    # pika guesses from the state of the handshake; a broker that is going down closes it there, too.
    said = " ".join(map(str, cause.args))
    if isinstance(cause, AuthenticationError) or (
        isinstance(cause, ProbableAuthenticationError) and "ACCESS_REFUSED" in said
    ):
        return ReconcileError(
            Reason.AUTHENTICATION_FAILED,
            f"The broker {binding.display} refuses the user {binding.username!r} with this password. "
            "Correct username and password in the Secret; it is read again by itself.",
        )
    if isinstance(cause, ProbableAccessDeniedError) and "NOT_ALLOWED" in said:
        missing = "not found" in said
        return ReconcileError(
            Reason.VIRTUAL_HOST_NOT_FOUND if missing else Reason.PERMISSION_DENIED,
            f"The broker {binding.display} refuses the virtual host {binding.virtual_host!r} to the user "
            f"{binding.username!r}: "
            + (
                "it does not exist. Create it, or correct it in the Secret."
                if missing
                else f"{said}. Give the user access to it (rabbitmqctl set_permissions)."
            ),
        )
    inner = getattr(cause, "exception", None) or cause
    return ReconcileError(
        Reason.BROKER_UNREACHABLE,
        f"The broker {binding.display} cannot be reached ({words_of(inner)}). Check host and port in the Secret, "
        "DNS, NetworkPolicies and the broker. Replicas stay as they are.",
    )
