"""One connection to one broker for all its queues: counts, declarations, deletions and doorbells.

A second one, made on demand, has the doorbells of queues with large messages.

A third one, also made on demand, publishes recurring messages and tokens. The others never publish, because a broker
with a memory alarm blocks publishing connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections.abc import Callable, Mapping
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
from workqueue.amqp.errors import describe
from workqueue.amqp.frame_limits import BoundedFrames, receive_in_large_parts, send_frames_together
from workqueue.amqp.parameters import connection_parameters
from workqueue.amqp.tls import UNUSABLE
from workqueue.contract import topology
from workqueue.contract.binding import Binding
from workqueue.contract.topology import BrokerVersion, Plan, Queue, conflict_advice
from workqueue_operator.api.reasons import UNANSWERED, Reason
from workqueue_operator.broker import confirmed
from workqueue_operator.broker.addresses import permitted, resolved
from workqueue_operator.broker.channel import (
    CALL_TIMEOUT,
    DECLARE_TIMEOUT,
    Calls,
    ChannelLostError,
    ChannelRefusedError,
    Send,
    describe_connection_error,
)
from workqueue_operator.broker.confirmed import OwnMessage
from workqueue_operator.broker.doorbell import Doorbells
from workqueue_operator.broker.tls import context
from workqueue_operator.broker.token_publisher import TokenPublisher
from workqueue_operator.destinations import ANYWHERE, Destinations
from workqueue_operator.errors import ReconcileError

logger = logging.getLogger(__name__)

POLLING: Final = 32
"""Channels for polls. A channel has one call outstanding. The poller polls as many queues at the same time: a poll
that waits for a channel costs a third more (measured)."""

ASKING: Final = 16
"""Channels for questions of passes, such as after a ring. Separate, so that they never wait for a poll."""

DECLARING: Final = 8
"""Channels for declarations and deletions. With 4, the first passes over 1,000 WorkQueues wait for them."""

HEARTBEAT_SECONDS: Final = 5
"""A frozen operator holds one message of each queue after a ring, until its heartbeat times out."""

CONNECT_TIMEOUT: Final = 5.0
"""Seconds for an address at most."""

RANDOM_SHARE: Final = 0.2
"""The random part of that time. Otherwise attempts that begin together end in the same turn of the event loop, and a
ring waits for all of them."""

CLOSE_TIMEOUT: Final = 1.0
RECONNECT_SECONDS: Final = (0.2, 5.0)
"""The first and the longest pause between two attempts, in seconds, with full jitter."""

FIRST_CONNECT_SECONDS: Final = (0.2, 15.0)
"""The same until the first connection. Hundreds of wrong addresses must not keep the operator busy. A changed address
makes a new Broker, which starts with the first pause."""

LARGE_MESSAGE: Final = 256 * 1024
"""Bytes. A queue whose last message was at least this large has its doorbell on a connection for such queues. Others
would wait for its messages: RabbitMQ sends 16 MiB in about 50 ms at best."""

_COMPARISON: Final = "comparison of two connections"

_NOT_FOUND: Final = 404
_ACCESS_REFUSED: Final = 403
_PRECONDITION_FAILED: Final = 406


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """The answer to a declare, passive or not.

    Attributes:
        ready: messages waiting in the queue.
        consumers: consumers without our doorbell.
        at: time of the answer on the event loop's clock, in seconds.
        doorbell: whether our doorbell was installed and counted by the broker.
    """

    ready: int
    consumers: int
    at: float
    doorbell: bool = False


class QueueMissingError(Exception):
    """The queue does not exist."""


class _PikaConnection(BoundedFrames, AsyncioConnection):  # type: ignore[misc]
    """pika's connection with bounded frames. Doorbells need neither properties nor bodies."""

    reads_properties = False
    keeps_bodies = False


class _PublishingConnection(_PikaConnection):
    """The same for messages of the operator's own. It reads the ids of those that were published."""

    reads_properties = True


class Broker:
    """A connection that reconnects until it is closed.

    Args:
        binding: address and credentials.
        on_ring: called with the name of a queue when its doorbell rings.
        on_removed: called with the name of a queue that lost its doorbell, and the refusal or None.
        on_state: called when the connection opened or was lost.
        destinations: the hosts that the operator may connect to.
        on_message: called with the name of a queue and the size in bytes of a message that reached its doorbell.
            None: this connection chooses between itself and a second one for the next doorbell.
        connection: its class.
    """

    def __init__(
        self,
        binding: Binding,
        on_ring: Callable[[str], None],
        on_removed: Callable[[str, tuple[int, str] | None], None],
        on_state: Callable[[], None],
        destinations: Destinations = ANYWHERE,
        on_message: Callable[[str, int], None] | None = None,
        connection: type[_PikaConnection] = _PikaConnection,
    ) -> None:
        self.binding = binding
        self._connection_class = connection
        self._destinations = destinations
        self.generation = 0
        self.version = BrokerVersion(0, 0)
        self.cluster = ""
        self.problem: ReconcileError | None = None
        self._on_ring = on_ring
        self._on_removed = on_removed
        self._on_state = on_state
        self._on_message = on_message or self._note_size
        self._connection: AsyncioConnection | None = None
        self._doorbells: Doorbells | None = None
        self._large: set[str] = set()
        self._beside: Broker | None = None
        self._publishing: Broker | None = None
        self._turns = confirmed.Turns()
        self._tokens: TokenPublisher | None = None
        self._is_closed = False
        self._polls: Calls | None = None
        self._questions: Calls | None = None
        self._declarations: Calls | None = None
        self._settled = asyncio.Event()
        self._closed: asyncio.Future[BaseException] | None = None
        self._task = asyncio.create_task(self._run(), name=f"broker {binding.display}")

    @property
    def connected(self) -> bool:
        """Whether the connection is open."""
        return self._connection is not None and self._connection.is_open

    async def close(self) -> None:
        """Close the connection. It removes the doorbells without calling `on_removed`."""
        self._is_closed = True
        others = [other for other in (self._beside, self._publishing) if other is not None]
        await asyncio.gather(self._close_own(), *(other.close() for other in others))

    async def _close_own(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        if self._closed is not None:
            # The close must be sent before the process exits. A broker that does not answer is not awaited.
            await asyncio.wait([self._closed], timeout=CLOSE_TIMEOUT)

    async def ready(self) -> None:
        """Return when connected.

        Raises:
            ReconcileError: the last attempt failed or timed out.
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
                    f"The broker {self.binding.display} accepts connections but does not answer. Check its state.",
                )
            )

    # -- doorbells -----------------------------------------------------------------------------------

    async def install_doorbell(self, queue: str, *, ours: bool = True) -> bool:
        """Install a doorbell; return whether the broker confirmed it (see Doorbells.install)."""
        if queue in self._large and not self._is_closed:
            return await self._for_large_messages().install_doorbell(queue, ours=ours)
        return self._doorbells is not None and await self._doorbells.install(queue, ours=ours)

    def doorbell_is_silent(self, queue: str) -> bool:
        """Return whether the queue did not answer our last call (see Doorbells.is_silent)."""
        return any(doorbells.is_silent(queue) for doorbells in self._all_doorbells())

    def remove_doorbell(self, queue: str) -> None:
        """Cancel the doorbell of a queue, if any."""
        for doorbells in self._all_doorbells():
            doorbells.remove(queue)

    def has_doorbell(self, queue: str) -> bool:
        """Return whether our doorbell is one of the queue's consumers."""
        return any(doorbells.is_installed(queue) for doorbells in self._all_doorbells())

    def doorbell_installed_at(self, queue: str) -> float | None:
        """Return when the broker confirmed the queue's doorbell, on the event loop's clock; None without one."""
        found = (doorbells.installed_at(queue) for doorbells in self._all_doorbells())
        return next((moment for moment in found if moment is not None), None)

    @property
    def doorbells(self) -> int:
        """The number of installed doorbells."""
        return sum(len(doorbells) for doorbells in self._all_doorbells())

    def _all_doorbells(self) -> list[Doorbells]:
        found = [self._doorbells, self._beside._doorbells if self._beside is not None else None]  # noqa: SLF001
        return [doorbells for doorbells in found if doorbells is not None]

    def _note_size(self, queue: str, size: int) -> None:
        if size >= LARGE_MESSAGE:
            self._large.add(queue)
        else:
            self._large.discard(queue)

    def _for_large_messages(self) -> Broker:
        """The connection for doorbells of queues with large messages."""
        if self._beside is None:
            self._beside = Broker(
                self.binding,
                self._on_ring,
                self._on_removed,
                self._on_beside_state,
                self._destinations,
                self._note_size,
            )
        return self._beside

    def _on_beside_state(self) -> None:
        for queue in list(self._large):
            self._on_removed(queue, None)

    # -- messages of the operator's own --------------------------------------------------------------

    async def publish(self, message: OwnMessage) -> None:
        """Publish a message, and return when RabbitMQ has confirmed it (see `confirmed.publish`).

        Raises:
            ReconcileError: not connected.
            NotPublishedError: RabbitMQ returned or refused it.
            UnconfirmedError: the connection was lost.
        """
        await confirmed.publish(await self._publishing_connection(), message)

    async def publish_in_turn(self, message: OwnMessage) -> None:
        """Do the same when no other message waits for its confirm (see `confirmed.Turns`)."""
        async with self._turns.turn(message.queue):
            await self.publish(message)

    async def read_ledger(self, ledger: Queue) -> set[str]:
        """Return the ids of the messages that were confirmed lately (see `confirmed.read_ledger`).

        Raises:
            ReconcileError: not connected. The reason is BrokerTimeout if the ledger does not answer, although the
                connection is not blocked.
        """
        # A call about a queue that does not answer keeps a channel, and `counts` limits them.
        if not await self._has_messages(self, ledger):
            return set()
        try:
            connection = await self._publishing_connection()
            assert self._publishing is not None  # noqa: S101 - it has the connection
            if not await self._has_messages(self._publishing, ledger):
                return set()
            return await confirmed.read_ledger(connection, ledger)
        except ChannelLostError as error:
            raise ReconcileError(
                Reason.BROKER_UNREACHABLE, self._silent(f"queue {ledger.name!r}", str(error))
            ) from error
        except ReconcileError as problem:
            # RabbitMQ has just answered over the other connection, so this one is blocked or cannot be opened.
            raise ReconcileError(Reason.BROKER_UNREACHABLE, problem.message) from problem

    @staticmethod
    async def _has_messages(broker: Broker, queue: Queue) -> bool:
        """Return whether messages wait in a queue. RabbitMQ may refuse to tell.

        Raises:
            ReconcileError: not connected, or no answer.
        """
        try:
            counts = await broker.counts_if_there(queue.name)
        except ReconcileError as problem:
            if problem.reason in UNANSWERED:
                raise
            return False
        return counts is not None and counts.ready > 0

    async def publish_tokens(self, queue: str, body: bytes, count: int) -> int:
        """Publish some tokens, and return how many of them the queue has taken. A full queue takes no more.

        Raises:
            QueueMissingError: the queue does not exist.
            ReconcileError: refused, not connected, or the connection was lost.
        """
        connection = await self._publishing_connection()
        if self._tokens is None or self._tokens.connection is not connection:
            self._tokens = TokenPublisher(connection)
        try:
            taken = await self._tokens.publish(queue, body, count)
        except ChannelLostError as error:
            raise ReconcileError(
                Reason.BROKER_UNREACHABLE, self._silent(f"tokens for queue {queue!r}", str(error))
            ) from error
        except ChannelRefusedError as error:
            raise self._refusal(error, f"tokens for queue {queue!r}", advice="") from error
        if taken is None:
            raise QueueMissingError(queue)
        return taken

    async def _publishing_connection(self) -> AsyncioConnection:
        """Return the connection for messages of the operator's own.

        Raises:
            ReconcileError: not connected.
        """
        if self._is_closed:
            # Such as after the last WorkQueue has left it. Nothing would close the other one.
            raise ReconcileError(
                Reason.BROKER_UNREACHABLE, f"The connection to the broker {self.binding.display} was closed."
            )
        if self._publishing is None:
            self._publishing = Broker(
                self.binding,
                lambda _: None,
                lambda _queue, _reason: None,
                lambda: None,
                self._destinations,
                lambda _queue, _size: None,
                _PublishingConnection,
            )
        other = self._publishing
        await other.ready()
        connection = other._connection  # noqa: SLF001
        if connection is None:
            raise ReconcileError(
                Reason.BROKER_UNREACHABLE, f"The connection to the broker {self.binding.display} was lost."
            )
        return connection

    # -- polls ---------------------------------------------------------------------------------------

    async def counts(self, queue: str, *, about: str = "") -> QueueCounts:
        """Return the counts of a queue, by passive declare.

        Args:
            about: the name under which a missing answer is noted, if it is not the queue's.

        Raises:
            QueueMissingError: the queue does not exist.
            ReconcileError: no connection, no answer, or no permission.
        """
        return await self._passive_declare(self._questions, queue, about or queue)

    async def poll(self, queue: str) -> QueueCounts:
        """Do the same for a round over many queues, which no pass waits for."""
        return await self._passive_declare(self._polls, queue, queue)

    @property
    def polls_wait(self) -> bool:
        """Whether polls wait for a channel."""
        return self._polls is not None and self._polls.waiting > 0

    @property
    def passes_wait(self) -> bool:
        """Whether calls of passes wait for a channel."""
        return any(calls is not None and calls.waiting > 0 for calls in (self._questions, self._declarations))

    @property
    def is_busy(self) -> bool:
        """Whether calls of passes wait for a channel although RabbitMQ answers."""
        return any(calls is not None and calls.is_busy for calls in (self._questions, self._declarations))

    async def _passive_declare(self, calls: Calls | None, queue: str, about: str) -> QueueCounts:
        frame = await self._call(
            calls,
            about,
            lambda channel, done: channel.queue_declare(queue, passive=True, callback=done),
            f"queue {queue!r}",
        )
        return self._counted(frame.method)

    async def counts_if_there(self, queue: str) -> QueueCounts | None:
        """Return the counts of a queue; None if it does not exist."""
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
        """Return whether another connection leads to the same broker and virtual host, by any address.

        Cluster names are not unique: many StatefulSets have a first pod rabbit@rabbitmq-0. So equal names are
        verified with an exclusive queue. The other connection sees it only if the broker is the same.

        Args:
            queue: a work queue of both. The exclusive queue is named like one of its delay queues, which both users
                may declare.

        Returns:
            None if one of them is not connected or does not answer.
        """
        if self.binding.display == other.binding.display:
            return True
        if self.binding.virtual_host != other.binding.virtual_host:
            return False
        if not (self.connected and other.connected):
            return None
        return await self._shows_to(other, queue) if self.cluster == other.cluster else False

    async def _shows_to(self, other: Broker, queue: str) -> bool | None:
        """Return whether another connection sees an exclusive queue that this connection declares.

        Returns:
            None if one of them does not answer.
        """
        name = f"{queue}.retry.{secrets.token_hex(8)}"
        classic = {"x-queue-type": "classic"}
        try:
            await self._call(
                self._declarations,
                queue,
                lambda channel, done: channel.queue_declare(
                    name, exclusive=True, auto_delete=True, arguments=classic, callback=done
                ),
                f"queue {name!r}",
            )
            try:
                await other.counts(name, about=_COMPARISON)
            finally:
                await self.delete_queue(name)
        except QueueMissingError:
            return False
        except ReconcileError as problem:
            if problem.reason in UNANSWERED:
                return None
            # The queue is locked, as expected. After any other refusal, the equal cluster names decide.
            logger.debug(
                "The other connection sees the exclusive queue.",
                extra={"queue": name, "detail": problem.message},
            )
        return True

    # -- declarations --------------------------------------------------------------------------------

    async def declare(self, plan: Plan) -> Mapping[str, QueueCounts]:
        """Declare the queues and the exchanges of a plan, and bind them. Idempotent.

        Existing queues are declared first, then exchanges, then missing queues. So a conflict creates nothing.

        Returns:
            The counts of each queue.

        Raises:
            ReconcileError: refused (a conflict names the argument), or no answer.
        """
        answers: dict[str, QueueCounts] = {}
        missing: list[Queue] = []
        for queue in plan.queues:
            # The last declaration needs no check: a conflict there creates nothing.
            makes_last = queue is plan.queues[-1] and not missing and not plan.exchanges
            if makes_last or await self.counts_if_there(queue.name) is not None:
                answers[queue.name] = await self.declare_queue(queue)
            else:
                missing.append(queue)
        for exchange in plan.exchanges:
            await self.declare_exchange(exchange, plan.queues[0].name)
        for queue in missing:
            answers[queue.name] = await self.declare_queue(queue)
        for step in plan.step_bindings:
            await self._bind_step(step)
        for binding in plan.bindings:
            if plan.declares(binding.exchange):
                await self.bind(binding)
        return answers

    async def declare_exchange(
        self, exchange: topology.Exchange, queue: str, *, passive: bool = False
    ) -> None:
        """Declare an exchange. Idempotent.

        Args:
            queue: that it is for.
            passive: only look whether it exists.

        Raises:
            QueueMissingError: it does not exist, and `passive` is true.
            ReconcileError: refused, or no answer.
        """
        await self._call(
            self._declarations,
            queue,
            lambda channel, done: channel.exchange_declare(
                exchange.name,
                exchange_type=exchange.type.value.lower(),
                durable=True,
                passive=passive,
                callback=done,
            ),
            f"exchange {exchange.name!r}",
        )

    async def _bind_step(self, step: topology.ExchangeBinding) -> None:
        await self._call(
            self._declarations,
            step.exchange,
            lambda channel, done: channel.exchange_bind(
                step.exchange, step.source, step.routing_key, callback=done
            ),
            f"binding of exchange {step.exchange!r}",
        )

    async def bind(self, binding: topology.QueueBinding) -> None:
        """Bind a queue that exists to an exchange. Idempotent.

        Raises:
            ReconcileError: the exchange does not exist (ExchangeNotFound), or refused, or no answer.
        """
        try:
            await self._change_binding(binding, lambda channel: channel.queue_bind)
        except QueueMissingError as error:
            raise ReconcileError(
                Reason.EXCHANGE_NOT_FOUND,
                f"The exchange {binding.exchange!r} that queue.bindings names does not exist. Create it, or correct "
                "the name. The queue works without this binding.",
            ) from error

    async def unbind(self, binding: topology.QueueBinding) -> None:
        """Remove a binding, if it exists.

        Raises:
            ReconcileError: refused, or no answer.
        """
        with contextlib.suppress(QueueMissingError):
            await self._change_binding(binding, lambda channel: channel.queue_unbind)

    async def _change_binding(
        self, binding: topology.QueueBinding, method: Callable[[Any], Callable[..., Any]]
    ) -> None:
        """Call queue.bind or queue.unbind."""
        await self._call(
            self._declarations,
            binding.queue,
            lambda channel, done: method(channel)(
                binding.queue,
                binding.exchange,
                binding.routing_key,
                arguments=dict(binding.arguments),
                callback=done,
            ),
            f"binding of queue {binding.queue!r} to exchange {binding.exchange!r}",
        )

    async def declare_queue(self, queue: Queue) -> QueueCounts:
        """Declare one durable queue. Idempotent.

        Raises:
            ReconcileError: as `declare`.
        """
        frame = await self._call(
            self._declarations,
            queue.name,
            lambda channel, done: channel.queue_declare(
                queue.name, durable=True, arguments=dict(queue.arguments), callback=done
            ),
            f"queue {queue.name!r}",
            conflict_advice(queue.name),
        )
        return self._counted(frame.method)

    async def delete_queue(self, queue: str, *, if_unused: bool = False, if_empty: bool = False) -> None:
        """Delete a queue and its messages, if it exists.

        Args:
            if_unused, if_empty: only for classic queues. On a quorum queue they close the whole connection (540).

        Raises:
            ReconcileError: refused. The reason is QueueConflict if the queue is in use or not empty.
        """
        with contextlib.suppress(QueueMissingError):
            await self._call(
                self._declarations,
                queue,
                lambda channel, done: channel.queue_delete(
                    queue, if_unused=if_unused, if_empty=if_empty, callback=done
                ),
                f"queue {queue!r}",
            )

    async def delete_exchange(self, exchange: str) -> None:
        """Delete an exchange, if it exists.

        Raises:
            ReconcileError: refused, or no answer.
        """
        await self._call(
            self._declarations,
            exchange,
            lambda channel, done: channel.exchange_delete(exchange, callback=done),
            f"exchange {exchange!r}",
        )

    def mark_vanished(self, queue: str) -> None:
        """Remember that the queue was deleted (see Doorbells.mark_vanished)."""
        for doorbells in self._all_doorbells():
            doorbells.mark_vanished(queue)

    async def _call(self, calls: Calls | None, queue: str, send: Send, what: str, advice: str = "") -> Any:
        """Make one call about a queue.

        Args:
            calls: of this kind; None without a connection.
            what: what the call is about, for messages.
            advice: added to the message about a conflict.
        """
        if calls is None:
            await self.ready()
            raise ReconcileError(
                Reason.BROKER_UNREACHABLE, self._silent(what, "the connection was just reopened")
            )
        try:
            return await calls.call(queue, send)
        except ChannelLostError as error:
            reason = Reason.BROKER_TIMEOUT if self.connected else Reason.BROKER_UNREACHABLE
            raise ReconcileError(reason, self._silent(what, str(error))) from error
        except ChannelRefusedError as error:
            raise self._refusal(error, what, advice) from error

    def _on_answer(self, queue: str) -> None:
        """A queue answers again: the next pass finds out what it says."""
        self._on_removed(queue, None)

    def _silent(self, what: str, why: str) -> str:
        return (
            f"The broker {self.binding.display} did not answer about {what}: {why}. Replicas stay unchanged."
        )

    def _refusal(self, error: ChannelRefusedError, what: str, advice: str) -> Exception:
        if error.code == _NOT_FOUND:
            return QueueMissingError(what)
        if error.code == _PRECONDITION_FAILED:
            return ReconcileError(
                Reason.QUEUE_CONFLICT,
                f"The {what} exists with other arguments. The operator did not change it. RabbitMQ says: "
                f"{error.text.rstrip('.')}. {advice}".rstrip(),
            )
        if error.code == _ACCESS_REFUSED:
            return ReconcileError(
                Reason.PERMISSION_DENIED,
                f"The user {self.binding.username!r} has no permission for {what}. RabbitMQ says: {error.text}",
            )
        return ReconcileError(Reason.QUEUE_REFUSED, f"RabbitMQ refused {what}: {error.code} {error.text}")

    # -- the connection ------------------------------------------------------------------------------

    async def _run(self) -> None:
        backoff = Backoff(*FIRST_CONNECT_SECONDS)
        try:
            while True:
                try:
                    connection = await self._open()
                    if self.generation == 0:
                        backoff = Backoff(*RECONNECT_SECONDS)
                    opened = time.monotonic()
                    reason = await self._serve(connection)
                    if time.monotonic() - opened >= STEADY_SECONDS:
                        backoff.reset()
                    problem = ReconcileError(
                        Reason.BROKER_UNREACHABLE,
                        f"The connection to the broker {self.binding.display} was lost "
                        f"({describe_connection_error(reason)}). Replicas stay unchanged until it is restored.",
                    )
                except ReconcileError as why:
                    problem = why
                except Exception as error:
                    # An unexpected error must not stop the attempts.
                    logger.exception("Connecting failed.", extra={"broker": self.binding.display})
                    problem = ReconcileError(
                        Reason.INTERNAL_ERROR,
                        f"The connection to the broker {self.binding.display} failed unexpectedly ({error!r}). "
                        "Report this bug.",
                    )
                self._note(problem)
                await asyncio.sleep(backoff.next())
        finally:
            self._drop()

    async def _serve(self, connection: AsyncioConnection) -> BaseException:
        receive_in_large_parts(connection, tls=self.binding.tls is not None)
        send_frames_together(connection, tls=self.binding.tls is not None)
        self._connection = connection
        self.generation += 1
        self.version = BrokerVersion.parse(str((connection.server_properties or {}).get("version", "")))
        self.cluster = str((connection.server_properties or {}).get("cluster_name", ""))
        self._doorbells = Doorbells(connection, self._on_ring, self._on_removed, self._on_message)
        self._polls = Calls(connection, CALL_TIMEOUT, POLLING, self._on_answer)
        self._questions = Calls(connection, CALL_TIMEOUT, ASKING, self._on_answer)
        self._declarations = Calls(connection, DECLARE_TIMEOUT, DECLARING, self._on_answer)
        self.problem = None
        self._settled.set()
        logger.info(
            "Connected to the broker.", extra={"broker": self.binding.display, "version": self.version}
        )
        self._on_state()
        assert self._closed is not None  # noqa: S101 - `_open` has set it
        # Shielded, because `close` awaits it after it has cancelled this task.
        return await asyncio.shield(self._closed)

    def _note(self, problem: ReconcileError) -> None:
        changed = self.problem is None or self.problem.message != problem.message
        self._connection = self._doorbells = None
        self._polls = self._questions = self._declarations = None
        self.problem = problem
        self._settled.set()
        if changed:
            logger.warning(
                "The broker is not available.",
                extra={"broker": self.binding.display, "reason": problem.reason, "detail": problem.message},
            )
            self._on_state()

    async def _open(self) -> AsyncioConnection:
        """Connect to the first address that answers.

        Raises:
            ReconcileError: no address answered. Has the reason of the last address.
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
                # Connected after the waiting task was cancelled.
                result.close()
            else:
                # Registered here, because the connection may be lost before the waiting task runs.
                result.add_on_close_callback(
                    lambda _, reason: None if closed.done() else closed.set_result(reason)
                )
                done.set_result(result)

        # pika limits the time for each address.
        workflow = self._connection_class.create_connection(parameters, on_done=on_done, custom_ioloop=loop)
        try:
            result = await done
        except asyncio.CancelledError:
            if done.cancelled():
                # It raises if the workflow is just completing.
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
                f"A certificate or key for {self.binding.display} is invalid ({error}). "
                "Correct ca.crt, tls.crt and tls.key in the Secret: each must be PEM, the key without a passphrase.",
            ) from error
        try:
            places = await resolved(binding)
        except OSError as error:
            raise _unreachable(binding, error) from error
        seconds = CONNECT_TIMEOUT * (1.0 - RANDOM_SHARE * random.random())  # noqa: S311 - as in Backoff
        return [
            connection_parameters(
                _with_server_name(binding, host),
                address,
                made,
                {"connection_name": "workqueue-operator"},
                heartbeat=HEARTBEAT_SECONDS,
                socket_timeout=seconds,
                stack_timeout=seconds,
            )
            for host, address in places
        ]

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._doorbells = None
        self._polls = self._questions = self._declarations = None
        if connection is not None and connection.is_open:
            connection.close()


def _connect_problem(error: AMQPConnectorException, binding: Binding) -> ReconcileError:
    """Translate the error of a failed attempt. `str()` of pika's errors is often empty."""
    cause: BaseException = error
    if isinstance(error, AMQPConnectionWorkflowFailed) and error.exceptions:
        cause = error.exceptions[-1]
    if isinstance(cause, AMQPConnectorAMQPHandshakeError):
        cause = cause.exception
    # pika guesses from the state of the handshake, but a broker that shuts down closes it there, too.
    said = " ".join(map(str, cause.args))
    if isinstance(cause, AuthenticationError) or (
        isinstance(cause, ProbableAuthenticationError) and "ACCESS_REFUSED" in said
    ):
        return ReconcileError(
            Reason.AUTHENTICATION_FAILED,
            f"The broker {binding.display} refuses the user {binding.username!r} with this password. "
            "Correct username and password in the Secret. The operator reads it again automatically.",
        )
    if isinstance(cause, ProbableAccessDeniedError) and "NOT_ALLOWED" in said:
        if "limit" in said and "reached" in said:
            return ReconcileError(
                Reason.BROKER_UNREACHABLE,
                f"The broker {binding.display} refuses another connection of the user {binding.username!r} "
                f"({describe(cause)}). Raise the limit (rabbitmqctl set_user_limits or set_vhost_limits), or close "
                "other connections. Replicas stay unchanged.",
            )
        missing = "not found" in said
        return ReconcileError(
            Reason.VIRTUAL_HOST_NOT_FOUND if missing else Reason.PERMISSION_DENIED,
            f"The broker {binding.display} refuses the virtual host {binding.virtual_host!r} for the user "
            f"{binding.username!r}: "
            + (
                "it does not exist. Create it, or correct it in the Secret."
                if missing
                else f"{said}. Give the user access to it (rabbitmqctl set_permissions)."
            ),
        )
    return _unreachable(binding, getattr(cause, "exception", None) or cause)


def _with_server_name(binding: Binding, host: str) -> Binding:
    """Return the binding for a connection to an IP address of a host, whose certificate names the host."""
    if binding.tls is None or binding.tls.server_name:
        return binding
    return binding._replace(tls=binding.tls._replace(server_name=host))


def _unreachable(binding: Binding, error: BaseException) -> ReconcileError:
    return ReconcileError(
        Reason.BROKER_UNREACHABLE,
        f"The operator cannot connect to the broker {binding.display} ({describe_connection_error(error)}). "
        "Check host and port in the Secret, DNS, NetworkPolicies and the broker. Replicas stay unchanged.",
    )
