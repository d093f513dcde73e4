"""`kubectl workqueue resume`: clears spec.suspend."""

from __future__ import annotations

import argparse

from workqueue.cli import output
from workqueue_kubectl.cluster import Cluster


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("name", metavar="NAME", help="the WorkQueue")


def run(cluster: Cluster, arguments: argparse.Namespace) -> int:
    """End the suspension."""
    name = arguments.name
    cluster.change(name, {"suspend": False})
    if arguments.json:
        output.say_json({"namespace": cluster.namespace, "name": name, "suspend": False})
    else:
        output.say(f"{name} goes on.")
    return 0
