"""Parse the command line `python -m hack.demo`. The exit code is 0 only if every check passed."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Final

from hack.cluster import checkout
from hack.cluster.errors import ClusterError
from hack.demo import documents, install, recording, scenario
from hack.demo.board import Screen
from hack.demo.errors import DemoError
from hack.demo.forward import forwarded
from hack.demo.report import report
from hack.image.build import DEFAULT_TAG
from workqueue_operator.api.workqueue import WorkQueueSpec

DOCUMENTS: Final = 400
INTERRUPTED: Final = 130
PAUSE_VARIABLE: Final = "WORDCOUNT_SECONDS"
PROGRAMS: Final = checkout.CHECKOUT / ".venv/bin"
_QUEUE: Final = f"{install.WORKQUEUE} -n {install.NAMESPACE}"
HINTS: Final = (
    (
        "send 100 jobs: 0 workers become 8, and 0 again",
        f"seq 100 | sed 's/^/some words /' | kubectl workqueue send {_QUEUE} --stdin",
    ),
    ("watch that; Ctrl-C ends it", f"kubectl workqueue top -n {install.NAMESPACE}"),
    ("why this many workers run, and what would change it", f"kubectl workqueue status {_QUEUE}"),
)


def main() -> int:
    """Run the demo. An error becomes one sentence and exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m hack.demo", description=__doc__)
    parser.add_argument("--image", default=DEFAULT_TAG, help="image of operator and worker (%(default)s)")
    parser.add_argument(
        "--documents", type=int, default=DOCUMENTS, help="number of documents to send (%(default)s)"
    )
    parser.add_argument(
        "--documents-from",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        default=list(documents.FOLDERS),
        help="folders with texts (default: this system's licences and package documentation)",
    )
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="write the run to a file, for the moving picture"
    )
    arguments = parser.parse_args()
    if arguments.documents < 2:
        parser.error("--documents: at least 2")
    # The demo reports connection errors itself, so it hides the log lines of the connections.
    for name in ("pika", "workqueue"):
        logging.getLogger(name).addHandler(logging.NullHandler())
    screen = Screen()
    try:
        _run(screen, arguments.image, arguments.documents, arguments.documents_from, arguments.record)
    except (DemoError, ClusterError) as error:
        screen.say(f"\n{error}", style="bold red")
        return 1
    except KeyboardInterrupt:
        screen.say("\nInterrupted. The same command starts the demo from the beginning.")
        return INTERRUPTED
    return 0


def _run(screen: Screen, image: str, most: int, folders: list[Path], record: Path | None) -> None:
    cluster = install.Cluster()
    with screen.step("Documents on this machine") as step:
        found = documents.find(most, folders)
        size = sum(len(document.body) for document in found) / 1e6
        names = " and ".join(map(str, folders))
        step.title = f"{len(found)} documents, {size:.1f} MB, from {names}"
    with screen.step(
        f"Namespaces {install.OPERATOR_NAMESPACE}, {install.NAMESPACE}, {install.RABBITMQ_NAMESPACE}"
    ):
        install.namespaces(cluster)
    with screen.step("RabbitMQ applied"):
        binding = install.rabbitmq(cluster)
    with screen.step(f"Operator installed with helm, image {image}"):
        install.operator(cluster, image)
    with screen.step("RabbitMQ is Ready"):
        install.wait_for_rabbitmq(cluster)
    with screen.step("WorkQueue wordcount applied and Ready: its queues exist"):
        spec = install.workqueue(cluster, image)
    kubectl = cluster.kubectl(install.RABBITMQ_NAMESPACE)
    with forwarded(kubectl, "service/rabbitmq", binding) as binding_here:
        run = scenario.Scenario(screen, cluster, spec, found)
        figures = run.run(binding_here)
    if record is not None:
        recording.write(record, recording.Recording(f"{len(found)} documents", run.recorder.samples))
    report(screen, figures, spec, len(found), _pause(spec))
    _hints(screen, cluster)


def _pause(spec: WorkQueueSpec) -> float:
    """Seconds that the handler pauses for each document."""
    assert spec.worker is not None
    return float(next(one["value"] for one in spec.worker.env if one["name"] == PAUSE_VARIABLE))


def _hints(screen: Screen, cluster: install.Cluster) -> None:
    is_own = checkout.choice() is not checkout.Choice.CURRENT
    screen.say("\nThe cluster keeps running. For kubectl and its plugin in this terminal:")
    screen.say(f"  {access(cluster, is_own=is_own)}", verbatim=True)
    screen.say("Three commands to try:")
    for what, command in HINTS:
        screen.say(f"  # {what}", style="dim")
        screen.say(f"  {command}", verbatim=True)
    if is_own:
        screen.say("`make cluster-down` deletes the cluster.")
    screen.say("docs/get-started.md goes on with a queue of your own.")


def access(cluster: install.Cluster, *, is_own: bool) -> str:
    """Return the command that makes kubectl and its plugin use the cluster."""
    here = [f"$PWD/{os.path.relpath(path)}" for path in (cluster.kubeconfig, cluster.programs, PROGRAMS)]
    return (
        f'export KUBECONFIG="{here[0]}" PATH="{here[1]}:{here[2]}:$PATH"'
        if is_own
        else f'export PATH="{here[2]}:$PATH"'
    )


if __name__ == "__main__":
    sys.exit(main())
