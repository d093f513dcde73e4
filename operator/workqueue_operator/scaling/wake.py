"""The bell of an idle queue: hung when there is no worker and may be one, taken down before any is started.

Place in the flow: the last act of a pass, and a step of every scale-in to zero.
"""

from __future__ import annotations

from collections.abc import Sequence

from workqueue_operator.api.reasons import Reason, Unknown
from workqueue_operator.api.workqueue import Wake, WorkQueue
from workqueue_operator.broker.connection import QueueCounts
from workqueue_operator.broker.depth_poller import Watched
from workqueue_operator.broker.pool import Link
from workqueue_operator.kube.views import DeploymentView, PodView
from workqueue_operator.scaling.decide import Decision, Depth, ScaleOut


def wake_of(workqueue: WorkQueue, link: Link, watched: Watched) -> Wake:
    """How an idle queue is noticed: Push, but not where a bell was refused or where its rings would count.

    Before RabbitMQ 4.3 each ring moves a message towards its delivery limit, and a queue that we did not
    declare may have none to spare.
    """
    borrowed = (
        not workqueue.spec.queue.declare
        and workqueue.spec.scaling.wake is None
        and link.broker.version.nack_counts_as_delivery
    )
    return Wake.POLL if watched.refusal is not None or borrowed else workqueue.wake


async def mind(
    workqueue: WorkQueue,
    link: Link,
    deployment: DeploymentView | Unknown,
    pods: Sequence[PodView],
    depth: Depth | Unknown,
    decision: Decision,
) -> Unknown | None:
    """Hang the bell or take it down, and watch the queue as closely as that leaves necessary.

    Returns:
        Why the queue is polled although Push is wanted, or None.
    """
    queue = workqueue.queue_name
    watched = link.sweep.watch(workqueue.key, queue)
    if isinstance(depth, Unknown) and link.broker.bell_is_up(queue):
        # It does no harm while nothing is known, and it is the first to know.
        watched.active = True
    elif wake_of(workqueue, link, watched) is Wake.POLL or not _is_asleep(deployment, pods, depth, decision):
        link.broker.take_down_bell(queue)
        watched.active = not (workqueue.spec.replicas == 0 and _has_none(deployment))
    else:
        watched.active = not await link.broker.hang_bell(queue, ours=workqueue.spec.queue.declare)
        if watched.active:
            # It rang at once or was refused: another pass is on its way, and the last answer is out of date.
            watched.last = None
            if link.broker.bell_is_silent(queue):
                return _silent(queue)
    if watched.refusal is None or workqueue.wake is Wake.POLL:
        return None
    return Unknown(
        Reason.DOORBELL_UNAVAILABLE,
        f"The operator may not consume from queue {queue!r}, so that an idle queue is noticed by polling. "
        f"RabbitMQ says: {watched.refusal[1]}. Give its user read permission on the queue.",
    )


def _silent(queue: str) -> Unknown:
    return Unknown(
        Reason.DOORBELL_UNAVAILABLE,
        f"RabbitMQ does not answer the operator's consumer on queue {queue!r}, as when most members of a quorum "
        "queue are down. The operator polls the queue until it answers. Look at its members "
        "(rabbitmq-queues quorum_status).",
    )


async def confirm_empty(workqueue: WorkQueue, link: Link) -> bool | None:
    """For the step to zero, after the last workers have stopped consuming: is the queue empty, and will we hear?

    Returns:
        True: empty, and a message that comes later rings (or is polled for). False: something waits. None:
        the bell does not hang just now, so that nobody would notice a message.
    """
    queue = workqueue.queue_name
    watched = link.sweep.watch(workqueue.key, queue)
    push = wake_of(workqueue, link, watched) is Wake.PUSH
    hung = not push or await link.broker.hang_bell(queue, ours=workqueue.spec.queue.declare)
    counts = await link.sweep.ask(watched)
    if not isinstance(counts, QueueCounts) or (counts.ready == 0 and not hung):
        link.broker.take_down_bell(queue)
        return None
    if counts.ready == 0 and (counts.bell or not push):
        return True
    link.broker.take_down_bell(queue)
    return False


def _has_none(deployment: DeploymentView | Unknown) -> bool:
    return isinstance(deployment, DeploymentView) and deployment.replicas == 0


def _is_asleep(
    deployment: DeploymentView | Unknown,
    pods: Sequence[PodView],
    depth: Depth | Unknown,
    decision: Decision,
) -> bool:
    """No worker is there, none is needed, and the next message may start one."""
    return (
        _has_none(deployment)
        and all(pod.terminating or pod.marked for pod in pods)
        and isinstance(depth, Depth)
        and depth.ready == 0
        and not isinstance(decision, ScaleOut)
        and decision.wanted == 0
        and decision.reason is not Reason.PINNED
    )
