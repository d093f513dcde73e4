"""The bell of an idle queue: hung when there is no worker and may be one, taken down before any is started.

Place in the flow: the last act of a pass, and a step of every scale-in to zero.
"""

from __future__ import annotations

from collections.abc import Sequence

from workqueue_operator.api.reasons import Reason, Unknown
from workqueue_operator.api.workqueue import Wake, WorkQueue
from workqueue_operator.broker.connection import QueueCounts
from workqueue_operator.broker.depth_poller import PolledQueue
from workqueue_operator.broker.pool import BrokerHandle
from workqueue_operator.kube.views import DeploymentView, PodView
from workqueue_operator.scaling.decide import Decision, Depth, ScaleOut


def wake_of(workqueue: WorkQueue, handle: BrokerHandle, polled: PolledQueue) -> Wake:
    """How an idle queue is noticed: Push, but not where a bell was refused or where its rings would count.

    Before RabbitMQ 4.3 each ring moves a message towards its delivery limit, and a queue that we did not
    declare may have none to spare.
    """
    borrowed = (
        not workqueue.spec.queue.declare
        and workqueue.spec.scaling.wake is None
        and handle.broker.version.nack_counts_as_delivery
    )
    return Wake.POLL if polled.refusal is not None or borrowed else workqueue.wake


async def mind(
    workqueue: WorkQueue,
    handle: BrokerHandle,
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
    polled = handle.poller.watch(workqueue.key, queue)
    if isinstance(depth, Unknown) and handle.broker.has_doorbell(queue):
        # It does no harm while nothing is known, and it is the first to know.
        polled.active = True
    elif wake_of(workqueue, handle, polled) is Wake.POLL or not _is_asleep(deployment, pods, depth, decision):
        handle.broker.remove_doorbell(queue)
        polled.active = not (workqueue.spec.replicas == 0 and _has_none(deployment))
    else:
        polled.active = not await handle.broker.install_doorbell(queue, ours=workqueue.spec.queue.declare)
        if polled.active:
            # It rang at once or was refused: another pass is on its way, and the last answer is out of date.
            polled.last = None
            if handle.broker.bell_is_silent(queue):
                return _silent(queue)
    if polled.refusal is None or workqueue.wake is Wake.POLL:
        return None
    return Unknown(
        Reason.DOORBELL_UNAVAILABLE,
        f"The operator may not consume from queue {queue!r}, so that an idle queue is noticed by polling. "
        f"RabbitMQ says: {polled.refusal[1]}. Give its user read permission on the queue.",
    )


def _silent(queue: str) -> Unknown:
    return Unknown(
        Reason.DOORBELL_UNAVAILABLE,
        f"RabbitMQ does not answer the operator's consumer on queue {queue!r}, as when most members of a quorum "
        "queue are down. The operator polls the queue until it answers. Look at its members "
        "(rabbitmq-queues quorum_status).",
    )


async def confirm_empty(workqueue: WorkQueue, handle: BrokerHandle) -> bool | None:
    """For the step to zero, after the last workers have stopped consuming: is the queue empty, and will we hear?

    Returns:
        True: empty, and a message that comes later rings (or is polled for). False: something waits. None:
        the bell does not hang just now, so that nobody would notice a message.
    """
    queue = workqueue.queue_name
    polled = handle.poller.watch(workqueue.key, queue)
    push = wake_of(workqueue, handle, polled) is Wake.PUSH
    installed = not push or await handle.broker.install_doorbell(queue, ours=workqueue.spec.queue.declare)
    counts = await handle.poller.ask(polled)
    if not isinstance(counts, QueueCounts) or (counts.ready == 0 and not installed):
        handle.broker.remove_doorbell(queue)
        return None
    if counts.ready == 0 and (counts.doorbell or not push):
        return True
    handle.broker.remove_doorbell(queue)
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
