"""`kubectl workqueue send`: `workqueue send` to the queue of a WorkQueue, with the credentials of its Secret."""

from __future__ import annotations

import argparse

from workqueue.cli import send
from workqueue_kubectl import broker_access
from workqueue_kubectl.cluster import Cluster


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    send.add_arguments(parser, _add_place)


def run(cluster: Cluster, arguments: argparse.Namespace) -> int:
    """Run `workqueue send` for the queue of the WorkQueue, with its exit codes."""
    workqueue = cluster.workqueue(arguments.name)
    arguments.queue, arguments.exchange, arguments.routing_key = workqueue.queue_name, None, ""
    arguments.declare = False  # the operator declares the queue
    with broker_access.connect(cluster, workqueue, arguments) as arguments.source:
        return send.run(arguments)


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the WorkQueue")
    broker_access.add_arguments(parser)
