"""Load the handler, and run it until the worker needs this process no longer."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from workqueue.contract.worker_api import ExitCode
from workqueue.worker import trace_request
from workqueue.worker.child import metrics, output
from workqueue.worker.child.connection import Cancellations, Connection
from workqueue.worker.ending import leave
from workqueue.worker.errors import HandlerLoadError
from workqueue.worker.executors import frames
from workqueue.worker.executors.frames import Kind, Settings
from workqueue.worker.handlers import python
from workqueue.worker.handlers.handler import Handler
from workqueue.worker.handlers.outcome import RetryPolicy
from workqueue.worker.replies import Replies

if TYPE_CHECKING:
    from workqueue.contract.binding import Binding
    from workqueue.worker.child.calls import SyncHandlers
    from workqueue.worker.child.tasks import AsyncHandlers


def main() -> NoReturn:
    """Run this process."""
    settings = Settings.of_argument(sys.argv.pop())
    faulthandler.enable()
    with contextlib.suppress(
        OSError
    ):  # when memory is short, the kernel should choose this process, not the worker
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    connection = Connection(settings.socket, settings.answers)
    cancellations = Cancellations(settings.cancellations)
    output.install(settings.log_format, settings.log_level)
    metrics.install(settings.metrics_name)
    try:
        handler, close = _load(settings)
        handlers = _handlers(handler, connection, cancellations)
        handlers.open()
    except HandlerLoadError as error:
        connection.send(frames.pack(Kind.UNLOADABLE, content={"error": str(error)}))
        leave(ExitCode.HANDLER)
    connection.send(frames.pack(Kind.LOADED, content={"async": handler.is_async}))
    code = ExitCode.DONE
    try:
        handlers.run()
    except OSError:  # the worker is gone, or the handler has closed all descriptors
        code = ExitCode.FAILED
    handlers.close()
    leave(code, *close)


def _handlers(
    handler: Handler, connection: Connection, cancellations: Cancellations
) -> AsyncHandlers | SyncHandlers:
    if handler.is_async:
        from workqueue.worker.child.tasks import AsyncHandlers

        return AsyncHandlers(connection, cancellations, handler)
    from workqueue.worker.child.calls import SyncHandlers

    return SyncHandlers(connection, cancellations, handler)


def _load(settings: Settings) -> tuple[Handler, list[Callable[[], None]]]:
    replies = Replies(_read_binding, f"{settings.service} replies")
    handler = python.load(settings.handler, RetryPolicy(**settings.retry), replies)
    if not trace_request.wanted(os.environ):
        return handler, [replies.close]
    from workqueue.worker import tracing

    traces = tracing.start(settings.service, os.environ)
    if traces is None:
        return handler, [replies.close]
    return traces.handler(handler), [replies.close, traces.close]


def _read_binding() -> Binding:
    """Return the connection data. The launcher has set the variables."""
    from workqueue.contract.binding import from_environment

    return from_environment(os.environ)()


if __name__ == "__main__":
    main()
