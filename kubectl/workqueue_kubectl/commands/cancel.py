"""`kubectl workqueue cancel`: `workqueue cancel` for a WorkQueue, with the credentials of its Secret."""

from __future__ import annotations

import argparse

from workqueue.cli import cancel
from workqueue_kubectl import broker_access
from workqueue_kubectl.cluster import Cluster


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments. `-n` is the namespace here."""
    cancel.add_arguments(parser, broker_access.add_place)


def run(cluster: Cluster, arguments: argparse.Namespace) -> int:
    """Run `workqueue cancel` for the queue of the WorkQueue, with its exit codes."""
    return broker_access.run_for(cluster.workqueue(arguments.name), cluster, arguments, cancel.run)
