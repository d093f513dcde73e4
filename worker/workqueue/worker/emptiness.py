"""End a worker when its queue is empty: `workqueue run --until-empty`.

The queue is empty when no message waits in it, none waits in a delay queue that this worker has used, and no handler
of this worker runs. A worker cannot list queues, so it does not know the delay queues of other programs.
"""

from __future__ import annotations

import logging
from typing import Final

from workqueue.amqp.errors import BrokerError
from workqueue.amqp.session import Session
from workqueue.contract.errors import BindingError
from workqueue.worker.deliveries import Failure
from workqueue.worker.drain import Signals
from workqueue.worker.runtime import Runtime

EMPTY_LOOKS: Final = 3
"""How often in a row the queue must look empty: a message on its way from a delay queue is in no count."""

LOOK_SECONDS: Final = 0.5

logger = logging.getLogger(__name__)


def wait(runtime: Runtime, signals: Signals) -> None:
    """Wait until the queue is empty, or until the worker ends for another reason."""
    config = runtime.config
    while not _is_over(runtime, signals):
        try:
            with Session(config.read_binding, f"{config.queue} until empty") as session:
                _watch(session, runtime, signals)
                return
        except (BrokerError, BindingError) as error:
            logger.warning(
                "RabbitMQ does not say whether the queue is empty; trying again.",
                extra={"queue": config.queue, "reason": str(error)},
            )


def _is_over(runtime: Runtime, signals: Signals) -> bool:
    is_signal = signals.wait(LOOK_SECONDS)
    return is_signal or runtime.finished or runtime.failure is not None


def _watch(session: Session, runtime: Runtime, signals: Signals) -> None:
    config = runtime.config
    looks = 0
    while looks < EMPTY_LOOKS:
        if _is_over(runtime, signals):
            return
        if not config.declare and session.depth(config.queue) is None:
            reason = (
                f"The queue {config.queue!r} does not exist, and --until-empty does not wait for it. Create it, or "
                "use --declare."
            )
            runtime.fail(Failure(reason, config.grace_seconds))
            return
        looks = looks + 1 if _is_empty(session, runtime) else 0
    logger.info("The queue is empty.", extra={"queue": config.queue})
    runtime.finish()


def _is_empty(session: Session, runtime: Runtime) -> bool:
    queue, consumer = runtime.config.queue, runtime.consumer
    if not consumer.consuming or consumer.busy():
        return False
    # A message moves from longer steps to shorter ones and then to the work queue, so this order finds it.
    for name in runtime.deliveries.delay_queues:
        delayed = session.depth(name)
        if delayed is not None and delayed.ready:
            return False
    work = session.depth(queue)
    # A quorum queue without a leader reports neither messages nor consumers, not even ours.
    return work is not None and not work.ready and work.consumers > 0 and not consumer.busy()
