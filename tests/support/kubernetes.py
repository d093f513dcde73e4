"""kubectl for the tests, with the .cluster/kubeconfig of this checkout that `python -m hack.cluster up` writes.

Tests ask for a namespace of their own with `temporary_namespace` and wait with `eventually`, never with a sleep.
"""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal

from hack.cluster.checkout import folder
from hack.cluster.instance import Instance

CHECKOUT: Final = Path(__file__).parents[2]
FOLDER: Final = folder(Instance.from_environment().name)
KUBECONFIG: Final = FOLDER / "kubeconfig"
PROGRAMS: Final = FOLDER / "bin"
KUBECTL_SECONDS: Final = 240

PodSecurity = Literal["privileged", "baseline", "restricted"]


class KubectlError(Exception):
    """kubectl failed; the message is its output."""


def kubeconfig() -> Path:
    """The kubeconfig of the cluster under test.

    Raises:
        FileNotFoundError: no cluster was started from this checkout.
    """
    if not KUBECONFIG.exists():
        raise FileNotFoundError(f"{KUBECONFIG} is not there: run `python -m hack.cluster up` first.")
    return KUBECONFIG


def kubectl(*arguments: str, input: str | None = None) -> str:  # noqa: A002 (as subprocess calls it)
    """Run kubectl and return what it prints.

    Args:
        input: given to it on standard input, for `apply --filename=-`.

    Raises:
        KubectlError: it failed, or did not end within four minutes.
    """
    command = [str(PROGRAMS / "kubectl"), f"--kubeconfig={kubeconfig()}", *arguments]
    try:
        done = subprocess.run(
            command, input=input, capture_output=True, text=True, timeout=KUBECTL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise KubectlError(f"kubectl {' '.join(arguments)} did not end in {KUBECTL_SECONDS} s") from error
    if done.returncode != 0:
        raise KubectlError(f"kubectl {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def kubectl_json(*arguments: str) -> Any:
    """The parsed output of kubectl with `--output=json`."""
    return json.loads(kubectl(*arguments, "--output=json"))


def apply(*manifests: dict[str, Any], namespace: str | None = None) -> None:
    """Server-side apply of objects."""
    objects = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
    where = [f"--namespace={namespace}"] if namespace else []
    kubectl("apply", "--server-side", "--filename=-", *where, input=json.dumps(objects))


@contextmanager
def watching(*arguments: str, each: Callable[[str], None]) -> Iterator[None]:
    """Run `kubectl get --watch` while the context lasts, and call `each` with every line, in a thread."""
    command = [str(PROGRAMS / "kubectl"), f"--kubeconfig={kubeconfig()}", "get", "--watch", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def follow() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip():
                each(line)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)
        thread.join(10)
        if process.stdout is not None:
            process.stdout.close()


class PortForward:
    """A port of a pod or Deployment on loopback, by `kubectl port-forward`.

    Attributes:
        port: the one on loopback.

    Raises:
        AssertionError: kubectl did not say where it listens; the message has what it said.
    """

    def __init__(self, namespace: str, target: str, port: int) -> None:
        where = f"--kubeconfig={kubeconfig()}", f"--namespace={namespace}"
        self._process = subprocess.Popen(
            [str(PROGRAMS / "kubectl"), *where, "port-forward", "--address=127.0.0.1", target, f":{port}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = re.search(r":(\d+) ->", line)
        assert found, f"kubectl port-forward said {line!r}"
        self.port = int(found[1])
        # kubectl writes a line for each connection. It stops forwarding while nothing reads them.
        self._reader = threading.Thread(target=deque, args=(self._process.stdout, 0), daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        """Whether it still forwards."""
        return self._process.poll() is None

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(10)
        self._reader.join(10)
        if self._process.stdout is not None:
            self._process.stdout.close()


@contextmanager
def temporary_namespace(prefix: str = "test", *, pod_security: PodSecurity | None = None) -> Iterator[str]:
    """A namespace of its own for a test, deleted afterwards without waiting for it to be gone.

    Args:
        pod_security: the Pod Security standard that the API server enforces in it.
    """
    name = create_namespace(prefix, pod_security)
    try:
        yield name
    finally:
        delete_namespace(name)


def create_namespace(prefix: str, pod_security: PodSecurity | None = None) -> str:
    """Create a namespace of its own for a test, and return its name."""
    name = f"{prefix}-{secrets.token_hex(4)}"
    labels = {"pod-security.kubernetes.io/enforce": pod_security} if pod_security else {}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    kubectl("create", "--filename=-", input=json.dumps(namespace))
    return name


def delete_namespace(name: str) -> None:
    """Delete a namespace without waiting for it to be gone."""
    kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")
    release_workqueues(f"--namespace={name}")


def release_workqueues(where: str = "--all-namespaces") -> None:
    """Remove the finalizers of WorkQueues whose operator is gone or without rights."""
    with suppress(KubectlError):  # no definition, no WorkQueues; or one that went in this moment
        for found in kubectl_json("get", "workqueues.workqueue.dev", where)["items"]:
            metadata = found["metadata"]
            if metadata.get("finalizers"):
                kubectl(
                    *("patch", "workqueues.workqueue.dev", metadata["name"], "--type=merge"),
                    *(f"--namespace={metadata['namespace']}", '--patch={"metadata":{"finalizers":null}}'),
                )
