"""The command line: `python -m hack.cluster up|down|status|load|exec`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from hack.cluster import checkout, lifecycle
from hack.cluster.console import say
from hack.cluster.errors import ClusterError
from hack.cluster.instance import DEFAULT_NAME, NAME_VARIABLE, Instance


def main() -> int:
    """Parse the command line, do it, and turn what went wrong into one sentence and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m hack.cluster",
        description="A real Kubernetes of one node on this machine, without container engine and registry. "
        "With CLUSTER=current in the environment, the current kubectl context is used instead.",
        epilog=f"{NAME_VARIABLE} names another cluster beside the usual one.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="have a cluster that is ready, and write .cluster/kubeconfig")
    commands.add_parser("down", help="take it away, with everything that belongs to it")
    commands.add_parser("status", help="what runs; exit code 1 if it is not ready")
    load = commands.add_parser("load", help="bring an image archive (docker save) into the cluster")
    load.add_argument("archive", type=Path, metavar="IMAGE_ARCHIVE")
    inside = commands.add_parser("exec", help="run a command in the cluster's network")
    inside.add_argument("arguments", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    arguments = parser.parse_args()
    try:
        if checkout.wants_current_context():
            return _with_current_context(arguments)
        return _with_local_cluster(arguments, Instance.from_environment())
    except ClusterError as error:
        say(str(error))
    except OSError as error:
        say(f"The machine refused something: {error}.")
    except KeyboardInterrupt:
        say("Interrupted; the same command goes on from here.")
    return 1


def _with_local_cluster(arguments: argparse.Namespace, instance: Instance) -> int:
    lifecycle.require_linux_root()
    match arguments.command:
        case "up":
            lifecycle.up(instance)
        case "down":
            lifecycle.down(instance)
        case "status":
            return 0 if lifecycle.status(instance) else 1
        case "load":
            print(lifecycle.load(instance, arguments.archive), end="")
        case "exec":
            command = arguments.arguments[arguments.arguments[:1] == ["--"] :]
            if not command:
                raise ClusterError("Which command? Write it after `exec --`.")
            enter = lifecycle.inside(instance, command)
            os.execvp(enter[0], enter)
    return 0


def _with_current_context(arguments: argparse.Namespace) -> int:
    match arguments.command:
        case "up":
            context, folder = checkout.use_current_context()
            say(f"Ready: {folder / 'kubeconfig'} is for the context {context}.")
        case "down":
            checkout.remove(DEFAULT_NAME)
            say("Removed .cluster; the cluster of the current context is as it was.")
        case command:
            raise ClusterError(f"`{command}` is for the local cluster: unset CLUSTER, or ask kubectl.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
