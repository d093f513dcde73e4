"""Parse the command line `python -m hack.cluster up|down|status|load|exec`."""

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
    """Run the command. An error becomes one sentence and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m hack.cluster",
        description="A real single-node Kubernetes on this machine, without a container engine or a registry. "
        "CLUSTER=current in the environment selects the cluster of the current kubectl context instead.",
        epilog=f"Set {NAME_VARIABLE} to use a second cluster beside the default one.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start the cluster unless it runs, and write .cluster/kubeconfig")
    commands.add_parser("down", help="delete the cluster and everything in it")
    commands.add_parser("status", help="show what runs; exit code 1 if the cluster is not ready")
    load = commands.add_parser("load", help="load an image archive (docker save) into the cluster")
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
        say(f"The operating system refused: {error}.")
    except KeyboardInterrupt:
        say("Interrupted. Run the same command to continue.")
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
                raise ClusterError("No command was given. Write it after `exec --`.")
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
            say("Removed .cluster. The cluster of the current context is unchanged.")
        case command:
            raise ClusterError(f"`{command}` works on the local cluster only. Unset CLUSTER, or use kubectl.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
