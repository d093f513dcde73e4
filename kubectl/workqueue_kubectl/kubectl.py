"""kubectl as the way to the cluster: the only module that runs it.

Place in the flow: below every command. kubectl knows every kind of login, proxy and kubeconfig, and whoever
calls a plugin has it; so nothing of that is done a second time here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any, Final
from urllib.parse import urlencode

from workqueue_kubectl.errors import KubectlFailed, NotFound, PluginError

Object = dict[str, Any]

STOP_SECONDS: Final = 5.0

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
"""Runs in a pod: standard input and output are one end of a connection, the peer is the other."""


class Kubectl:
    """Runs kubectl.

    Args:
        flags: what chooses cluster and person, such as `--context=staging`; given to every call.

    Raises:
        PluginError: there is no kubectl.
    """

    def __init__(self, flags: Sequence[str] = ()) -> None:
        program = shutil.which("kubectl")
        if program is None:
            raise PluginError("kubectl is not in the PATH: install it, or add its folder to PATH.")
        self._command = (program, *flags)

    def get(self, path: str, **query: str) -> Object:
        """GET of a path of the API server.

        Raises:
            NotFound: it has nothing there.
            KubectlFailed: it refused, or kubectl cannot reach it.
        """
        question = f"?{urlencode(query)}" if query else ""
        answer: Object = json.loads(self._run("get", f"--raw={path}{question}"))
        return answer

    def merge(self, namespace: str, resource: str, name: str, patch: Object) -> None:
        """A merge patch.

        Raises:
            NotFound, KubectlFailed: as `get`.
        """
        self._run(
            "patch", resource, name, f"--namespace={namespace}", "--type=merge", "-p", json.dumps(patch)
        )

    def namespace(self) -> str:
        """The namespace of the current context; `default` where there is none, as for kubectl."""
        try:
            return (
                self._run("config", "view", "--minify", "--output=jsonpath={..namespace}").strip()
                or "default"
            )
        except KubectlFailed:
            return "default"

    @contextmanager
    def forwarded(self, namespace: str, target: str, port: int) -> Iterator[int]:
        """A local port that leads to a port of `target` (pod/NAME or service/NAME) while the context lasts.

        Raises:
            KubectlFailed: there is no running pod behind it, or it is not allowed.
        """
        command = ["port-forward", f"--namespace={namespace}", "--address=127.0.0.1", target, f":{port}"]
        with subprocess.Popen(  # noqa: S603 - kubectl, without a shell
            [*self._command, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C is for us: what is under way still needs the connection
        ) as process:
            assert process.stdout is not None  # noqa: S101 - a pipe
            # Whatever else it says must not fill the pipe.
            draining = threading.Thread(target=process.stdout.read, name="port-forward", daemon=True)
            try:
                found = re.search(r":(\d+) ->", said := process.stdout.readline())
                if found is None:
                    raise _failure(said + process.stdout.read())
                draining.start()
                yield int(found[1])
            finally:
                _end(process)
                if draining.ident is not None:
                    draining.join()

    @contextmanager
    def relayed(self, namespace: str, pod: str, host: str, port: int) -> Iterator[int]:
        """A local port that leads to `host`:`port` as seen from a pod that has Python, while the context lasts."""
        listening = socket.create_server(("127.0.0.1", 0))
        processes: list[subprocess.Popen[bytes]] = []

        def serve() -> None:
            # Closing the listening socket ends this loop.
            with suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with closing(connection):
                        processes.append(
                            subprocess.Popen(  # noqa: S603 - as above
                                [
                                    *(
                                        *self._command,
                                        "exec",
                                        "--stdin",
                                        "--quiet",
                                        f"--namespace={namespace}",
                                    ),
                                    *(pod, "--", "python3", "-c", _RELAY, host, str(port)),
                                ],
                                stdin=connection.fileno(),
                                stdout=connection.fileno(),
                                start_new_session=True,
                            )
                        )

        threading.Thread(target=serve, name="relay", daemon=True).start()
        try:
            yield listening.getsockname()[1]
        finally:
            with suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            listening.close()
            for process in processes:
                _end(process)

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(  # noqa: S603 - as above
            [*self._command, *arguments],
            stdin=None if os.isatty(0) else subprocess.DEVNULL,  # a login plug-in may ask
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise _failure(done.stderr)
        return done.stdout


def _failure(said: str) -> KubectlFailed:
    lines = [line for line in said.strip().splitlines() if line.strip()]
    sentence = lines[-1] if lines else "kubectl failed and did not say why."
    kind: Callable[[str], KubectlFailed] = NotFound if "(NotFound)" in sentence else KubectlFailed
    return kind(sentence)


def _end(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
