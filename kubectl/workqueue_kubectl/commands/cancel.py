"""`kubectl workqueue cancel`: `workqueue cancel` for a WorkQueue, with the credentials of its Secret."""

from __future__ import annotations

import argparse

from workqueue.cli import cancel
from workqueue_kubectl import broker_access
from workqueue_kubectl.cluster import Cluster


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments. `-n` is the namespace here."""
    cancel.add_arguments(parser, _add_place)


def run(cluster: Cluster, arguments: argparse.Namespace) -> int:
    """Run `workqueue cancel` for the queue of the WorkQueue, with its exit codes."""
    workqueue = cluster.workqueue(arguments.name)
    arguments.queue = workqueue.queue_name
    with broker_access.connect(cluster, workqueue, arguments) as arguments.source:
        return cancel.run(arguments)


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the WorkQueue")
    broker_access.add_arguments(parser)
