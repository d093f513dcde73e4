"""`workqueue send`: publish messages, and report for each whether RabbitMQ has stored it.

Messages are pipelined. None is sent twice: the report names those to send again.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from workqueue.amqp.declaration import SAFE_AFTER_SECONDS
from workqueue.amqp.errors import NotSent, PublishError, Returned, Unconfirmed
from workqueue.amqp.outgoing import Outgoing
from workqueue.amqp.publish_pipeline import DEFAULT_TIMEOUT_SECONDS, PublishPipeline
from workqueue.amqp.session import wait_until_open
from workqueue.cli import connection_options, message_sources, output, values
from workqueue.cli.main import INTERRUPTED
from workqueue.cli.message_sources import InputError, Item
from workqueue.cli.progress import Update, progress
from workqueue.contract import topology
from workqueue.contract.headers import HIGHEST_PRIORITY
from workqueue.worker import tracing

_CLOSE_SECONDS: Final = 2.0
_NUDGE_SECONDS: Final = 0.3
_LOOK_SECONDS: Final = 0.1


def add_place(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for the destination of messages."""
    where = parser.add_argument_group("destination").add_mutually_exclusive_group(required=True)
    where.add_argument("--queue", help="a work queue, through the default exchange")
    where.add_argument("--exchange", help="an exchange that exists; see --routing-key")
    parser.add_argument("--routing-key", default="", metavar="KEY", help="with --exchange")
    parser.add_argument("--declare", action="store_true", help="declare the queue first (with --queue)")
    parser.add_argument(
        "--queue-type",
        choices=[kind.value for kind in topology.QueueType],
        default=topology.QueueType.QUORUM.value,
        help="with --declare (default: %(default)s)",
    )
    connection_options.add_arguments(parser)


def add_arguments(
    parser: argparse.ArgumentParser, add_place: Callable[[argparse.ArgumentParser], None] = add_place
) -> None:
    """Add the command's arguments.

    Args:
        add_place: adds the arguments for the destination.
    """
    add_place(parser)
    what = parser.add_argument_group("messages")
    what.add_argument("messages", nargs="*", metavar="MESSAGE", help="a message; - for --stdin")
    what.add_argument("--stdin", action="store_true", help="one message per line from standard input")
    what.add_argument(
        "--jsonl",
        metavar="FILE",
        help='one JSON object per line: {"body": ..., "headers": {...}, "priority": ..., "id": ...}; - for'
        " standard input",
    )
    what.add_argument("--files", nargs="+", type=Path, metavar="PATH", help="one message per file")
    what.add_argument("--header", action="append", default=[], type=_header, metavar="NAME=VALUE")
    what.add_argument("--priority", type=_priority, metavar="0..255")
    what.add_argument("--content-type", metavar="TYPE")
    what.add_argument(
        "--delay", type=_delay, metavar="SECONDS", help="deliver messages to the queue after this delay, at most 30"
        " days (with --queue)"
    )  # fmt: skip
    parser.add_argument(
        "--timeout",
        type=values.timeout,
        default=DEFAULT_TIMEOUT_SECONDS,
        metavar="SECONDS",
        help="time for the confirm of one message (default: %(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    parser.set_defaults(parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Send; return 0 if every message was confirmed, 1 if not, 130 after Ctrl-C."""
    _check(arguments)
    source = connection_options.binding_source(arguments)
    report = _Report(arguments)
    try:
        items, total = _items(arguments)
    except InputError as error:
        arguments.parser.error(f"{error} Nothing was sent.")
    if arguments.delay is not None:
        items = map(partial(_delayed, arguments.queue, arguments.delay), items)
    traces = tracing.start("workqueue send", os.environ) if tracing.wanted(os.environ) else None
    publisher = tracing.pipeline(traces, source, "workqueue send", timeout_seconds=arguments.timeout)
    with _sigterm_as_interrupt(), publisher:
        wait_until_open(publisher.connection, source)
        _declare(publisher, arguments)
        try:
            with progress("sending", total) as update:
                _send(publisher, items, report, update)
        except InputError as error:
            report.stopped = str(error)
            while not publisher.wait(_LOOK_SECONDS):
                pass
        except KeyboardInterrupt:
            report.interrupted = True
            publisher.close(_CLOSE_SECONDS)
    if traces is not None:
        traces.close()
    return report.say()


def _delayed(queue: str, delay: float, item: Item) -> Item:
    route = topology.delay_route(queue, delay, item.outgoing.priority)
    return item._replace(outgoing=item.outgoing.delayed(route, time.time() + delay))


def _send(publisher: PublishPipeline, items: Iterable[Item], report: _Report, update: Update) -> None:
    for label, outgoing in items:
        if report.hopeless:
            report.stopped = f"stopped before {label}"
            break
        report.read += 1
        try:
            publisher.publish(outgoing).add_done_callback(partial(report.settled, label))
        except NotSent as error:
            report.failed(label, error)
        update(report.confirmed)
    while not publisher.wait(_LOOK_SECONDS):
        update(report.confirmed)


class _Report:
    """The results of the messages. Written in the publisher's thread, read after it is done."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.read = 0
        self.confirmed = 0
        self.hopeless = False
        self.stopped = ""
        self.interrupted = False
        self._failures: list[tuple[str, PublishError]] = []
        self._arguments = arguments

    def settled(self, label: str, future: Future[None]) -> None:
        error = future.exception()
        if isinstance(error, PublishError):
            self.failed(label, error)
        else:
            self.confirmed += 1

    def failed(self, label: str, error: PublishError) -> None:
        self._failures.append((label, error))
        # If the queue does not exist or the connection is lost, the next message fails too. A message that
        # was refused or has a routing key says nothing about the next.
        if isinstance(error, Unconfirmed | NotSent) or (isinstance(error, Returned) and not error.exchange):
            self.hopeless = True

    def say(self) -> int:
        complete = not self.stopped and not self.interrupted
        if self._arguments.json:
            output.say_json(
                {
                    "confirmed": self.confirmed,
                    "failed": [self._as_json(label, error) for label, error in self._failures],
                    "complete": complete and not self._failures,
                }
            )
        for label, error in self._failures:
            output.warn(f"{label}: {self._sentence(error)}")
        if not self._arguments.json:
            output.say(f"{output.count(self.confirmed, 'message')} of {self.read} confirmed.")
        if self.interrupted:
            output.warn("Interrupted: nothing else was sent.")
            return INTERRUPTED
        if self.stopped:
            output.warn(f"Not everything was sent: {self.stopped}")
        return 0 if complete and not self._failures else 1

    def _sentence(self, error: PublishError) -> str:
        if isinstance(error, Returned) and not error.exchange:
            queue = self._arguments.queue
            return f"returned: queue {queue} does not exist: apply its WorkQueue or use --declare."
        return str(error)

    def _as_json(self, label: str, error: PublishError) -> dict[str, Any]:
        return {
            "message": label,
            "messageId": error.message_id,
            "error": type(error).__name__,
            "reason": error.reason,
        }


def _items(arguments: argparse.Namespace) -> tuple[Iterator[Item], int | None]:
    """Return the messages, and their number if it is known.

    Raises:
        InputError: a file of JSON lines has a mistake. The whole file is read before anything is sent.
    """
    template = _template(arguments)
    if arguments.files:
        return message_sources.from_files(arguments.files, template), len(arguments.files)
    if arguments.jsonl == "-":
        return message_sources.from_json_lines(sys.stdin.buffer, template), None
    if arguments.jsonl:
        path = Path(arguments.jsonl)
        total = sum(1 for _ in message_sources.from_json_lines(_lines(path), template))
        return message_sources.from_json_lines(_lines(path), template), total
    if arguments.stdin or arguments.messages == ["-"]:
        return message_sources.from_lines(sys.stdin.buffer, template), None
    return message_sources.from_arguments(arguments.messages, template), len(arguments.messages)


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def _template(arguments: argparse.Namespace) -> Outgoing:
    return Outgoing(
        arguments.queue or arguments.routing_key,
        b"",
        exchange=arguments.exchange or "",
        headers=dict(arguments.header) or None,
        priority=arguments.priority,
        content_type=arguments.content_type,
    )


def _declare(publisher: PublishPipeline, arguments: argparse.Namespace) -> None:
    asked = []
    if arguments.declare:
        settings = topology.QueueSettings(arguments.queue, topology.QueueType(arguments.queue_type))
        asked.append(publisher.declare_plan(topology.plan(settings)))
    if arguments.delay is not None:
        # Each line of --jsonl may have its own priority.
        priorities = (None, topology.HIGH_PRIORITY) if arguments.jsonl else (arguments.priority,)
        routes = [topology.delay_route(arguments.queue, arguments.delay, priority) for priority in priorities]
        asked += [publisher.declare_plan(route.plan) for route in routes]
    created = [future.result() for future in asked]
    if any(created):
        time.sleep(SAFE_AFTER_SECONDS)


def _check(arguments: argparse.Namespace) -> None:
    """Check combinations that argparse cannot check. Exits on a mistake."""
    error = arguments.parser.error
    given = sum(map(bool, (arguments.messages, arguments.stdin, arguments.jsonl, arguments.files)))
    if given != 1:
        error("give messages, or one of --stdin, --jsonl and --files")
    if arguments.exchange is not None and (arguments.declare or arguments.delay is not None):
        error("--declare and --delay go with --queue")
    if arguments.queue is not None and arguments.routing_key:
        error("--routing-key goes with --exchange")
    if arguments.queue == "":
        error("--queue is empty")
    try:
        if arguments.declare or arguments.delay is not None:
            topology.check_queue_name(arguments.queue)
    except ValueError as mistake:
        error(str(mistake))


def _header(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _priority(text: str) -> int:
    if not text.isdecimal() or int(text) > HIGHEST_PRIORITY:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {HIGHEST_PRIORITY}")
    return int(text)


def _delay(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= topology.LONGEST_DELAY_SECONDS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of seconds above 0, up to {topology.LONGEST_DELAY_SECONDS}"
        )
    return seconds


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Make SIGTERM end the command like Ctrl-C: with a report.

    A signal just before the main thread blocks in a read does not interrupt the read, and Python calls the
    signal handler only after it. A thread notices this and sends the signal again.
    """
    seen = threading.Event()
    main = threading.get_ident()

    def interrupt(*_: object) -> None:
        seen.set()
        raise KeyboardInterrupt

    def nudge() -> None:
        while told.recv(1):
            if not seen.wait(_NUDGE_SECONDS):
                signal.pthread_kill(main, signal.SIGTERM)

    told, tell = socket.socketpair()
    tell.setblocking(False)
    watcher = threading.Thread(target=nudge, name="signals", daemon=True)
    watcher.start()
    before, fd_before = signal.signal(signal.SIGTERM, interrupt), signal.set_wakeup_fd(tell.fileno())
    try:
        yield
    finally:
        signal.set_wakeup_fd(fd_before)
        signal.signal(signal.SIGTERM, before)
        tell.close()
        watcher.join()
        told.close()
