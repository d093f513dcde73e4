"""The doorbell of an idle queue: installed while no worker exists and one may, removed before any is started.

A pass adjusts it after the scaling. Every scale-in to zero installs it first.
"""

from __future__ import annotations

from collections.abc import Sequence

from workqueue_operator.api.reasons import ConditionType, Reason, Unknown
from workqueue_operator.api.workqueue import ConditionStatus, Wake, WorkQueue
from workqueue_operator.broker.connection import QueueCounts
from workqueue_operator.broker.depth_poller import PolledQueue
from workqueue_operator.kube.views import DeploymentView, PodView
from workqueue_operator.ports import Broker
from workqueue_operator.scaling.decide import Decision, Depth, ScaleOut
from workqueue_operator.scaling.snapshot import Snapshot


def wake_of(workqueue: WorkQueue, handle: Broker, polled: PolledQueue) -> Wake:
    """Return how the operator notices a message on an idle queue.

    Push, except where RabbitMQ refused the doorbell or where rings would count as deliveries: before RabbitMQ 4.3
    each ring brings a message closer to its delivery limit, and a queue that the operator did not declare may have a
    low one.
    """
    borrowed = (
        not workqueue.spec.queue.declare
        and workqueue.spec.scaling.wake is None
        and handle.broker.version.nack_counts_as_delivery
    )
    return Wake.POLL if polled.refusal is not None or borrowed else workqueue.wake


def slept(workqueue: WorkQueue, deployment: DeploymentView, pods: Sequence[PodView], broker: str) -> bool:
    """Whether an earlier process left a WorkQueue that needs nothing but its doorbell. Pure.

    Its status says that the queue exists and that the next message starts a worker. Nothing of the spec changes that
    with time.

    Args:
        broker: the broker of the doorbell (`Binding.display`).
    """
    spec, status = workqueue.spec, workqueue.status
    ready, workers = status.condition(ConditionType.READY), status.condition(ConditionType.WORKERS_AVAILABLE)
    return (
        status.observed_generation == workqueue.metadata.generation
        and ready is not None
        and ready.status is ConditionStatus.TRUE
        and workers is not None
        and workers.reason == Reason.SCALED_TO_ZERO.value
        and deployment.replicas == deployment.current == 0
        and not pods
        and deployment.broker == broker
        and workqueue.wake is Wake.PUSH
        and spec.queue.declare
        and spec.replicas is None
        and spec.scaling.min_replicas == 0
        and not (spec.scaling.schedules or spec.limits or spec.recurring)
    )


async def adjust_doorbell(snapshot: Snapshot, decision: Decision, handle: Broker) -> Unknown | None:
    """Install or remove the doorbell, and poll the queue as often as that requires.

    Args:
        snapshot: with the Deployment and the pods after the scaling.

    Returns:
        Why the operator polls the queue although Push is wanted, or None.
    """
    workqueue = snapshot.workqueue
    queue = workqueue.queue_name
    polled = handle.poller.watch(workqueue.key, queue)
    if isinstance(snapshot.depth, Unknown) and handle.broker.has_doorbell(queue):
        # While nothing is known it does no harm, and it learns of a message first.
        polled.active = True
    elif wake_of(workqueue, handle, polled) is Wake.POLL or not _is_asleep(snapshot, decision):
        handle.broker.remove_doorbell(queue)
        polled.active = not (workqueue.spec.replicas == 0 and _has_none(snapshot.deployment))
    else:
        polled.active = not await handle.broker.install_doorbell(queue, ours=workqueue.spec.queue.declare)
        if polled.active:
            # A ring came immediately, or RabbitMQ refused. Another pass follows, and the last answer is old.
            polled.last = None
            if handle.broker.doorbell_is_silent(queue):
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
        "queue are down, or has no channel left for it. The operator polls the queue until it answers. Look at its "
        "members (rabbitmq-queues quorum_status), and at RabbitMQ's setting channel_max.",
    )


async def confirm_empty(workqueue: WorkQueue, handle: Broker) -> bool | None:
    """Check, before the step to zero, that the queue is empty and that the operator will notice a message.

    The last workers have stopped consuming by then.

    Returns:
        True: the queue is empty, and a later message rings the doorbell or is found by polling. False: a message is
        waiting. None: the doorbell cannot be installed now, so that a message would not be noticed.
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


def _is_asleep(snapshot: Snapshot, decision: Decision) -> bool:
    """Whether no worker exists, none is needed, and the next message may start one."""
    return (
        _has_none(snapshot.deployment)
        and all(pod.terminating or pod.marked for pod in snapshot.pods)
        and isinstance(snapshot.depth, Depth)
        and snapshot.depth.ready == 0
        and not isinstance(decision, ScaleOut)
        and decision.wanted == 0
        and decision.reason is not Reason.PINNED
    )
