"""A Kubernetes control plane without nodes: etcd, the API server, and the controllers of Deployments.

It starts in a few seconds and holds thousands of objects. No pod is scheduled and no container starts;
tests/support/stubkubelet.py plays the kubelet. Run it inside `own_network`: its ports are fixed.
"""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, Final

from hack.cluster import pki, toolchain
from tests.support.ownnetwork import ADDRESS
from tests.support.wait import eventually
from workqueue_kubectl.dependent import end

Object = dict[str, Any]

PORT: Final = 6443
HOST: Final = f"{ADDRESS}:{PORT}"
START_SECONDS: Final = 90.0
STOP_SECONDS: Final = 10.0
REQUEST_SECONDS: Final = 60.0
PUT_OFF_SECONDS: Final = 0.5

ADMIN: Final = "admin"
OPERATOR: Final = "operator"
"""The user of the operator: all rights, but no exemption from the API server's flow control."""

JSON: Final = "application/json"
MERGE_PATCH: Final = "application/merge-patch+json"
APPLY: Final = "application/apply-patch+yaml"

ENDS_WITH_US: Final = ("setpriv", "--pdeathsig", "KILL")
"""Before a command: it ends when the thread that started it ends, however that happens."""

_GROUPS: Final = {ADMIN: "system:masters", OPERATOR: "operators"}
_CONTROLLERS: Final = (
    "deployment-controller",
    "replicaset-controller",
    "resourcequota-controller",
    "garbage-collector-controller",
)

_FAST_CONTROLLERS: Final = (
    "--kube-api-qps=2000",
    "--kube-api-burst=4000",
    "--concurrent-deployment-syncs=20",
    "--concurrent-replicaset-syncs=20",
)


class ApiError(Exception):
    """The API server refused a request.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Api:
    """A client of the API server, with one connection for each thread.

    Args:
        folder: the control plane's folder, with its certificate authority and the tokens.
    """

    def __init__(self, folder: Path, user: str = ADMIN) -> None:
        self._context = ssl.create_default_context(cafile=str(folder / "pki/ca.crt"))
        self._token = (folder / f"{user}.token").read_text()
        self._local = threading.local()
        self._open: list[HTTPSConnection] = []

    def close(self) -> None:
        """Close all connections."""
        for connection in self._open:
            connection.close()

    def connect(self, timeout: float = REQUEST_SECONDS) -> HTTPSConnection:
        """Return a new connection."""
        return HTTPSConnection(HOST, timeout=timeout, context=self._context)

    def headers(self, content_type: str = JSON) -> dict[str, str]:
        """Return the headers of a request."""
        return {"Authorization": f"Bearer {self._token}", "Content-Type": content_type}

    def call(self, method: str, path: str, body: Any = None, content_type: str = JSON) -> Object:
        """Send one request and return the answer. The server may put it off for some time, with 429.

        Raises:
            ApiError: the server refused it.
        """
        deadline = time.monotonic() + REQUEST_SECONDS
        while True:
            status, text = self._exchange(method, path, body, content_type)
            if status != HTTPStatus.TOO_MANY_REQUESTS or time.monotonic() > deadline:
                break
            time.sleep(PUT_OFF_SECONDS)
        if status >= HTTPStatus.BAD_REQUEST:
            raise ApiError(status, f"{method} {path}: {status} {text[:500]!r}")
        answer: Object = json.loads(text)
        return answer

    def text(self, path: str) -> str:
        """GET something that is not JSON."""
        return self._exchange("GET", path, None, JSON)[1].decode()

    def apply(self, path: str, body: Object) -> Object:
        """Server-side apply of one object."""
        return self.call("PATCH", f"{path}?fieldManager=test&force=true", body, APPLY)

    def merge(self, path: str, body: Object) -> Object:
        """PATCH with a JSON Merge Patch."""
        return self.call("PATCH", path, body, MERGE_PATCH)

    def _exchange(self, method: str, path: str, body: Any, content_type: str) -> tuple[int, bytes]:
        reused = hasattr(self._local, "connection")
        if not reused:
            self._local.connection = self.connect()
            self._open.append(self._local.connection)
        connection: HTTPConnection = self._local.connection
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, self.headers(content_type))
            response = connection.getresponse()
            return response.status, response.read()
        except (HTTPException, OSError):
            connection.close()
            del self._local.connection
            if not reused:
                raise
        # The server closes idle connections.
        return self._exchange(method, path, body, content_type)


class ControlPlane:
    """The running programs.

    Args:
        folder: receives the data, the certificates and the logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._etcd = toolchain.binaries() / "etcd"
        self._kubernetes = toolchain.control_plane()
        folder.mkdir(parents=True, exist_ok=True)
        pki.make(folder / "pki", node="node0", address=ADDRESS, service_address="10.96.0.1")
        tokens = {user: f"token-of-{user}" for user in _GROUPS}
        lines = [f'{token},{user},{user},"{_GROUPS[user]}"' for user, token in tokens.items()]
        (folder / "tokens.csv").write_text("\n".join(lines) + "\n")
        for user, token in tokens.items():
            (folder / f"{user}.token").write_text(token)
            self.kubeconfig(user).write_text(json.dumps(_kubeconfig(folder, token)))
        (folder / "audit.json").write_text(json.dumps(_audit_policy()))
        self.audit_log = folder / "audit.log"
        self.api = Api(folder)
        self._controllers = ExitStack()

    def kubeconfig(self, user: str = ADMIN) -> Path:
        """Return the kubeconfig of a user."""
        return self.folder / f"{user}.kubeconfig"

    @contextmanager
    def running(self) -> Iterator[ControlPlane]:
        """Run all programs while the context lasts."""
        with ExitStack() as stack:
            stack.enter_context(self._program(self._etcd, *_etcd(self.folder)))
            stack.enter_context(self._program(self._kubernetes / "kube-apiserver", *self._api_server()))
            eventually(self._answers, START_SECONDS, f"the API server is ready; see {self.folder}")
            self.api.apply(*_rights())
            stack.enter_context(self._controllers)
            self._start_controllers(*_FAST_CONTROLLERS)
            stack.callback(self.api.close)
            yield self

    @contextmanager
    def default_controllers(self) -> Iterator[None]:
        """Run the controllers with their default limit while the context lasts: 20 requests a second for each."""
        self._start_controllers()
        try:
            yield
        finally:
            self._start_controllers(*_FAST_CONTROLLERS)

    def _start_controllers(self, *flags: str) -> None:
        self._controllers.close()
        arguments = (
            f"--kubeconfig={self.kubeconfig()}",
            "--leader-elect=false",
            f"--controllers={','.join(_CONTROLLERS)}",
            "--secure-port=0",
            *flags,
        )
        program = self._program(self._kubernetes / "kube-controller-manager", *arguments)
        self._controllers.enter_context(program)

    def _api_server(self) -> list[str]:
        keys = self.folder / "pki"
        return [
            "--etcd-servers=http://127.0.0.1:2379",
            f"--advertise-address={ADDRESS}",
            f"--bind-address={ADDRESS}",
            f"--secure-port={PORT}",
            "--service-cluster-ip-range=10.96.0.0/16",
            f"--tls-cert-file={keys}/apiserver.crt",
            f"--tls-private-key-file={keys}/apiserver.key",
            f"--client-ca-file={keys}/ca.crt",
            f"--service-account-key-file={keys}/service-accounts.pub",
            f"--service-account-signing-key-file={keys}/service-accounts.key",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=RBAC",
            f"--token-auth-file={self.folder}/tokens.csv",
            # No controller makes the accounts that pods would need.
            "--disable-admission-plugins=ServiceAccount",
            f"--audit-policy-file={self.folder}/audit.json",
            f"--audit-log-path={self.audit_log}",
            "--audit-log-mode=batch",
            "--audit-log-batch-max-wait=1s",
            "--endpoint-reconciler-type=none",
            "--profiling=false",
        ]

    def _answers(self) -> bool:
        with suppress(OSError, HTTPException):
            return self.api.text("/readyz") == "ok"
        return False

    @contextmanager
    def _program(self, program: Path, *arguments: str) -> Iterator[None]:
        with (self.folder / f"{program.name}.log").open("ab") as log:
            command = [*ENDS_WITH_US, str(program), *arguments]
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield
        finally:
            end(process, STOP_SECONDS)


def metrics_of(url: str, seconds: float = 5.0) -> dict[str, float]:
    """Return the metrics that an endpoint shows, by name with labels."""
    with urllib.request.urlopen(url, timeout=seconds) as response:
        lines = response.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def answers(url: str, seconds: float) -> bool:
    """Return whether an endpoint answers with success, as a probe of the kubelet asks it."""
    try:
        with urllib.request.urlopen(url, timeout=seconds) as response:
            return bool(response.status < HTTPStatus.BAD_REQUEST)
    except (OSError, HTTPException):
        return False


def _etcd(folder: Path) -> list[str]:
    return [
        f"--data-dir={folder}/etcd",
        "--unsafe-no-fsync",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--quota-backend-bytes=4294967296",
        "--log-level=warn",
    ]


def _kubeconfig(folder: Path, token: str) -> Object:
    cluster = {"server": f"https://{HOST}", "certificate-authority": str(folder / "pki/ca.crt")}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }


def _audit_policy() -> Object:
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived", "ResponseStarted"],
        "rules": [{"level": "Metadata", "users": [OPERATOR]}, {"level": "None"}],
    }


def _rights() -> tuple[str, Object]:
    name = "operators"
    return f"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/{name}", {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "Group", "name": _GROUPS[OPERATOR], "apiGroup": "rbac.authorization.k8s.io"}],
    }
