"""A model of RabbitMQ behind pika's interface: connections, channels and queues, with frames in flight.

The real doorbells, calls and slots run on it. A channel of the server carries out one frame after the other. A queue
without a majority does not answer get, consume and cancel. Its channel is then blocked, with everything that other
queues have sent to it. The model itself never loses a message.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Final

import pika
from pika import spec
from pika.exceptions import (
    ChannelClosedByBroker,
    ChannelClosedByClient,
    ChannelWrongStateError,
    ConnectionWrongStateError,
    StreamLostError,
)

from tests.simulation.loop import Process, Stream
from tests.simulation.world import World
from workqueue.amqp.frame_limits import BoundedFrames
from workqueue.contract.topology import BrokerVersion, ExchangeType, Plan

LATENCY: Final = 0.001
COUNTS_LAG: Final = 0.004
"""Seconds by which the counts of a passive declare lag behind, at most."""

STORED_AGAIN: Final = 0.5
"""Seconds until RabbitMQ looks again whether it can store a message."""

OFFSET: Final = "x-stream-offset"

HEARTBEAT_LOSS: Final = 10.0
"""Seconds after which a silent peer counts as lost."""


@dataclass(eq=False)
class ModelMessage:
    """A message, or the copy of one.

    Attributes:
        original: the id that the publisher gave, which copies keep.
    """

    original: str
    body: bytes
    headers: dict[str, Any] = field(default_factory=dict)
    expiration: str | None = None
    priority: int | None = None
    redelivered: bool = False
    deliveries: int = 0
    at: float = 0.0
    requeued_at: float = -1e9
    size: int = 100
    routing_key: str = ""
    is_transient: bool = False
    """A classic queue loses it when RabbitMQ restarts."""


@dataclass(eq=False)
class ModelConsumer:
    """A consumer of a queue."""

    channel: ModelChannel
    tag: str
    callback: Any
    priority: int
    held: int = 0
    auto_ack: bool = False


class ModelQueue:
    """A durable queue."""

    def __init__(self, rabbit: Rabbit, name: str, arguments: Mapping[str, Any]) -> None:
        self.rabbit = rabbit
        self.name = name
        self.arguments = dict(arguments)
        self.ready: deque[ModelMessage] = deque()
        self.unacked: dict[ModelMessage, ModelChannel] = {}
        self.consumers: list[ModelConsumer] = []
        self.leaderless = False
        self.answers_zero = False
        """A queue that elects a leader reports zeros."""
        self.stuck: list[Callable[[], None]] = []
        """Calls that wait for a majority."""
        self.waiting_since: float | None = None
        self.most = 0
        """The most messages in it since a property last looked."""
        self.lost_deliveries = 0
        """How often a delivery ended with its channel, so that its message returned."""
        self._turn = itertools.count()
        self._expiry = 0.0

    @property
    def is_quorum(self) -> bool:
        return self.arguments.get("x-queue-type") == "quorum"

    @property
    def is_full(self) -> bool:
        """Whether it takes no more messages. Only waiting ones count."""
        return len(self.ready) >= self.arguments.get("x-max-length", math.inf)

    @property
    def messages(self) -> list[ModelMessage]:
        """All messages in it, also unacknowledged ones."""
        return [*self.ready, *self.unacked]

    def push(self, message: ModelMessage) -> None:
        message.at = self.rabbit.world.now
        self.rabbit.on_push(self, message)
        self.ready.append(message)
        self.most = max(self.most, len(self.ready) + len(self.unacked))
        self.deliver()
        self.expire()

    def deliver(self) -> None:
        """Send waiting messages to consumers that may have one."""
        while self.ready and not self.leaderless and not self.rabbit.down:
            consumer = self._next()
            if consumer is None:
                break
            message = self.ready.popleft()
            self._note_waiting()
            if not consumer.auto_ack:
                consumer.held += 1
                self.unacked[message] = consumer.channel
            self.rabbit.on_delivery(self, consumer, message)
            consumer.channel.deliver(self, consumer, message)
        self._note_waiting()

    def _note_waiting(self) -> None:
        now = self.rabbit.world.now
        if not self.ready:
            self.waiting_since = None
        elif self.waiting_since is None:
            self.waiting_since = now

    def _next(self) -> ModelConsumer | None:
        single = self.arguments.get("x-single-active-consumer")
        consumers = self.consumers[:1] if single else self.consumers
        able = [one for one in consumers if one.held < one.channel.prefetch]
        if not able:
            return None
        highest = max(one.priority for one in able)
        best = [one for one in able if one.priority == highest]
        return best[next(self._turn) % len(best)]

    def requeue(self, message: ModelMessage, *, failed: bool) -> None:
        """Take back an unacknowledged message."""
        if self.unacked.pop(message, None) is None:
            return
        message.redelivered = True
        message.requeued_at = self.rabbit.world.now
        counts = failed or self.rabbit.version.nack_counts_as_delivery
        if self.is_quorum and counts:
            message.deliveries += 1
        limit = self.arguments.get("x-delivery-limit", -1)
        if self.is_quorum and 0 <= limit < message.deliveries:
            self._dead_letter(message)
            return
        self.ready.appendleft(message)

    def _dead_letter(self, message: ModelMessage) -> bool:
        target = self._target(message)
        if target is None:
            return False
        message.routing_key = self.arguments.get("x-dead-letter-routing-key", message.routing_key)
        # RabbitMQ removes the TTL of a message that it dead-letters.
        message.expiration, message.deliveries = None, 0
        target.push(message)
        return True

    def _target(self, message: ModelMessage) -> ModelQueue | None:
        """The queue that a dead-lettered message goes to."""
        key = self.arguments.get("x-dead-letter-routing-key", message.routing_key)
        return self.rabbit.routed(self.arguments.get("x-dead-letter-exchange", ""), key)

    def expire(self) -> None:
        """Dead-letter the head when its time has come, and look again then."""
        ttl = self.arguments.get("x-message-ttl")
        while self.ready:
            head = self.ready[0]
            limits = [float(limit) for limit in (ttl, head.expiration) if limit is not None]
            if not limits:
                return
            due, now = head.at + min(limits) / 1000, self.rabbit.world.now
            if due > now + 1e-6:
                if self._expiry <= now + 1e-6 or self._expiry > due:
                    self._expiry = due
                    self.rabbit.world.later(due - now, self.expire)
                return
            is_kept = "x-dead-letter-exchange" in self.arguments and self._target(head) is None
            if self.leaderless or self.rabbit.down or is_kept:
                self.rabbit.world.later(1.0, self.expire)
                return
            self.ready.popleft()
            if "x-dead-letter-exchange" in self.arguments:
                self._dead_letter(head)

    def counts(self) -> tuple[int, int]:
        """What a passive declare reports."""
        if self.leaderless and self.answers_zero:
            return 0, 0
        return len(self.ready), len(self.consumers)

    def cut(self) -> None:
        """Lose the majority."""
        self.leaderless = True

    def mend(self) -> None:
        """Have a leader again, and answer what has waited."""
        self.leaderless = False
        stuck, self.stuck = self.stuck, []
        for call in stuck:
            call()
        self.deliver()
        self.expire()


class ModelStream(ModelQueue):
    """A stream: keeps everything, and sends it to each consumer from the place that it asks for."""

    def __init__(self, rabbit: Rabbit, name: str, arguments: Mapping[str, Any]) -> None:
        super().__init__(rabbit, name, arguments)
        self.records: list[ModelMessage] = []

    def push(self, message: ModelMessage) -> None:
        message.headers = {**message.headers, OFFSET: len(self.records)}
        message.at = self.rabbit.world.now
        self.records.append(message)
        for consumer in self.consumers:
            consumer.channel.deliver(self, consumer, message)

    def deliver(self) -> None:
        """Records are sent when they come, and when a consumer does."""

    def begin(self, consumer: ModelConsumer, place: str) -> None:
        """Send the records that exist."""
        for record in self.records if place == "first" else self.records[-1:]:
            consumer.channel.deliver(self, consumer, record)

    def requeue(self, message: ModelMessage, *, failed: bool) -> None:
        """A stream keeps its records."""


class ModelChannel:
    """A channel: pika's side with its interface, and the server's side."""

    def __init__(self, connection: ModelConnection, number: int, on_open: Any) -> None:
        self.connection = connection
        self.channel_number = number
        self.is_open = False
        self.is_closing = False
        self.is_closed = False
        self._cancelled: set[str] = set()
        self._tags = itertools.count(1)
        self._calls: deque[Callable[[], None]] = deque()
        self._calling = False
        self._on_close: list[Any] = []
        self._on_cancel: list[Any] = []
        self._callbacks: list[tuple[Any, tuple[Any, ...], bool]] = []
        self._on_return: list[Any] = []
        self._on_confirm: Any = None
        self._published = itertools.count(1)
        # The server's side.
        self.prefetch = 1_000_000
        self.gone = False
        self.blocked = False
        self._frames: deque[Callable[[], None]] = deque()
        self._answers: deque[tuple[Any, ...]] = deque()
        self._delivery_tags = itertools.count(1)
        self._unsettled: dict[int, tuple[ModelQueue, ModelMessage, ModelConsumer | None]] = {}
        connection.send(self, lambda: self.answer(self._opened, on_open))

    # -- pika's methods ------------------------------------------------------------------------------

    def add_on_close_callback(self, callback: Any) -> None:
        self._on_close.append(callback)

    def add_on_cancel_callback(self, callback: Any) -> None:
        self._on_cancel.append(callback)

    def add_callback(self, callback: Any, replies: list[Any], one_shot: bool = True) -> None:
        self._callbacks.append((callback, tuple(replies), one_shot))

    def add_on_return_callback(self, callback: Any) -> None:
        self._on_return.append(callback)

    def confirm_delivery(self, ack_nack_callback: Any, callback: Any = None) -> None:
        self._on_confirm = ack_nack_callback
        self._call(lambda: self._reply(callback, spec.Confirm.SelectOk()))

    def basic_publish(
        self, exchange: str, routing_key: str, body: bytes, properties: Any = None, mandatory: bool = False
    ) -> None:
        self._require_open()
        message = ModelMessage("token", body, routing_key=routing_key)
        message.is_transient = properties is None or properties.delivery_mode != 2
        if properties is not None:
            message.original, message.headers = properties.message_id, dict(properties.headers or {})
        tag = next(self._published)
        self.connection.send(self, lambda: self._publish(exchange, message, mandatory, tag))

    def _publish(self, exchange: str, message: ModelMessage, mandatory: bool, tag: int) -> None:
        rabbit = self.connection.rabbit
        found = rabbit.routed(exchange, message.routing_key)
        if self.gone:
            return
        if found is not None and found.is_full:
            self.answer(self._confirmed, spec.Basic.Nack(tag))
            return
        done = rabbit.publish(exchange, message)
        if done is None:
            # No majority, or an alarm: it is stored and confirmed when that is over.
            rabbit.world.later(STORED_AGAIN, self._publish, exchange, message, mandatory, tag)
            return
        if done:
            rabbit.on_own_publish(self, message)
        elif mandatory:
            returned = SimpleNamespace(reply_text="NO_ROUTE", routing_key=message.routing_key)
            for callback in self._on_return:
                self.answer(callback, self, returned)
        self.answer(self._confirmed, spec.Basic.Ack(tag))

    def _confirmed(self, method: Any) -> None:
        if not self.is_closed:
            self._on_confirm(SimpleNamespace(method=method))

    def basic_qos(self, prefetch_count: int, callback: Any = None) -> None:
        def carry_out() -> None:
            # Also ends a chunk of a stream.
            self.prefetch = prefetch_count
            self._reply(callback, spec.Basic.QosOk())

        self._call(carry_out)

    def queue_declare(
        self,
        queue: str,
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
        callback: Any = None,
    ) -> None:
        def carry_out() -> None:
            rabbit = self.connection.rabbit
            found = rabbit.queues.get(queue)
            if found is None and passive:
                self.close_by_broker(404, f"NOT_FOUND - no queue '{queue}'")
                return
            if found is None:
                found = rabbit.make(queue, arguments or {})
                if exclusive:
                    self.connection.exclusive.add(queue)
            elif not passive and dict(arguments or {}) != found.arguments:
                self.close_by_broker(406, f"PRECONDITION_FAILED - inequivalent arg for queue '{queue}'")
                return
            elif queue in rabbit.exclusive_elsewhere(self.connection):
                self.close_by_broker(405, "RESOURCE_LOCKED - cannot obtain exclusive access")
                return
            if not passive:
                rabbit.on_declare(self.connection, queue)
            if found.leaderless and not found.answers_zero and rabbit.declare_hangs:
                self._wait_for(found, lambda: self._reply_declared(queue, callback))
            else:
                self._reply_declared(queue, callback)

        self._call(carry_out)

    def _reply_declared(self, queue: str, callback: Any) -> None:
        found = self.connection.rabbit.queues.get(queue)
        ready, consumers = found.counts() if found is not None else (0, 0)
        self._reply(callback, spec.Queue.DeclareOk(queue, ready, consumers))

    def queue_delete(
        self, queue: str, if_unused: bool = False, if_empty: bool = False, callback: Any = None
    ) -> None:
        def carry_out() -> None:
            found = self.connection.rabbit.queues.get(queue)
            if found is not None and ((if_unused and found.consumers) or (if_empty and found.ready)):
                self.close_by_broker(406, f"PRECONDITION_FAILED - queue '{queue}' in use")
                return
            if found is not None:
                self.connection.rabbit.delete(queue, by=self.connection)
            self._reply(callback, spec.Queue.DeleteOk(0))

        self._call(carry_out)

    def exchange_declare(
        self,
        exchange: str,
        exchange_type: Any = None,
        *,
        callback: Any = None,
        passive: bool = False,
        **_: Any,
    ) -> None:
        def carry_out() -> None:
            exchanges = self.connection.rabbit.exchanges
            if exchange_type == "fanout":
                self.connection.rabbit.fanouts.setdefault(exchange, {})
            if passive and exchange not in exchanges:
                self.close_by_broker(404, f"NOT_FOUND - no exchange '{exchange}'")
                return
            exchanges.add(exchange)
            self._reply(callback, None)

        self._call(carry_out)

    def exchange_delete(self, exchange: str, *, callback: Any) -> None:
        def carry_out() -> None:
            self.connection.rabbit.bindings.pop(exchange, None)
            self.connection.rabbit.fanouts.pop(exchange, None)
            self.connection.rabbit.exchanges.discard(exchange)
            self._reply(callback, None)

        self._call(carry_out)

    def exchange_bind(self, destination: str, source: str, routing_key: str, *, callback: Any) -> None:
        self._bind(source, routing_key, destination, callback, is_queue=False)

    def queue_bind(
        self, queue: str, exchange: str, routing_key: str, *, callback: Any = None, **_: Any
    ) -> None:
        self._bind(exchange, routing_key, queue, callback, is_queue=True)

    def _bind(self, exchange: str, pattern: str, target: str, callback: Any, *, is_queue: bool) -> None:
        def carry_out() -> None:
            self.connection.rabbit.bind(exchange, pattern, target, is_queue=is_queue)
            self._reply(callback, None)

        self._call(carry_out)

    def basic_get(self, queue: str, callback: Any) -> None:
        def carry_out() -> None:
            found = self.connection.rabbit.queues.get(queue)
            if found is None:
                self.close_by_broker(404, f"NOT_FOUND - no queue '{queue}'")
            elif found.arguments.get("x-single-active-consumer"):
                self.close_by_broker(405, "RESOURCE_LOCKED - single active consumer")
            elif found.leaderless:
                self._wait_for(found, carry_out)
            elif not found.ready:
                self._reply(None, spec.Basic.GetEmpty())
            else:
                message = found.ready.popleft()
                found._note_waiting()
                found.unacked[message] = self
                tag = next(self._delivery_tags)
                self._unsettled[tag] = found, message, None
                self._reply(
                    lambda method: callback(self, method, *self.connection.content(message)),
                    spec.Basic.GetOk(tag),
                )

        self._call(carry_out)

    def basic_consume(
        self,
        queue: str,
        on_message_callback: Any,
        arguments: Mapping[str, Any] | None = None,
        auto_ack: bool = False,
        callback: Any = None,
    ) -> str:
        tag = f"ctag{self.channel_number}.{next(self._tags)}"

        def carry_out() -> None:
            found = self.connection.rabbit.queues.get(queue)
            if found is None:
                self.close_by_broker(404, f"NOT_FOUND - no queue '{queue}'")
                return
            if found.leaderless:
                self._wait_for(found, carry_out)
                return
            if "x-consumer-timeout" in (arguments or {}) and not found.is_quorum:
                self.close_by_broker(406, "PRECONDITION_FAILED - invalid arg 'x-consumer-timeout'")
                return
            priority = (arguments or {}).get("x-priority", 0)
            consumer = ModelConsumer(self, tag, on_message_callback, priority, auto_ack=auto_ack)
            found.consumers.append(consumer)
            self._reply(callback, spec.Basic.ConsumeOk(tag))
            if isinstance(found, ModelStream):
                found.begin(consumer, (arguments or {})[OFFSET])
            found.deliver()

        self._call(carry_out)
        return tag

    def basic_cancel(self, consumer_tag: str, callback: Any = None) -> None:
        self._cancelled.add(consumer_tag)

        def carry_out() -> None:
            for queue in self.connection.rabbit.queues.values():
                for consumer in [
                    one for one in queue.consumers if one.channel is self and one.tag == consumer_tag
                ]:
                    if queue.leaderless:
                        self._wait_for(queue, carry_out)
                        return
                    queue.consumers.remove(consumer)
                    queue.deliver()
            self._reply(callback, spec.Basic.CancelOk(consumer_tag))

        self._call(carry_out)

    def basic_ack(self, delivery_tag: int, *, multiple: bool = False) -> None:
        if multiple:  # only of the records of a stream, for which it changes nothing
            return
        self._require_open()
        self.connection.send(self, lambda: self._settle(delivery_tag, "ack"))

    def basic_nack(self, delivery_tag: int, *, requeue: bool = True) -> None:
        self._require_open()
        self.connection.send(self, lambda: self._settle(delivery_tag, "nack"))

    def basic_reject(self, delivery_tag: int) -> None:
        self.connection.send(self, lambda: self._settle(delivery_tag, "reject"))

    def close(self) -> None:
        """Close it, perhaps before it is open. Then `on_open` is never called."""
        if self.is_closed or self.is_closing:
            raise ChannelWrongStateError("Channel is closed.")
        self.is_open, self.is_closing = False, True

        def carry_out() -> None:
            self.leave()
            self.answer(self._closed, ChannelClosedByClient(200, "Normal shutdown"))

        # pika sends the close after the call that is under way has ended.
        self._calls.append(carry_out)
        self._next_call()

    # -- pika's side ---------------------------------------------------------------------------------

    def _require_open(self) -> None:
        if not self.is_open:
            raise ChannelWrongStateError("Channel is closed.")

    def _call(self, carry_out: Callable[[], None]) -> None:
        """A synchronous method: the next one is sent after its answer.

        pika does not ask for an answer without a callback. Here there is one, so that the next method is only later.
        """
        if not self.is_open:
            raise ChannelWrongStateError("Channel is closed.")
        if self._calling or self._calls:
            self._calls.append(carry_out)
            self._next_call()
        else:
            self._calling = True
            self.connection.send(self, carry_out)

    def _next_call(self) -> None:
        if not self._calling and self._calls:
            self._calling = True
            self.connection.send(self, self._calls.popleft())

    def _reply(self, callback: Any, method: Any) -> None:
        """The server answers the outstanding call."""
        self.answer(self._replied, callback, method)

    def _replied(self, callback: Any, method: Any) -> None:
        if self.is_closed:
            return
        self._calling = False
        if self._calls:
            self._next_call()
        frame = SimpleNamespace(method=method)
        if self._callbacks:
            for entry in list(self._callbacks):
                if isinstance(method, entry[1]):
                    if entry[2]:
                        self._callbacks.remove(entry)
                    entry[0](frame)
        if callback is not None:
            callback(method if isinstance(method, spec.Basic.GetOk) else frame)

    def _opened(self, on_open: Any) -> None:
        if not (self.is_closed or self.is_closing):
            self.is_open = True
            on_open(self)

    def _arrive(
        self, consumer: ModelConsumer, tag: int, message: ModelMessage, redelivered: bool, queue: str
    ) -> None:
        if self.is_closed:
            return
        if consumer.tag in self._cancelled:
            # As pika does with a delivery that arrives after its consumer was cancelled.
            if self.is_open:
                self.basic_reject(tag)
            return
        method = SimpleNamespace(
            delivery_tag=tag,
            consumer_tag=consumer.tag,
            exchange="",
            routing_key=queue,
            redelivered=redelivered,
        )
        consumer.callback(self, method, *self.connection.content(message))

    def _closed(self, reason: Exception) -> None:
        if self.is_closed:
            return
        self.is_open, self.is_closing, self.is_closed = False, False, True
        self._calls.clear()
        for callback in self._on_close:
            callback(self, reason)

    # -- the server's side ---------------------------------------------------------------------------

    def receive(self, carry_out: Callable[[], None]) -> None:
        """A frame has arrived. It waits while the channel's process is blocked."""
        if self.gone:
            return
        if self.blocked:
            self._frames.append(carry_out)
        else:
            carry_out()

    def answer(self, receive: Any, *arguments: Any) -> None:
        """Send something to the client, unless the channel's process is blocked."""
        if self.blocked:
            self._answers.append((receive, *arguments))
        else:
            self.connection.answer(receive, *arguments)

    def _wait_for(self, queue: ModelQueue, carry_out: Callable[[], None]) -> None:
        """Block the channel until a queue has a majority."""
        self.blocked = True

        def go_on() -> None:
            self.blocked = False
            if not self.gone:
                carry_out()
            while self._answers and not self.blocked:
                self.connection.answer(*self._answers.popleft())
            while self._frames and not self.blocked and not self.gone:
                self._frames.popleft()()

        queue.stuck.append(go_on)

    def deliver(self, queue: ModelQueue, consumer: ModelConsumer, message: ModelMessage) -> None:
        tag = next(self._delivery_tags)
        if not consumer.auto_ack:
            self._unsettled[tag] = queue, message, consumer
        self.answer(self._arrive, consumer, tag, message, message.redelivered, queue.name)

    def _settle(self, tag: int, how: str) -> None:
        entry = self._unsettled.get(tag)
        if entry is None:
            self.close_by_broker(406, f"PRECONDITION_FAILED - unknown delivery tag {tag}")
            return
        queue, message, consumer = entry
        if queue.leaderless:
            # Acknowledgements need no answer: they are carried out when there is a majority.
            queue.stuck.append(lambda: None if self.gone else self._settle(tag, how))
            return
        del self._unsettled[tag]
        if consumer is not None:
            consumer.held -= 1
        if how == "ack":
            if queue.unacked.pop(message, None) is not None:
                queue.rabbit.on_ack(queue, message)
        else:
            queue.requeue(message, failed=how == "reject")
        queue.deliver()

    def leave(self) -> None:
        """End on the server: the consumers go, and what they had is requeued."""
        if self.gone:
            return
        self.gone = True
        touched = {}
        for queue in self.connection.rabbit.queues.values():
            before = len(queue.consumers)
            queue.consumers = [one for one in queue.consumers if one.channel is not self]
            if len(queue.consumers) != before:
                touched[queue.name] = queue
        for queue, message, _ in list(self._unsettled.values()):
            queue.lost_deliveries += 1
            queue.requeue(message, failed=True)
            touched[queue.name] = queue
        self._unsettled.clear()
        for queue in touched.values():
            queue.deliver()

    def close_by_broker(self, code: int, text: str) -> None:
        self.leave()
        self.answer(self._closed, ChannelClosedByBroker(code, text))

    def cancel_by_broker(self, consumer: ModelConsumer) -> None:
        """A queue was deleted."""

        def cancelled() -> None:
            if not self.is_closed and consumer.tag not in self._cancelled:
                frame = SimpleNamespace(method=SimpleNamespace(consumer_tag=consumer.tag))
                for callback in self._on_cancel:
                    callback(frame)

        self.answer(cancelled)

    def forget(self, queue: ModelQueue) -> None:
        """A deleted queue takes its unacknowledged messages with it."""
        self._unsettled = {tag: entry for tag, entry in self._unsettled.items() if entry[0] is not queue}


class ModelConnection:
    """A connection of one process: pika's interface, and the server's side.

    Args:
        frames: says whether the client reads properties and bodies.
    """

    def __init__(self, rabbit: Rabbit, process: Process, frames: type[BoundedFrames]) -> None:
        self.rabbit = rabbit
        self.process = process
        self.is_open = True
        self.is_closing = False
        self.params = SimpleNamespace(channel_max=2047, frame_max=131_072)
        self.server_properties = {
            "version": f"{rabbit.version.major}.{rabbit.version.minor}.0",
            "cluster_name": rabbit.name,
        }
        self.exclusive: set[str] = set()
        self._frames = frames
        self._channels: list[ModelChannel] = []
        self._numbers = itertools.count(1)
        self._on_close: list[Any] = []
        self._to_server = Stream(rabbit.world.loop)
        self._to_client = Stream(rabbit.world.loop, process)
        self.alive = True
        """On the server."""

    # -- pika's methods ------------------------------------------------------------------------------

    def channel(self, on_open_callback: Any) -> ModelChannel:
        if not self.is_open:
            raise ConnectionWrongStateError("Channel allocation requires an open connection")
        made = ModelChannel(self, next(self._numbers), on_open_callback)
        self._channels.append(made)
        return made

    def add_on_close_callback(self, callback: Any) -> None:
        self._on_close.append(callback)

    def close(self) -> None:
        if self.is_open:
            self.is_open, self.is_closing = False, True
            self._to_server.send(LATENCY, self._closed_by_client)

    # -- frames --------------------------------------------------------------------------------------

    def send(self, channel: ModelChannel, carry_out: Callable[[], None]) -> None:
        """From the client to the server."""
        if self.is_open:
            self._to_server.send(self.rabbit.latency(), self._receive, channel, carry_out)

    def _receive(self, channel: ModelChannel, carry_out: Callable[[], None]) -> None:
        rabbit = self.rabbit
        if not self.alive:
            return
        if rabbit.hung or self.process in rabbit.cut_from:
            rabbit.held.append((self, channel, carry_out))
        else:
            channel.receive(carry_out)

    def answer(self, receive: Any, *arguments: Any) -> None:
        """From the server to the client."""
        if self.alive:
            self._to_client.send(self.rabbit.latency(), self._arrive, receive, *arguments)

    def _arrive(self, receive: Any, *arguments: Any) -> None:
        if self.alive or self.is_open:
            receive(*arguments)

    def content(self, message: ModelMessage) -> tuple[Any, bytes]:
        """Properties and body, as the client wants them."""
        if not self._frames.reads_properties:
            return SimpleNamespace(body_size=message.size), b""
        headers = dict(message.headers)
        if message.deliveries:
            headers["x-delivery-count"] = message.deliveries
        properties = pika.BasicProperties(
            message_id=message.original,
            headers=headers,
            expiration=message.expiration,
            priority=message.priority,
        )
        return properties, message.body if self._frames.keeps_bodies else b""

    # -- the end -------------------------------------------------------------------------------------

    def _closed_by_client(self) -> None:
        self.leave()
        self._to_client.send(LATENCY, self._lost, StreamLostError("closed"))

    def leave(self) -> None:
        """End on the server."""
        if not self.alive:
            return
        self.alive = False
        self.rabbit.connections.remove(self)
        for channel in self._channels:
            channel.leave()
        for queue in self.exclusive:
            self.rabbit.queues.pop(queue, None)
            for bound in self.rabbit.fanouts.values():
                bound.pop(queue, None)

    def lose(self, reason: str = "Connection reset by peer") -> None:
        """The connection breaks, and both sides learn of it."""
        self.leave()
        self._to_client.send(LATENCY, self._lost, StreamLostError(reason))

    def lose_at_client(self, reason: str) -> None:
        """The client gives the connection up."""
        if self.is_open:
            self._to_client.send(0.0, self._lost, StreamLostError(reason))

    def _lost(self, reason: Exception) -> None:
        callbacks, self._on_close = self._on_close, []
        self.is_open = False
        for channel in self._channels:
            channel._closed(reason)
        self.is_closing = False
        for callback in callbacks:
            callback(self, reason)


class Rabbit:
    """One broker.

    Attributes:
        down: whether it refuses connections.
        hung: whether it takes connections and frames and answers nothing.
        alarm: whether it confirms nothing that is published.
        on_ack, on_delete, on_delivery, on_push, on_own_publish, on_declare: heard by the properties.
    """

    def __init__(self, world: World, name: str, version: BrokerVersion) -> None:
        self.world = world
        self.name = name
        self.version = version
        self.queues: dict[str, ModelQueue] = {}
        self.bindings: dict[str, set[tuple[str, str, bool]]] = {}
        """By topic exchange: pattern, target, and whether that is a queue."""
        self.fanouts: dict[str, dict[str, None]] = {}
        """By fanout exchange: the queues that are bound to it, in order."""
        self.exchanges: set[str] = set()
        self.connections: list[ModelConnection] = []
        self.passwords: dict[str, str] = {"user": "secret"}
        self.down = False
        self.hung = False
        self.alarm = False
        self.slow = 0.0
        self.declare_hangs = False
        self.held: list[tuple[ModelConnection, ModelChannel, Callable[[], None]]] = []
        self.cut_from: set[Process] = set()
        self.on_ack: Callable[[ModelQueue, ModelMessage], None] = lambda _queue, _message: None
        self.on_delivery: Callable[[ModelQueue, ModelConsumer, ModelMessage], None] = lambda *_: None
        self.on_push: Callable[[ModelQueue, ModelMessage], None] = lambda *_: None
        self.on_own_publish: Callable[[ModelChannel, ModelMessage], None] = lambda _channel, _message: None
        """Called with each message that an operator publishes and RabbitMQ stores, and with its channel."""
        self.on_declare: Callable[[ModelConnection, str], None] = lambda _by, _queue: None
        """Called with each declaration that is not passive and not refused."""
        self.on_delete: Callable[[ModelQueue, ModelConnection | None], None] = lambda _queue, _by: None

    def latency(self) -> float:
        """Seconds for one frame."""
        chance = self.world.random.random
        seconds = LATENCY * (0.5 + chance())
        return seconds + self.slow * chance() if self.slow else seconds

    def is_cut_from(self, process: Process) -> bool:
        """Whether packets between a process and the broker are lost."""
        return process in self.cut_from

    def make(self, name: str, arguments: Mapping[str, Any]) -> ModelQueue:
        """Create a queue."""
        kind = ModelStream if arguments.get("x-queue-type") == "stream" else ModelQueue
        made = self.queues[name] = kind(self, name, arguments)
        return made

    def declare(self, plan: Plan) -> bool:
        """Make what is missing; return whether a queue was."""
        new = [queue for queue in plan.queues if queue.name not in self.queues]
        for queue in new:
            self.make(queue.name, queue.arguments)
        for step in plan.step_bindings:
            self.bind(step.source, step.routing_key, step.exchange, is_queue=False)
        if plan.exchange is not None and plan.exchange.type is ExchangeType.FANOUT:
            self.fanouts.setdefault(plan.exchange.name, {})
        for binding in plan.bindings:
            self.bind(binding.exchange, binding.routing_key, binding.queue, is_queue=True)
        return bool(new)

    def delete(self, name: str, by: ModelConnection | None = None) -> None:
        """Delete a queue and its messages."""
        queue = self.queues.pop(name)
        for exchange, bindings in self.bindings.items():
            self.bindings[exchange] = {one for one in bindings if one[1:] != (name, True)}
        for bound in self.fanouts.values():
            bound.pop(name, None)
        self.on_delete(queue, by)
        for consumer in queue.consumers:
            consumer.channel.cancel_by_broker(consumer)
        for connection in self.connections:
            for channel in connection._channels:
                channel.forget(queue)
        queue.consumers, queue.ready, queue.unacked = [], deque(), {}
        stuck, queue.stuck = queue.stuck, []
        queue.leaderless = False
        for call in stuck:
            call()

    def exclusive_elsewhere(self, connection: ModelConnection) -> set[str]:
        """The exclusive queues of other connections."""
        found: set[str] = set()
        for other in self.connections:
            if other.exclusive and other is not connection:
                found |= other.exclusive
        return found

    def connect(self, process: Process, frames: type[BoundedFrames] = BoundedFrames) -> ModelConnection:
        """Open a connection. The caller has checked that this is possible."""
        made = ModelConnection(self, process, frames)
        self.connections.append(made)
        return made

    def routed(self, exchange: str, key: str) -> ModelQueue | None:
        """The queue of a message. Each key matches at most one binding of an exchange."""
        if not exchange:
            return self.queues.get(key)
        for pattern, target, is_queue in sorted(self.bindings.get(exchange, ())):
            words = zip(pattern.removesuffix(".#").split("."), key.split("."), strict=False)
            if all(one in {"*", word} for one, word in words):
                return self.queues.get(target) if is_queue else self.routed(target, key)
        return None

    def bind(self, exchange: str, pattern: str, target: str, *, is_queue: bool) -> None:
        """Bind a queue or an exchange to a topic exchange, or a queue to a fanout exchange."""
        if exchange in self.fanouts:
            self.fanouts[exchange][target] = None
            return
        self.bindings.setdefault(exchange, set()).add((pattern, target, is_queue))

    def publish(self, exchange: str, message: ModelMessage) -> bool | None:
        """Take a message from a publisher. True: confirmed. False: returned. None: no confirm."""
        if exchange in self.fanouts:
            if self.down or self.hung or self.alarm:
                return None
            for name in list(self.fanouts[exchange]):
                self.queues[name].push(replace(message))
            return True
        found = self.routed(exchange, message.routing_key)
        if self.down or self.hung or self.alarm or (found is not None and found.leaderless):
            return None
        if found is None:
            return False
        found.push(message)
        return True

    # -- what may happen -----------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop: every connection is lost, and no other is taken."""
        self.down = True
        self.drop_connections()
        for queue in self.queues.values():
            if any(message.is_transient for message in queue.ready):
                queue.ready = deque(message for message in queue.ready if not message.is_transient)

    def start(self) -> None:
        """Start again. Messages and queues have stayed."""
        self.down = False
        for queue in self.queues.values():
            queue.deliver()
            queue.expire()

    def drop_connections(self, process: Process | None = None) -> None:
        """Lose connections: all, or those of one process."""
        for connection in list(self.connections):
            if process is None or connection.process is process:
                connection.lose()

    def hang(self) -> None:
        """Answer nothing. Clients notice by their heartbeat."""
        self.hung = True
        for connection in list(self.connections):
            self.world.later(HEARTBEAT_LOSS, self._give_up, connection)

    def _give_up(self, connection: ModelConnection) -> None:
        if self.hung:
            connection.lose_at_client("heartbeat timeout")

    def resume(self) -> None:
        """Answer again."""
        self.hung = False
        self._release_held()
        for connection in list(self.connections):
            if not connection.is_open or not connection.process.alive:
                connection.leave()
        for queue in self.queues.values():
            queue.deliver()

    def cut(self, process: Process) -> None:
        """Lose all packets between a process and the broker."""
        self.cut_from.add(process)
        for connection in [one for one in self.connections if one.process is process]:
            self.world.later(HEARTBEAT_LOSS, self._give_up_cut, connection)

    def _give_up_cut(self, connection: ModelConnection) -> None:
        if self.is_cut_from(connection.process):
            connection.lose_at_client("heartbeat timeout")
            connection.leave()

    def uncut(self, process: Process) -> None:
        """Let the packets through again."""
        self.cut_from.discard(process)
        self._release_held()

    def _release_held(self) -> None:
        held, self.held = self.held, []
        for connection, channel, carry_out in held:
            connection._receive(channel, carry_out)
