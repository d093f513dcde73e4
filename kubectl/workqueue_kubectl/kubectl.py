"""Runs kubectl, which handles login, proxies and kubeconfig for the plugin."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from workqueue_kubectl.dependent import dependent, end
from workqueue_kubectl.errors import KubectlError, NotFoundError, PluginError

Object = dict[str, Any]

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")

_RELAY: Final = """
import os, socket, sys, threading
peer = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def upward():
    while data := os.read(0, 65536):
        peer.sendall(data)
    peer.shutdown(socket.SHUT_WR)
threading.Thread(target=upward, daemon=True).start()
while data := peer.recv(65536):
    while data:
        data = data[os.write(1, data):]
"""
"""Runs in a pod: connects stdin and stdout to the address in its arguments."""


class Kubectl:
    """Runs kubectl.

    Args:
        flags: flags for every call, such as `--context=staging`.

    Attributes:
        patience: how many seconds a call may take; None for any time, such as for a login.

    Raises:
        PluginError: kubectl is not installed.
    """

    def __init__(self, flags: Sequence[str] = ()) -> None:
        program = shutil.which("kubectl")
        if program is None:
            raise PluginError("kubectl is not in the PATH. Install it, or add its folder to PATH.")
        self._command = (program, *flags)
        self.patience: float | None = None

    def get(self, path: str, **query: str) -> Object:
        """GET a path of the API server.

        Raises:
            NotFoundError: the object does not exist.
            KubectlError: the API server refused, or is unreachable.
        """
        question = f"?{urlencode(query)}" if query else ""
        text = self._run("get", f"--raw={path}{question}")
        try:
            answer: Object = json.loads(text)
        except ValueError as error:
            raise KubectlError(
                f"The API server, or a proxy before it, has answered {path} with something else than JSON."
            ) from error
        return answer

    def merge(self, namespace: str, resource: str, name: str, patch: Object) -> None:
        """PATCH an object with a JSON Merge Patch.

        Raises:
            NotFoundError, KubectlError: as `get`.
        """
        self._run(
            "patch", resource, name, f"--namespace={namespace}", "--type=merge", "-p", json.dumps(patch)
        )

    def namespace(self) -> str:
        """Return the namespace of the current context, or that of this pod, or `default`, as in kubectl."""
        try:
            found = self._run("config", "view", "--minify", "--output=jsonpath={..namespace}").strip()
        except KubectlError:  # such as without a kubeconfig
            found = ""
        return found or _namespace_of_this_pod() or "default"

    @contextmanager
    def forwarded(self, namespace: str, target: str, port: int) -> Iterator[int]:
        """Yield a local port that forwards to a port of `target` (pod/NAME or service/NAME).

        Raises:
            KubectlError: the target has no running pod, or forwarding is forbidden.
        """
        command = ["port-forward", f"--namespace={namespace}", "--address=127.0.0.1", target, f":{port}"]
        # Ctrl-C must not reach kubectl: messages in flight need the connection.
        with dependent(
            [*self._command, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as process:
            assert process.stdout is not None  # noqa: S101 - a pipe
            # Read all further output, so that the pipe never fills.
            draining = threading.Thread(target=process.stdout.read, name="port-forward", daemon=True)
            try:
                local = _local_port(process.stdout)
                draining.start()
                yield local
            finally:
                end(process)
                if draining.ident is not None:
                    draining.join()

    @contextmanager
    def relayed(self, namespace: str, pod: str, host: str, port: int) -> Iterator[int]:
        """Yield a local port that forwards to `host`:`port` through a pod that has Python."""
        listening = socket.create_server(("127.0.0.1", 0))
        relays = ExitStack()

        def serve() -> None:
            # Closing the listening socket ends this loop.
            with suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with closing(connection):
                        command = ["exec", "--stdin", "--quiet", f"--namespace={namespace}", pod, "--"]
                        relay = dependent(
                            [*self._command, *command, "python3", "-c", _RELAY, host, str(port)],
                            stdin=connection.fileno(),
                            stdout=connection.fileno(),
                        )
                        relays.enter_context(relay)

        threading.Thread(target=serve, name="relay", daemon=True).start()
        with relays:
            try:
                yield listening.getsockname()[1]
            finally:
                with suppress(OSError):
                    listening.shutdown(socket.SHUT_RDWR)
                listening.close()

    def _run(self, *arguments: str) -> str:
        try:
            done = subprocess.run(  # noqa: S603 - as above
                [*self._command, *arguments],
                stdin=None if os.isatty(0) else subprocess.DEVNULL,  # a login plug-in may prompt
                capture_output=True,
                encoding="utf-8",  # also where the locale has another encoding
                errors="replace",
                timeout=self.patience,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise KubectlError(f"kubectl has not answered for {error.timeout:g} s.") from error
        if done.returncode != 0:
            raise _failure(done.stderr)
        return done.stdout


def _local_port(output: Iterable[str]) -> int:
    """Return the port at which kubectl port-forward listens. Warnings come before, such as of a login plug-in.

    Raises:
        KubectlError: kubectl ended.
    """
    lines = []
    for line in output:
        if found := re.match(r"Forwarding from .*:(\d+) ->", line):
            return int(found[1])
        lines.append(line)
    raise _failure("".join(lines))


def _namespace_of_this_pod() -> str:
    """Return what kubectl uses in a pod where no context names a namespace; empty elsewhere."""
    if not os.environ.get("KUBERNETES_SERVICE_HOST") or not (ACCOUNT / "token").exists():
        return ""
    try:
        return os.environ.get("POD_NAMESPACE") or (ACCOUNT / "namespace").read_text().strip()
    except OSError:
        return ""


def _failure(output: str) -> KubectlError:
    lines = [line for line in output.strip().splitlines() if line.strip()]
    sentence = lines[-1] if lines else "kubectl failed without a message."
    kind: Callable[[str], KubectlError] = NotFoundError if "(NotFound)" in sentence else KubectlError
    return kind(sentence)
