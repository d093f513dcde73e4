"""`workqueue run`: take messages from a queue and handle them until SIGTERM."""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from workqueue import __version__, logs
from workqueue.contract.errors import WorkerError
from workqueue.contract.worker_api import PORT, ExitCode, Isolation, Variable
from workqueue.worker import trace_request
from workqueue.worker.config import (
    DEFAULT_TERMINATION_LOG,
    ExecHandler,
    HTTPHandler,
    PythonHandler,
    RunConfig,
    parse,
)
from workqueue.worker.drain import Signals, drain
from workqueue.worker.ending import leave
from workqueue.worker.errors import ConfigurationError, HandlerLoadError, too_slow
from workqueue.worker.handlers.handler import Handler

if TYPE_CHECKING:
    from workqueue.worker.executors.launcher import Launcher

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags. Each overrides an environment variable."""
    parser.add_argument(
        "handler",
        nargs="?",
        metavar="MODULE:FUNCTION",
        help=f"Python function that takes a message [{Variable.HANDLER_PYTHON}]",
    )
    add = parser.add_argument
    add(
        "--exec",
        nargs=argparse.REMAINDER,
        metavar="COMMAND",
        help="run this command for each message; takes everything after it, so it comes last"
        f" [{Variable.HANDLER_EXEC}, a JSON list]",
    )
    add("--http", metavar="URL", help=f"POST each message to this URL [{Variable.HANDLER_HTTP}]")
    add("--queue", help=f"work queue [{Variable.QUEUE}]")
    add("--queue-type", metavar="TYPE", help=f"Quorum (default) or Classic [{Variable.QUEUE_TYPE}]")
    add(
        "--declare",
        action="store_const",
        const="true",
        help=f"declare the queue and its dead-letter queue [{Variable.DECLARE}]",
    )
    add(
        "--exchange",
        help=f"with --declare: declare this exchange and bind the queue to it [{Variable.EXCHANGE}]",
    )
    add(
        "--dead-letter-queue",
        metavar="NAME",
        help="a queue that exists and takes the dead letters, instead of QUEUE.dead"
        f" [{Variable.DEAD_LETTER_QUEUE}]",
    )
    add(
        "--max-attempts",
        metavar="N",
        help=f"attempts before the dead-letter queue (5) [{Variable.MAX_ATTEMPTS}]",
    )
    add(
        "--delays",
        metavar="SECONDS",
        help=f"delays before retries (1,10,60); the last repeats [{Variable.DELAYS_SECONDS}]",
    )
    add(
        "--backoff",
        metavar="SETTINGS",
        help="instead of --delays: delays that grow, such as initialSeconds=1,factor=2,maxSeconds=3600,jitter=Full"
        f" [{Variable.BACKOFF}]",
    )
    add(
        "--max-age",
        metavar="SECONDS",
        help="how long after its first attempt a message may be retried without counting the attempt (86400)"
        f" [{Variable.MAX_AGE_SECONDS}]",
    )
    add(
        "--delivery-limit",
        metavar="N",
        help="how often a message may come back without an answer (10 with --declare)"
        f" [{Variable.DELIVERY_LIMIT}]",
    )
    add("--timeout", metavar="SECONDS", help=f"time for one message (300) [{Variable.TIMEOUT_SECONDS}]")
    add("--concurrency", metavar="N", help=f"messages handled at the same time (1) [{Variable.CONCURRENCY}]")
    add(
        "--limit-queue",
        metavar="NAME",
        help=f"a queue of tokens that exists: each handler takes one while it runs [{Variable.LIMIT_QUEUE}]",
    )
    add(
        "--limit-rate-queue",
        metavar="NAME",
        help=f"a queue of tokens that exists: each start of a handler uses one up [{Variable.LIMIT_RATE_QUEUE}]",
    )
    add(
        "--grace",
        metavar="SECONDS",
        help=f"time for handlers to finish after SIGTERM (default: the timeout) [{Variable.GRACE_SECONDS}]",
    )
    add(
        "--isolation",
        metavar="WHERE",
        help="where a Python handler runs: Process (in processes of its own) or Thread (in the worker's, the"
        f" default) [{Variable.ISOLATION}]",
    )
    add(
        "--startup-timeout",
        metavar="SECONDS",
        help=f"time to load or reach the handler (60) [{Variable.STARTUP_TIMEOUT_SECONDS}]",
    )
    add(
        "--recycle-messages",
        metavar="N",
        help="with --isolation Process: replace a process after this many messages"
        f" [{Variable.RECYCLE_MESSAGES}]",
    )
    add(
        "--recycle-memory",
        metavar="SIZE",
        help="with --isolation Process: replace a process that uses this much memory, such as 500Mi"
        f" [{Variable.RECYCLE_MEMORY}]",
    )
    add(
        "--until-empty",
        action="store_const",
        const="true",
        help="end when no message waits in the queue or for a retry of this worker, and no handler runs"
        f" [{Variable.UNTIL_EMPTY}]",
    )
    add(
        "--max-messages",
        metavar="N",
        help=f"end after this many messages were settled [{Variable.MAX_MESSAGES}]",
    )
    add(
        "--reload",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="for development: start the worker again when a Python file of this folder changes",
    )
    add("--port", metavar="PORT", help=f"port of the HTTP endpoint ({PORT}); 0 for none [{Variable.PORT}]")
    add("--url", help=f"amqp://user:password@host:port/vhost?heartbeat=60 [{Variable.URL}]")
    add(
        "--binding",
        metavar="FOLDER",
        help=f"Service Binding folder [{Variable.BINDING}, {Variable.SERVICE_BINDING_ROOT}]",
    )
    add(
        "--heartbeat",
        metavar="SECONDS",
        help=f"heartbeat of the connections to RabbitMQ (60) [{Variable.HEARTBEAT_SECONDS}]",
    )
    add(
        "--log-format",
        metavar="FORMAT",
        help=f"json or text (text on a terminal) [{Variable.LOG_FORMAT}]",
    )
    add("--log-level", metavar="LEVEL", help=f"debug, info, warning or error (info) [{Variable.LOG_LEVEL}]")


def run(arguments: argparse.Namespace) -> NoReturn:
    """Run the worker and end the process, even if the handler has left threads behind."""
    gc.disable()  # until the worker's own modules are imported, since all of them stay
    closers: list[Callable[[], None]] = []
    try:
        code = _run(arguments, closers)
    except Exception:  # noqa: BLE001 - Python would first wait for the handler's threads
        traceback.print_exc()
        code = ExitCode.FAILED
    leave(code, *closers)


def _run(arguments: argparse.Namespace, closers: list[Callable[[], None]]) -> int:
    signals = Signals()
    termination_log = Path(os.environ.get(Variable.TERMINATION_LOG) or DEFAULT_TERMINATION_LOG)
    try:
        config = parse(arguments, os.environ)
        if arguments.reload:
            from workqueue.cli import reload

            return reload.supervise()
    except ConfigurationError as error:
        return _fail(ExitCode.CONFIGURATION, error, termination_log)
    logs.configure(config.log_format, config.log_level)
    if config.isolation is Isolation.PROCESS and isinstance(config.handler, PythonHandler):
        from workqueue.worker.executors.launcher import Launcher

        launcher = Launcher(config, config.handler.name)
        closers.append(launcher.close)
        return _work(config, launcher.launch_first(), signals, closers)
    return _work(config, None, signals, closers)


def load_handler(config: RunConfig, signals: Signals, closers: list[Callable[[], None]]) -> Handler:
    """Load or reach the configured handler, and open the lifespan of a sync one.

    Raises:
        HandlerLoadError: it cannot be loaded or reached.
    """
    match config.handler:
        case PythonHandler(name):
            from workqueue.worker.handlers import python
            from workqueue.worker.replies import Replies

            replies = Replies(config.read_binding, f"{config.queue} replies")
            closers.append(replies.close)
            with _time_limit(config, name), signals.loading(lambda: leave(ExitCode.DONE, *closers)):
                handler = python.load(name, config.retry, replies)
                if handler.lifespan is not None and not handler.is_async:
                    handler.lifespan.open()
            return handler
        case ExecHandler(command):
            from workqueue.worker.handlers import exec as exec_handlers

            return exec_handlers.load(command)
        case HTTPHandler(url):
            from workqueue.worker.handlers import http

            return http.load(url, signals.wait, config.startup_timeout_seconds)


@contextlib.contextmanager
def _time_limit(config: RunConfig, name: str) -> Iterator[None]:
    """End the process if an import takes too long. Nothing else can end an import that hangs in this thread."""

    def end() -> None:
        error = HandlerLoadError(too_slow(name, config.startup_timeout_seconds))
        _fail(ExitCode.HANDLER, error, config.termination_log)
        leave(ExitCode.HANDLER)

    timer = threading.Timer(config.startup_timeout_seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _work(
    config: RunConfig, launcher: Launcher | None, signals: Signals, closers: list[Callable[[], None]]
) -> int:
    from workqueue.amqp.pika_import import import_pika

    import_pika()
    from workqueue.worker.runtime import Runtime

    runtime = Runtime(config, config.read_binding, on_end=signals.interrupt)
    gc.freeze()
    gc.enable()
    endpoint = None
    if config.port:
        from workqueue.worker.endpoint_port import EndpointPort

        # Before any message is taken: if the port is not free, the worker ends, and so would the running handlers.
        metrics_folder = None if launcher is None else launcher.metrics_folder
        try:
            endpoint = EndpointPort(
                runtime, config.port, any_port_will_do=config.port_is_default, metrics_folder=metrics_folder
            )
        except OSError as error:
            said = WorkerError(f"The endpoint's port {config.port} cannot be used: {error}.")
            return _fail(ExitCode.FAILED, said, config.termination_log)
        endpoint.start()
    try:
        handler = launcher or _traced(load_handler(config, signals, closers), config, closers)
    except HandlerLoadError as error:
        return _fail(ExitCode.HANDLER, error, config.termination_log)
    logger.info("Starting.", extra={"version": __version__, "queue": config.queue, "handler": handler.name})
    runtime.start(handler)
    if config.until_empty:
        from workqueue.worker import emptiness

        emptiness.wait(runtime, signals)
    else:
        signals.wait()
    failure = runtime.failure
    if failure is not None or runtime.finished:
        signals.ignore_first()
    drain(runtime, signals, config.grace_seconds if failure is None else failure.grace_seconds)
    code = 0
    if failure is not None:
        code = _fail(failure.code, WorkerError(failure.reason), config.termination_log)
    if isinstance(handler, Handler) and handler.lifespan is not None and not handler.is_async:
        handler.lifespan.close(lambda: leave(code, *closers))
    if endpoint is not None:
        endpoint.close()
    return code


def _traced(handler: Handler, config: RunConfig, closers: list[Callable[[], None]]) -> Handler:
    """Return the handler, with traces if they are requested."""
    if not trace_request.wanted(os.environ):
        return handler
    from workqueue.worker import tracing

    traces = tracing.start(config.queue, os.environ)
    if traces is None:
        return handler
    closers.append(traces.close)
    return traces.handler(handler)


def _fail(code: int, error: WorkerError, termination_log: Path) -> int:
    """Print why there is no worker, and write it for the pod's status."""
    print(f"workqueue run: {error}", file=sys.stderr)  # noqa: T201 - output of a command
    with contextlib.suppress(OSError):
        if termination_log.exists() or termination_log.parent != Path("/dev"):
            termination_log.write_text(f"{error}\n", encoding="utf-8", errors="backslashreplace")
    return code
