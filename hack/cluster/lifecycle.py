"""Start, stop and inspect a cluster. Only this module knows the order of the steps."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Final

from hack.cluster import checkout, daemons, images, namespaces, packages, pki, plan, processes, toolchain
from hack.cluster.commands import run
from hack.cluster.console import say, step
from hack.cluster.errors import ClusterError
from hack.cluster.images import Archive
from hack.cluster.instance import Instance, Record
from hack.cluster.locks import locked
from hack.cluster.plan import Part

READY_SECONDS: Final = 120.0
ANSWER_SECONDS: Final = 15.0
DISK_NEEDED: Final = 2 * 2**30
POLL_SECONDS: Final = 0.2


def up(instance: Instance, more: Sequence[Part] = ()) -> None:
    """Start the cluster unless it runs, and write this checkout's .cluster.

    Args:
        more: parts to make at the same time.

    Raises:
        ClusterError: the cluster cannot start.
    """
    with _exclusive(instance):
        before = instance.record()
        is_up = before is not None and _answers(instance, ANSWER_SECONDS)
        if before and is_up:
            say(f"The cluster {instance.name} is already up.")
            if before.build != toolchain.build():
                say(f"Another version of this tool made it ({before.build}). Run down, then up, to renew it.")
        plan.run([*parts(), *([] if is_up else _start_parts(instance)), *more])
        if is_up:
            # An interrupted `up` may have skipped these steps.
            _wait_for_node(instance)
            _load_images(instance)
        folder = checkout.write(instance.name, instance.kubeconfig.read_text())
    say(f"Ready: export KUBECONFIG={folder / 'kubeconfig'} PATH={folder / 'bin'}:$PATH")


def parts() -> list[Part]:
    """Return what is missing on this machine for any cluster."""
    return [*packages.parts(), *toolchain.parts(), *images.parts()]


def down(instance: Instance) -> None:
    """Delete the cluster and this checkout's .cluster.

    Raises:
        ClusterError: a part of the cluster could not be removed.
    """
    with _exclusive(instance):
        existed = namespaces.end(instance)
        checkout.remove(instance.name)
    say(f"The cluster {instance.name} is gone." if existed else f"There is no cluster {instance.name}.")


def require_linux_root() -> None:
    """Check that this is Linux and that the user is root.

    Raises:
        ClusterError: one of them is not true.
    """
    if platform.system() != "Linux":
        raise ClusterError(
            f"A local cluster needs Linux, and this is {platform.system()}. Set CLUSTER=current to use the "
            "cluster of your current kubectl context."
        )
    if os.geteuid() != 0:
        raise ClusterError("A local cluster needs root: run this with sudo, or as root.")


def status(instance: Instance) -> bool:
    """Print the state of the cluster and return whether it is up and answers."""
    record = instance.record()
    if record is None:
        died = "died, or an `up` is starting it"
        print(f"{instance.name}: {died if instance.state.exists() else 'down'}")
        return False
    answers = _answers(instance, 0.0)
    print(f"{instance.name}: {'up' if answers else 'not ready'}, {record.build}")
    print(f"API server: https://127.0.0.1:{record.port}, process 1: {record.node.pid}, logs: {instance.logs}")
    running = {processes.program(pid) for pid in processes.children(record.node.pid)}
    for name in daemons.NAMES:
        print(f"  {name:24} {'running' if name in running else 'not running'}")
    if answers:
        print(_output(_kubectl(instance, "get", "nodes", "--output=wide")) or "", end="")
    return answers


def load(instance: Instance, archive: Path) -> str:
    """Load the images of a `docker save` or OCI archive into the cluster. Return the output of the import.

    Raises:
        ClusterError: there is no cluster, or the archive cannot be read.
    """
    record = _running(instance)
    with _opened(archive) as file:
        return run(_ctr(record, "images", "import", "-"), doing=f"Loading {archive}", stdin=file)


def load_once(instance: Instance, archive: Archive) -> None:
    """Load an image into the cluster, unless the cluster has the same image under the same name.

    Raises:
        ClusterError: there is no cluster, or the archive cannot be read.
    """
    record = _running(instance)
    # The kubelet knows an image by the second name, the digest of its configuration.
    digests = {line.split()[0]: line.split()[2] for line in _images(record)}
    loaded, wanted = (digests.get(name) for name in (archive.name, f"sha256:{archive.image_id()}"))
    if loaded is not None and loaded == wanted:
        return
    with step(f"loading the image {archive.name}", "a few seconds"), _opened(archive.file) as file:
        run(_ctr(record, "images", "import", "-"), doing=f"Loading {archive.file}", stdin=file)


def inside(instance: Instance, command: Sequence[str]) -> list[str]:
    """Return a command that runs `command` in the cluster's network, which reaches pods and services.

    Raises:
        ClusterError: there is no cluster.
    """
    return [*namespaces.enter(_running(instance).node, "net"), *command]


def _start_parts(instance: Instance) -> list[Part]:
    def start() -> None:
        _start(instance)
        _wait_for_node(instance)

    return [
        Part(plan.CLUSTER, 10.0, start, needs=(packages.PART, toolchain.PROGRAMS_PART)),
        Part(
            "the cluster's images",
            15.0,
            partial(_load_images, instance),
            needs=(plan.CLUSTER, images.RABBITMQ_PART),
        ),
    ]


def _load_images(instance: Instance) -> None:
    for archive in (images.pause(toolchain.binaries()), images.rabbitmq()):
        load_once(instance, archive)


def _start(instance: Instance) -> None:
    if namespaces.end(instance):
        say("Removed the files of a cluster that had died. The new cluster starts empty.")
    binaries = toolchain.binaries()
    instance.state.mkdir(parents=True, mode=0o700)
    if shutil.disk_usage(instance.state).free < DISK_NEEDED:
        raise ClusterError(f"The disk of {instance.state} is full. A cluster needs 2 GiB: free some space.")
    with namespaces.listen() as listener:
        daemons.configure(instance)
        port = listener.getsockname()[1]
        server = f"https://127.0.0.1:{port}"
        access = pki.kubeconfig(instance.configuration / "pki", "admin", server, instance.name)
        instance.kubeconfig.write_text(access)
        record = Record(namespaces.start(instance, binaries, listener), port, toolchain.build())
        instance.remember(record)


def _wait_for_node(instance: Instance) -> None:
    record = _running(instance)
    if _node_is_ready(instance):
        return
    with step("starting Kubernetes", "about 10 s"):
        _await(lambda: _succeeds(_ctr(record, "version")), "containerd", instance)
        _await(lambda: _node_is_ready(instance), "the node", instance)


def _images(record: Record) -> list[str]:
    """Return a line for each image: name, type, digest, ..."""
    return run(_ctr(record, "images", "list"), doing="Listing images").splitlines()[1:]


def _ctr(record: Record, *arguments: str) -> list[str]:
    return [*namespaces.enter(record.node, "mount"), "ctr", "--namespace", "k8s.io", *arguments]


def _answers(instance: Instance, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not _succeeds(_kubectl(instance, "get", "--raw", "/readyz", "--request-timeout=5s")):
        if time.monotonic() >= deadline or instance.record() is None:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _node_is_ready(instance: Instance) -> bool:
    """Return whether the node is Ready and the default namespace has the service account that pods need."""
    ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
    return _output(
        _kubectl(instance, "get", "node", daemons.NODE, "--output", ready)
    ) == "True" and _succeeds(_kubectl(instance, "get", "serviceaccount", "default"))


def _kubectl(instance: Instance, *arguments: str) -> list[str]:
    cache = instance.state / "kubectl"
    kubectl = toolchain.kubectl()
    return [str(kubectl), f"--kubeconfig={instance.kubeconfig}", f"--cache-dir={cache}", *arguments]


def _output(command: Sequence[str]) -> str | None:
    """Return the output of a command, or None if it fails."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
    )
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def _succeeds(command: Sequence[str]) -> bool:
    return _output(command) is not None


def _await(condition: Callable[[], bool], what: str, instance: Instance) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not condition():
        if instance.record() is None:
            raise ClusterError(
                f"The cluster died while it started. Look for the reason in {instance.logs}, then run this again."
            )
        if time.monotonic() > deadline:
            raise ClusterError(
                f"After {READY_SECONDS:.0f} s {what} is not ready. Look for the reason in {instance.logs}. "
                "Running this again starts a new cluster."
            )
        time.sleep(POLL_SECONDS)


def _running(instance: Instance) -> Record:
    record = instance.record()
    if record is None:
        raise ClusterError(f"There is no cluster {instance.name}: start it with `python -m hack.cluster up`.")
    return record


@contextmanager
def _opened(archive: Path) -> Iterator[IO[bytes]]:
    try:
        with archive.open("rb") as file:
            yield file
    except OSError as error:
        raise ClusterError(f"The image archive {archive} cannot be read: {error.strerror}.") from error


def _exclusive(instance: Instance) -> AbstractContextManager[None]:
    return locked(instance.lock, f"Another up or down of {instance.name} is running; waiting for it.")
