"""Sync handlers: one message after the other, in the main thread."""

from __future__ import annotations

import os

from workqueue.contract.worker_api import ExitCode
from workqueue.message import Message
from workqueue.worker.child import output
from workqueue.worker.child.connection import Cancellations, Connection
from workqueue.worker.ending import leave, leave_forked_child
from workqueue.worker.executors import frames
from workqueue.worker.executors.frames import Kind
from workqueue.worker.handlers.handler import Handler


class SyncHandlers:
    """Runs one handler after the other, in the main thread.

    Args:
        connection: to the worker.
        cancellations: of messages.
        handler: a sync one.
    """

    def __init__(self, connection: Connection, cancellations: Cancellations, handler: Handler) -> None:
        self._connection = connection
        self._cancellations = cancellations
        self._call = handler.call
        self._lifespan = handler.lifespan
        self._process = os.getpid()
        self._running: tuple[int, Message] | None = None

    def open(self) -> None:
        """Open the lifespan.

        Raises:
            HandlerLoadError: it cannot be opened.
        """
        if self._lifespan is not None:
            self._lifespan.open()

    def close(self) -> None:
        """Close the lifespan."""
        if self._lifespan is not None:
            self._lifespan.close(lambda: leave(ExitCode.FAILED))

    def run(self) -> None:
        """Handle messages until the worker closes the connection."""
        self._cancellations.deliver_to(self._cancel)
        while self._handle_next():
            pass

    def _handle_next(self) -> bool:
        """Handle one message, and forget it: the next may come hours later."""
        frame = self._connection.receive()
        if frame is None:
            return False
        kind, token, fields, body = frame
        if kind is Kind.PING:
            self._connection.send(frames.pack(Kind.PONG))
            return True
        error: BaseException | None = None
        try:
            message = frames.unpack_message(fields, body)
            self._running = (token, message)
            if self._cancellations.is_cancelled(token):
                message.cancelled.set()
            output.begin(message.properties.message_id, everywhere=True)
            self._call(message)
        except BaseException as raised:  # noqa: BLE001 - SystemExit is a failure like any other
            error = raised
        if os.getpid() != self._process:
            leave_forked_child(error)
        self._running = None
        output.end()
        outcome = frames.pack_outcome(token, error)
        error = None  # its traceback refers to this frame, and so to the body
        self._connection.send(outcome)
        return True

    def _cancel(self, token: int) -> None:
        running = self._running
        if running is not None and running[0] == token:
            running[1].cancelled.set()
