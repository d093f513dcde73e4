"""`kubectl workqueue send`: `workqueue send` to the queue of a WorkQueue, with the credentials of its Secret."""

from __future__ import annotations

import argparse

from workqueue.cli import send
from workqueue_kubectl import broker_access
from workqueue_kubectl.cluster import Cluster


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    send.add_arguments(parser, broker_access.add_place)


def run(cluster: Cluster, arguments: argparse.Namespace) -> int:
    """Run `workqueue send` for the queue of the WorkQueue, with its exit codes."""
    workqueue = cluster.workqueue(arguments.name)
    arguments.exchange, arguments.routing_key = None, ""
    arguments.declare = False  # the operator declares the queue
    return broker_access.run_for(workqueue, cluster, arguments, send.run)
