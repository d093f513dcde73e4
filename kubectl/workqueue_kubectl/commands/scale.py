"""`kubectl workqueue scale`: set or remove spec.replicas."""

from __future__ import annotations

import argparse

from workqueue.cli import output
from workqueue_kubectl.cluster import Cluster, resource_name
from workqueue_operator.api.workqueue import MAX_REPLICAS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("name", metavar="NAME", help="the WorkQueue")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("replicas", metavar="N", type=_replicas, nargs="?", help="pin the number of workers")
    what.add_argument("--release", action="store_true", help="release the pin and resume scaling")


def run(cluster: Cluster, arguments: argparse.Namespace) -> int:
    """Pin or release the replica count."""
    name, replicas = arguments.name, arguments.replicas
    cluster.change(name, {"replicas": replicas})
    if arguments.only_name:
        output.say(resource_name(name))
    elif arguments.json:
        output.say_json({"namespace": cluster.namespace, "name": name, "replicas": replicas})
    elif replicas is None:
        output.say(f"{name} is released. Scaling resumes.")
    else:
        output.say(
            f"{name} is pinned to {output.count(replicas, 'worker')}."
            f" To release it: `kubectl workqueue scale {name} --release`."
        )
    return 0


def _replicas(text: str) -> int:
    if not text.isdecimal() or int(text) > MAX_REPLICAS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {MAX_REPLICAS}")
    return int(text)
