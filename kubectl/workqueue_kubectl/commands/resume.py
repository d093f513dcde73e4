"""`kubectl workqueue resume`: set spec.suspend to false."""

from __future__ import annotations

import argparse

from workqueue.cli import output
from workqueue_kubectl.cluster import Cluster, resource_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("name", metavar="NAME", help="the WorkQueue")


def run(cluster: Cluster, arguments: argparse.Namespace) -> int:
    """Resume the WorkQueue."""
    name = arguments.name
    cluster.change(name, {"suspend": False})
    if arguments.only_name:
        output.say(resource_name(name))
    elif arguments.json:
        output.say_json({"namespace": cluster.namespace, "name": name, "suspend": False})
    else:
        output.say(f"{name} is resumed.")
    return 0
