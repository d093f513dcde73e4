"""Send one document, which wakes one worker, then all others at once, which need more workers.

After each step the operator scales back to zero. Then the ledger checks every result.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Final

from examples.wordcount.wordcount import count
from hack.demo import install
from hack.demo.board import Board, Row, Screen
from hack.demo.broker import Inbox, empty
from hack.demo.documents import Document
from hack.demo.errors import DemoError
from hack.demo.install import Cluster
from hack.demo.ledger import Ledger
from hack.demo.recording import Recorder
from hack.demo.report import Figures
from hack.demo.watch import Watch, Write
from workqueue.amqp.errors import BrokerError
from workqueue.amqp.outgoing import Outgoing
from workqueue.amqp.publish_pipeline import PublishPipeline
from workqueue.contract import topology
from workqueue.contract.binding import Binding
from workqueue_operator.api.workqueue import WorkQueueSpec

QUEUE: Final = install.WORKQUEUE
DEAD: Final = topology.dead_letter_queue_name(QUEUE)
RESULTS: Final = f"{QUEUE}.results"

POLL_SECONDS: Final = 0.1
WAKE_SECONDS: Final = 60.0
RESULT_SECONDS: Final = 180.0
"""The longest wait for the next result. Pulling an image must fit in."""

ZERO_SECONDS: Final = 60.0
"""The longest wait for the last pod to go, on top of scaleInDelaySeconds."""

SETTLE_SECONDS: Final = 10.0


class Scenario:
    """One run. Its message ids distinguish its documents from those of other runs."""

    def __init__(
        self, screen: Screen, cluster: Cluster, spec: WorkQueueSpec, documents: Sequence[Document]
    ) -> None:
        self._screen = screen
        self._spec = spec
        self._documents = documents
        run = secrets.token_hex(4)
        self._ids = [f"{run}-{number}" for number in range(len(documents))]
        self.ledger = Ledger(
            {key: count(document.body) for key, document in zip(self._ids, documents, strict=True)},
            {key: str(document.path) for key, document in zip(self._ids, documents, strict=True)},
        )
        self._watch = Watch(cluster.kubectl(), QUEUE)
        self.recorder = Recorder()
        """The rows from before the publish of the other documents until no worker is left."""

    def run(self, binding: Callable[[], Binding]) -> Figures:
        """Run the scenario and return the measurements.

        Args:
            binding: returns the address of RabbitMQ on this machine.

        Raises:
            DemoError: a check failed.
        """
        with self._watch, PublishPipeline(binding, "workqueue demo") as publisher, _named_errors():
            self._start_empty(publisher, binding())
            with Inbox(binding, RESULTS, (QUEUE, DEAD, RESULTS), self.ledger.record) as inbox:
                confirmed, wake, first_result = self._send_first(publisher)
                published, scale_out = self._send_rest(publisher, inbox)
                zero = time.monotonic()
                self._check(inbox)
        last = max(self.ledger.seen_at.values())
        return Figures(confirmed, wake, first_result, published, scale_out, last - published, zero - last)

    def _start_empty(self, publisher: PublishPipeline, binding: Binding) -> None:
        with self._screen.step(f"Queue {RESULTS} for the results") as step:
            publisher.declare(topology.Queue(RESULTS, {"x-queue-type": "quorum"})).result()
            delayed = (topology.step_name(QUEUE, step) for step in topology.STEPS)
            removed = empty(binding, (QUEUE, *delayed, DEAD, RESULTS))
            if removed:
                step.title += f"; removed {removed} messages of an earlier run"
        with self._screen.step("No worker runs"):
            self._wait_for_zero()

    def _send_first(self, publisher: PublishPipeline) -> tuple[float, float, float]:
        """Send the first document.

        Returns:
            Seconds from its publish until RabbitMQ confirmed it, until the replica count was written, and
            until its result came.
        """
        with self._screen.step("The first document") as step:
            before, began = len(self._watch.writes), time.monotonic()
            publisher.publish(self._message(0)).result()
            confirmed = time.monotonic() - began
            self._wait(
                lambda: len(self._watch.writes) > before, WAKE_SECONDS, "the operator asked for no worker"
            )
            self._wait(lambda: self.ledger.done > 0, RESULT_SECONDS, "the first document has no result")
            wake = self._watch.writes[before].at - began
            result = self.ledger.seen_at[self._ids[0]] - began
            step.title = (
                f"One document: 1 replica written {wake * 1000:.0f} ms after its publish, "
                f"its result after {result:.2f} s"
            )
        with self._screen.step("Its worker is gone again"):
            self._wait_for_zero()
        return confirmed, wake, result

    def _send_rest(self, publisher: PublishPipeline, inbox: Inbox) -> tuple[float, list[Write]]:
        """Send the other documents. Return when that began, and the increases of the replica count."""
        rest = range(1, len(self._documents))
        self._screen.say(f"          {len(rest)} documents at once")
        self.recorder.note(self._row(inbox))
        before, began = len(self._watch.writes), time.monotonic()
        sent = [publisher.publish(self._message(number)) for number in rest]
        with Board(self._screen, self.ledger.total) as board:
            progress, done = began, self.ledger.done
            while not (self.ledger.done == self.ledger.total and self._is_zero()):
                _raise_for(sent)
                self._show(board, inbox)
                if self.ledger.done > done:
                    progress, done = time.monotonic(), self.ledger.done
                waited = time.monotonic() - progress
                if done < self.ledger.total and waited > RESULT_SECONDS:
                    complaints = "; ".join(self.ledger.complaints())
                    raise self._late(RESULT_SECONDS, f"there is no further result: {complaints}")
                if done == self.ledger.total and waited > self._zero_seconds():
                    raise self._late(self._zero_seconds(), self._pods_left())
                time.sleep(POLL_SECONDS)
            self._show(board, inbox)
        for future in sent:
            future.result()
        return began, [write for write in self._watch.writes[before:] if write.after > write.before]

    def _row(self, inbox: Inbox) -> Row:
        return Row(inbox.waiting[QUEUE], self._watch.workers(), self.ledger.done)

    def _show(self, board: Board, inbox: Inbox) -> None:
        row = self._row(inbox)
        board.show(row)
        self.recorder.note(row)

    def _check(self, inbox: Inbox) -> None:
        """Check, after the last worker is gone, that each result came once and that the queues are empty."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while any(inbox.waiting.values()) or None in inbox.waiting.values():
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
        complaints = self.ledger.complaints()
        complaints += [
            f"{'an unknown number of' if left is None else left} messages are left in the queue {queue}"
            for queue, left in inbox.waiting.items()
            if left != 0
        ]
        if complaints:
            raise DemoError(f"The results are wrong: {'; '.join(complaints)}.")

    def _message(self, number: int) -> Outgoing:
        exchange = self._spec.queue.exchange
        assert exchange is not None
        return Outgoing(
            exchange.routing_keys[0],
            self._documents[number].body,
            exchange=exchange.name,
            message_id=self._ids[number],
            reply_to=RESULTS,
            content_type="text/plain",
        )

    def _is_zero(self) -> bool:
        workers = self._watch.workers()
        return self._watch.is_known() and workers.desired == workers.existing == 0

    def _zero_seconds(self) -> float:
        return self._spec.scaling.scale_in_delay_seconds + ZERO_SECONDS

    def _wait_for_zero(self) -> None:
        seconds = self._zero_seconds()
        if not self._watch.wait(self._is_zero, seconds):
            raise self._late(seconds, self._pods_left())

    def _wait(self, condition: Callable[[], bool], seconds: float, failure: str) -> None:
        if not self._watch.wait(condition, seconds):
            raise self._late(seconds, failure)

    def _pods_left(self) -> str:
        return f"there are still {self._watch.workers().existing} worker pods, terminating pods included"

    def _late(self, seconds: float, what: str) -> DemoError:
        return DemoError(f"After {seconds:.0f} s {what}. The WorkQueue reports: {self._watch.conditions()}")


def _raise_for(sent: Sequence[Future[None]]) -> None:
    for future in sent:
        if future.done():
            future.result()


@contextmanager
def _named_errors() -> Iterator[None]:
    try:
        yield
    except BrokerError as error:
        raise DemoError(str(error)) from error
