"""`kubectl workqueue dead`: `workqueue dead` for a WorkQueue, with the credentials of its Secret."""

from __future__ import annotations

import argparse

from workqueue.cli import dead
from workqueue_kubectl import broker_access
from workqueue_kubectl.cluster import Cluster


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments. `-n` is the namespace here."""
    dead.add_arguments(parser, broker_access.add_place, limit=("--limit",))


def run(cluster: Cluster, arguments: argparse.Namespace) -> int:
    """Run `workqueue dead` for the queue of the WorkQueue, with its exit codes."""
    workqueue = cluster.workqueue(arguments.name)
    arguments.dead_letter_queue = workqueue.spec.queue.dead_letter_queue
    return broker_access.run_for(workqueue, cluster, arguments, dead.run)
