"""`kubectl workqueue pause`: sets spec.suspend."""

from __future__ import annotations

import argparse

from workqueue.cli import output
from workqueue_kubectl.cluster import Cluster


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("name", metavar="NAME", help="the WorkQueue")


def run(cluster: Cluster, arguments: argparse.Namespace) -> int:
    """Suspend it."""
    name = arguments.name
    cluster.change(name, {"suspend": True})
    if arguments.json:
        output.say_json({"namespace": cluster.namespace, "name": name, "suspend": True})
    else:
        output.say(
            f"{name} is paused: workers that run go on, and their number stays."
            f" `kubectl workqueue resume {name}` goes on."
        )
    return 0
