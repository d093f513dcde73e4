"""Answers to messages: published over a connection of their own, which is opened at the first answer.

It is not the connection for copies of messages: a copy waits as long as a memory alarm, an answer at most 30 s.
What publishes is imported at the first answer, since most handlers never answer.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any, Final

from workqueue.message import DONE, Reply

if TYPE_CHECKING:
    import asyncio

    from workqueue.amqp.outgoing import Outgoing
    from workqueue.amqp.publish_pipeline import PublishPipeline
    from workqueue.contract.binding import Binding

DIRECT: Final = "amq.rabbitmq.reply-to."
"""RabbitMQ's direct reply-to: a consumer without a queue. RabbitMQ 3.10 and 4.0 return each mandatory message to it
as unroutable, also when the consumer gets it. 4.3 returns none, also when the consumer is gone (tried)."""

CLOSE_SECONDS: Final = 1.0
"""Each answer has been confirmed or given up before its handler ended."""


class Replies:
    """Publishes the answers of one process.

    Args:
        binding_source: returns the connection data; called at each attempt to connect.
        name: of the connection, in RabbitMQ's lists.
    """

    def __init__(self, binding_source: Callable[[], Binding], name: str) -> None:
        self._binding_source = binding_source
        self._name = name
        self._lock = threading.Lock()
        self._current: PublishPipeline | None = None
        self._process = os.getpid()

    def reply(self, reply: Reply) -> Awaitable[None]:
        """Publish an answer, and return when RabbitMQ has stored it.

        Raises:
            PublishError: it has not.
        """
        from workqueue.amqp.errors import Returned

        outgoing = _outgoing(reply)
        try:
            self._pipeline().publish(outgoing).result()
        except Returned:
            if not reply.to.startswith(DIRECT):
                raise
        return DONE  # a sync handler may await it, in an asyncio loop of its own

    async def publish(self, reply: Reply) -> None:
        """Publish an answer, as `reply` does."""
        from workqueue.amqp.errors import Returned

        outgoing = _outgoing(reply)
        try:
            await self._pipeline().publish_async(outgoing)
        except Returned:
            if not reply.to.startswith(DIRECT):
                raise

    def close(self) -> None:
        """Disconnect."""
        with self._lock:
            ended, self._current = self._current, None
        if ended is not None and self._process == os.getpid():
            ended.close(CLOSE_SECONDS)

    def _pipeline(self) -> PublishPipeline:
        from workqueue.worker import tracing

        with self._lock:
            if self._process != os.getpid():
                # A child that the handler has forked has no thread for the connection.
                self._process, self._current = os.getpid(), None
            if self._current is None:
                traces = tracing.start(self._name, os.environ) if tracing.wanted(os.environ) else None
                self._current = tracing.pipeline(traces, self._binding_source, self._name).start()
            return self._current


class AsyncReplier:
    """The answers to one message of an async handler.

    Args:
        publish: publishes one.
    """

    __slots__ = ("_answers", "_publish")

    def __init__(self, publish: Callable[[Reply], Awaitable[None]]) -> None:
        self._publish = publish
        self._answers: list[_Answer] = []

    def reply(self, reply: Reply) -> Awaitable[None]:
        """Begin to publish an answer. Await the result."""
        import asyncio

        answer = _Answer(asyncio.ensure_future(self._publish(reply)))
        self._answers.append(answer)
        return answer

    def in_progress(self) -> Iterable[Awaitable[None]]:
        """Return the answers that the handler has not awaited.

        To await one raises PublishError if RabbitMQ has not stored it.
        """
        return (answer for answer in self._answers if not answer.is_awaited)


class _Answer:
    def __init__(self, task: asyncio.Future[None]) -> None:
        self._task = task
        self.is_awaited = False

    def __await__(self) -> Generator[Any, None, None]:
        self.is_awaited = True
        return self._task.__await__()


def _outgoing(reply: Reply) -> Outgoing:
    from workqueue import bodies
    from workqueue.amqp.outgoing import Outgoing

    data, content_type = bodies.encode(reply.body)
    return Outgoing(
        reply.to,
        data,
        headers=reply.headers,
        content_type=reply.content_type or content_type,
        correlation_id=reply.correlation_id,
    )
