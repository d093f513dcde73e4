"""`kubectl workqueue recurring`: show the recurring messages of a WorkQueue, or publish one now."""

from __future__ import annotations

import argparse
import secrets
from datetime import UTC, datetime

from workqueue.amqp.outgoing import Outgoing
from workqueue.amqp.publish_pipeline import PublishPipeline
from workqueue.amqp.session import wait_until_open
from workqueue.cli import output
from workqueue_kubectl import broker_access
from workqueue_kubectl.cluster import Cluster
from workqueue_kubectl.errors import NotFoundError, PluginError
from workqueue_operator.api.workqueue import Recurring, RecurringStatus, WorkQueue, timestamp
from workqueue_operator.errors import ReconcileError
from workqueue_operator.scaling.slots import message_id, next_slot

_HEAD = ("NAME", "SCHEDULE", "LAST", "NEXT", "MISSED")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("name", metavar="NAME", help="the WorkQueue")
    parser.add_argument("--trigger", metavar="ENTRY", help="publish the message of this entry now")
    broker_access.add_arguments(parser)


def run(cluster: Cluster, arguments: argparse.Namespace) -> int:
    """Show the entries, or publish the message of one."""
    workqueue = cluster.workqueue(arguments.name)
    if arguments.trigger is not None:
        return _trigger(cluster, workqueue, arguments)
    progress = {one.name: one for one in workqueue.status.recurring or ()}
    now = datetime.now(UTC)
    rows = [_row(entry, progress.get(entry.name), now) for entry in workqueue.spec.recurring]
    if arguments.json:
        output.say_json(
            {
                "namespace": workqueue.metadata.namespace,
                "name": workqueue.metadata.name,
                "recurring": [dict(zip(map(str.lower, _HEAD), row, strict=True)) for row in rows],
            }
        )
    elif rows:
        output.say(output.table(_HEAD, rows))
    else:
        output.say(f"{workqueue.metadata.name} has no recurring messages.")
    return 0


def _row(entry: Recurring, progress: RecurringStatus | None, now: datetime) -> tuple[str, ...]:
    every = f"every {entry.every_seconds} s"
    last = progress.published if progress is not None else None
    return (
        entry.name,
        every if entry.cron is None else f"{entry.cron} {entry.time_zone}",
        timestamp(last) if last is not None else "-",
        _next(entry, now),
        entry.missed.value,
    )


def _next(entry: Recurring, now: datetime) -> str:
    if entry.suspend:
        return "suspended"
    try:
        slot = next_slot(entry, now)
    except ReconcileError:
        return "invalid"
    return timestamp(slot) if slot is not None else "never"


def _trigger(cluster: Cluster, workqueue: WorkQueue, arguments: argparse.Namespace) -> int:
    entry = next((one for one in workqueue.spec.recurring if one.name == arguments.trigger), None)
    if entry is None:
        names = ", ".join(one.name for one in workqueue.spec.recurring) or "none"
        raise PluginError(
            f"{workqueue.metadata.name} has no recurring message {arguments.trigger!r}. There are: {names}."
        )
    now = datetime.now(UTC)
    outgoing = Outgoing(
        workqueue.queue_name,
        _body(cluster, workqueue, entry),
        # A handler that knows the ids of earlier messages must not take the second one of a second for the first.
        message_id=f"{message_id(workqueue.metadata.name, entry.name, now)}-manual-{secrets.token_hex(4)}",
        content_type=entry.content_type,
        headers=entry.headers or None,
    )
    with (
        broker_access.connect(cluster, workqueue, arguments) as source,
        PublishPipeline(source, "kubectl workqueue recurring") as pipeline,
    ):
        wait_until_open(pipeline.connection, source)
        pipeline.publish_and_wait(outgoing)
    if arguments.json:
        output.say_json({"name": workqueue.metadata.name, "entry": entry.name, "id": outgoing.message_id})
    else:
        output.say(f"Published {outgoing.message_id}. The schedule does not change.")
    return 0


def _body(cluster: Cluster, workqueue: WorkQueue, entry: Recurring) -> bytes:
    if entry.body_from is None:
        return (entry.body or "").encode()
    source, namespace = entry.body_from.config_map_key_ref, workqueue.metadata.namespace
    try:
        found = cluster.kubectl.get(f"/api/v1/namespaces/{namespace}/configmaps/{source.name}")
        return str(found["data"][source.key]).encode()
    except (NotFoundError, KeyError) as error:
        raise PluginError(
            f"The ConfigMap {source.name!r} with the key {source.key!r} does not exist. Create it."
        ) from error
