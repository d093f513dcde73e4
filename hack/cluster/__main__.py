"""Parse the command line `python -m hack.cluster up|down|status|load|exec`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from hack.cluster.clusters import Cluster, selected
from hack.cluster.console import say
from hack.cluster.errors import ClusterError
from hack.cluster.instance import NAME_VARIABLE


def main() -> int:
    """Run the command. An error becomes one sentence and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m hack.cluster",
        description="A real single-node Kubernetes on this machine, without a container engine or a registry. "
        "CLUSTER=kind in the environment selects a cluster in docker or podman instead, and CLUSTER=current the "
        "cluster of the current kubectl context.",
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
        return _run(arguments, selected())
    except ClusterError as error:
        say(str(error))
    except OSError as error:
        say(f"The operating system refused: {error}.")
    except KeyboardInterrupt:
        say("Interrupted. Run the same command to continue.")
    return 1


def _run(arguments: argparse.Namespace, cluster: Cluster) -> int:
    match arguments.command:
        case "up":
            cluster.up()
        case "down":
            cluster.down()
        case "status":
            return 0 if cluster.status() else 1
        case "load":
            print(cluster.load(arguments.archive), end="")
        case "exec":
            command = arguments.arguments[arguments.arguments[:1] == ["--"] :]
            if not command:
                raise ClusterError("No command was given. Write it after `exec --`.")
            enter = cluster.inside(command)
            os.execvp(enter[0], enter)
    return 0


if __name__ == "__main__":
    sys.exit(main())
