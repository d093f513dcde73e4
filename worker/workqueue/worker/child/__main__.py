"""Load the handler, and run it until the worker needs this process no longer."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

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


def main() -> NoReturn:
    """Run this process."""
    settings = Settings.of_argument(sys.argv.pop())
    faulthandler.enable()
    with contextlib.suppress(
        OSError
    ):  # when memory is short, the kernel should choose this process, not the worker
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    connection = Connection(settings.socket)
    cancellations = Cancellations(settings.pipe)
    output.install(settings.log_format, settings.log_level)
    metrics.install(settings.metrics_name)
    try:
        handler, close = _load(settings)
    except HandlerLoadError as error:
        connection.send(frames.pack(Kind.UNLOADABLE, content={"error": str(error)}))
        leave(ExitCode.HANDLER)
    connection.send(frames.pack(Kind.LOADED, content={"async": handler.is_async}))
    try:
        _run(handler, connection, cancellations)
    except OSError:  # the worker is gone, or the handler has closed all descriptors
        leave(ExitCode.FAILED, *close)
    leave(ExitCode.DONE, *close)


def _run(handler: Handler, connection: Connection, cancellations: Cancellations) -> None:
    if handler.is_async:
        from workqueue.worker.child.tasks import AsyncHandlers

        AsyncHandlers(connection, cancellations, handler.call).run()
    else:
        from workqueue.worker.child.calls import SyncHandlers

        SyncHandlers(connection, cancellations, handler.call).run()


def _load(settings: Settings) -> tuple[Handler, list[Callable[[], None]]]:
    handler = python.load(settings.handler)
    if not trace_request.wanted(os.environ):
        return handler, []
    from workqueue.worker import tracing

    traces = tracing.start(settings.service, os.environ)
    return (handler, []) if traces is None else (traces.handler(handler), [traces.close])


if __name__ == "__main__":
    main()
