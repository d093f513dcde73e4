"""Async handlers: tasks of one asyncio loop, in the main thread."""

from __future__ import annotations

import asyncio
import logging
import os

from workqueue.contract.worker_api import ExitCode
from workqueue.message import Message
from workqueue.worker.child import output
from workqueue.worker.child.connection import Cancellations, Connection
from workqueue.worker.ending import leave, leave_forked_child
from workqueue.worker.executors import frames
from workqueue.worker.executors.frames import Kind
from workqueue.worker.handlers.handler import Handler

logger = logging.getLogger(__name__)


class HandlerExit(Exception):  # noqa: N818
    """Carries SystemExit or KeyboardInterrupt out of a task.

    Args:
        original: the exception.
    """

    def __init__(self, original: BaseException) -> None:
        super().__init__(str(original))
        self.original = original


class AsyncHandlers:
    """Runs handlers as tasks of one asyncio loop, in the main thread.

    Args:
        connection: to the worker.
        cancellations: of messages.
        handler: an async one.
    """

    def __init__(
        self,
        connection: Connection,
        cancellations: Cancellations,
        handler: Handler,
    ) -> None:
        self._connection = connection
        self._cancellations = cancellations
        self._call = handler.call
        self._lifespan = handler.lifespan
        self._process = os.getpid()
        self._tasks: dict[int, tuple[asyncio.Task[None], Message]] = {}
        self._is_over = False
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)

    def open(self) -> None:
        """Open the lifespan.

        Raises:
            HandlerLoadError: it cannot be opened.
        """
        if self._lifespan is not None:
            self._loop.run_until_complete(self._lifespan.open_async(_end))

    def close(self) -> None:
        """Close the lifespan."""
        if self._lifespan is not None:
            self._loop.run_until_complete(self._lifespan.close_async())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())

    def run(self) -> None:
        """Handle messages until the worker closes the connection."""
        loop = self._loop
        loop.add_reader(self._connection.fileno(), self._read)
        self._cancellations.deliver_to(self._cancel_soon)
        while not self._is_over:
            self._turn()

    def _turn(self) -> None:
        """Run the loop until the end, or until a handler has ended it. That costs no other handler anything."""
        error: BaseException | None = None
        try:
            self._loop.run_forever()
        except BaseException as raised:  # noqa: BLE001 - asyncio lets SystemExit and KeyboardInterrupt through
            error = raised
        if os.getpid() != self._process:
            leave_forked_child(error)
        if not self._is_over:
            how = (
                "was stopped by a handler"
                if error is None
                else f"was ended by {error!r} in a task or callback"
            )
            logger.warning("The asyncio loop %s; it goes on.", how)

    def _read(self) -> None:
        self._read_one()
        while self._connection.received and not self._is_over:  # asyncio knows only of what was not read
            self._read_one()

    def _read_one(self) -> None:
        frame = self._connection.receive()
        if frame is None:
            self._is_over = True
            self._loop.remove_reader(self._connection.fileno())
            self._loop.stop()
            return
        kind, token, fields, body = frame
        if kind is Kind.PING:
            self._connection.send(frames.pack(Kind.PONG))
            return
        try:
            message = frames.unpack_message(fields, body)
        except Exception as error:  # noqa: BLE001 - the message has failed, whatever it was
            self._connection.send(frames.pack_outcome(token, error))
            return
        task = self._loop.create_task(self._handle(message))
        self._tasks[token] = (task, message)
        task.add_done_callback(lambda done: self._answer(token, done))
        if self._cancellations.is_cancelled(token):
            self._cancel(token)

    async def _handle(self, message: Message) -> None:
        output.begin(message.properties.message_id)
        try:
            await self._call(message)
        except (SystemExit, KeyboardInterrupt) as error:
            # asyncio would end the loop with it.
            if os.getpid() != self._process:
                leave_forked_child(error)
            raise HandlerExit(error) from error

    def _answer(self, token: int, task: asyncio.Task[None]) -> None:
        if os.getpid() != self._process:
            leave_forked_child(None if task.cancelled() else task.exception())
        del self._tasks[token]
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if isinstance(error, HandlerExit):
            error = error.original
        output.end()
        self._connection.send(frames.pack_outcome(token, error))

    def _cancel_soon(self, token: int) -> None:
        self._loop.call_soon_threadsafe(self._cancel, token)

    def _cancel(self, token: int) -> None:
        found = self._tasks.get(token)
        if found is not None:
            task, message = found
            message.cancelled.set()
            task.cancel()


def _end(reason: str) -> None:
    logger.error("%s Ending this process.", reason)
    leave(ExitCode.FAILED)
