"""A real API server with a real RabbitMQ and the operator, for WorkQueues that are compared with each other.

The kubelet is a stub. Everything ends with the context.
"""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import yaml

from tests.generated.changes import CRD
from tests.support import operatorprocess, stubkubelet
from tests.support.controlplane import ENDS_WITH_US, OPERATOR, Api, ApiError, ControlPlane, answers
from tests.support.objects import Object
from tests.support.ownnetwork import own_network
from tests.support.rabbitmq import DEFAULT, Broker, installed, running
from tests.support.wait import eventually
from workqueue_operator.names import API_VERSION, KIND

NAME: Final = "jobs"
"""Of each WorkQueue."""

OTHERS: Final = "mine"
"""The user's Deployment."""

BASE: Final[Object] = {
    "connectionSecretRef": {"name": "rabbitmq"},
    "worker": {"image": "jobs:1", "handler": {"python": "jobs:handle"}},
}
"""The spec before the first change."""

NO_DELAY: Final[Object] = {"scaleInDelaySeconds": 0}
"""For `scaling`: a delay would only make the comparison wait."""

PORT: Final = 8080
START_SECONDS: Final = 180.0
SETTLES_SECONDS: Final = 120.0
GONE_SECONDS: Final = 180.0
"""Without its Secret, a WorkQueue that deletes its queue waits for a minute."""

MEMORY: Final = Path("/dev/shm")

_COLLECTIONS: Final = (
    "apis/apps/v1/namespaces/{}/deployments",
    "apis/policy/v1/namespaces/{}/poddisruptionbudgets",
    "apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "api/v1/namespaces/{}/secrets",
)


class RefusedError(Exception):
    """The API server refused a WorkQueue."""


class Management:
    """RabbitMQ's management API."""

    def __init__(self, broker: Broker) -> None:
        self._connection = HTTPConnection("127.0.0.1", broker.management_port, timeout=120)
        self._headers = {
            "Authorization": f"Basic {base64.b64encode(b'guest:guest').decode()}",
            "Content-Type": "application/json",
        }

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Send one request and return the answer."""
        text = None if body is None else json.dumps(body)
        # The server closes idle connections.
        self._connection.close()
        self._connection.request(method, f"/api/{path}", text, self._headers)
        response = self._connection.getresponse()
        answer = response.read()
        assert response.status < HTTPStatus.BAD_REQUEST, f"{method} {path}: {response.status} {answer!r}"
        return json.loads(answer) if answer else None

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class Place:
    """A namespace with a user's Deployment, and two virtual hosts with what the user has declared there.

    Attributes:
        name: of the namespace and of the first virtual host.
    """

    def __init__(self, api: Api, management: Management, broker: Broker, name: str) -> None:
        self.name = name
        self._api = api
        self._management = management
        self._hosts = {"rabbitmq": name, "other": f"{name}-other"}
        self._path = f"/apis/{API_VERSION}/namespaces/{name}/workqueues"
        uri = broker.management_url.replace("://", "://guest:guest@")
        api.apply(f"/api/v1/namespaces/{name}", _object("v1", "Namespace", name))
        for secret, host in self._hosts.items():
            management.call("PUT", f"vhosts/{host}")
            management.call(
                "PUT", f"permissions/{host}/guest", dict.fromkeys(("configure", "write", "read"), ".*")
            )
            management.call("PUT", f"queues/{host}/failed", {"durable": True})
            management.call("PUT", f"exchanges/{host}/events", {"type": "direct", "durable": True})
            body = _object(
                "v1", "Secret", secret, stringData={"uri": broker.url_of(host), "management-uri": uri}
            )
            api.apply(f"/api/v1/namespaces/{name}/secrets/{secret}", body)
        api.apply(f"/apis/apps/v1/namespaces/{name}/deployments/{OTHERS}", _users_deployment())

    def create(self, spec: Object) -> None:
        """Create the WorkQueue.

        Raises:
            RefusedError: the API server refused it.
        """
        self._write("POST", self._path, _object(API_VERSION, KIND, NAME, spec=spec))

    def change(self, change: Object) -> None:
        """Change its spec with a merge patch.

        Raises:
            RefusedError: the API server refused it.
        """
        try:
            self._api.merge(f"{self._path}/{NAME}", {"spec": change})
        except ApiError as error:
            raise _refused(error) from error

    def delete(self) -> None:
        """Delete it, and wait until it is gone with all it owns."""
        self._api.call("DELETE", f"{self._path}/{NAME}")
        eventually(lambda: self.workqueue() is None, GONE_SECONDS, f"{self.name}/{NAME} is gone")
        eventually(lambda: not self._owned(), GONE_SECONDS, f"what {self.name}/{NAME} owns is gone")

    def workqueue(self) -> Object | None:
        """Return the WorkQueue, or None."""
        with suppress(ApiError):
            return self._api.call("GET", f"{self._path}/{NAME}")
        return None

    def spec(self) -> Object:
        """Return the stored spec, with its defaults."""
        stored: Object = self._api.call("GET", f"{self._path}/{NAME}")["spec"]
        return stored

    def settled(self) -> Object:
        """Wait until the operator has reported about the last change; return the WorkQueue."""
        last: Object = {}

        def reported() -> bool:
            nonlocal last
            last = self.workqueue() or {}
            return is_reported(last)

        try:
            eventually(reported, SETTLES_SECONDS)
        except TimeoutError:
            raise AssertionError(f"the operator has not reported: {json.dumps(last.get('status'))}") from None
        return last

    def state(self) -> Object:
        """Return what exists, without what differs between any two WorkQueues."""
        workqueue = self.workqueue() or {}
        host = self._hosts.get(workqueue.get("spec", {}).get("connectionSecretRef", {}).get("name", ""))
        found = {
            "workqueue": _visible(workqueue),
            "objects": {_title(one): {**_visible(one), "status": None} for one in self._owned()},
            "replicas": self._replicas_of_others(),
            "broker": self._declared(host) if host else {},
            "consumers": {secret: self._consumers(host) for secret, host in self._hosts.items()},
        }
        text = json.dumps(found, sort_keys=True)
        state: Object = json.loads(text.replace(self.name, "PLACE"))
        return state

    def adopt(self, other: Place) -> None:
        """Declare what another place has in RabbitMQ, as the user who declares the queues would."""
        for host, theirs in zip(self._hosts.values(), other._hosts.values(), strict=True):
            self._management.call(
                "POST", f"definitions/{host}", self._management.call("GET", f"definitions/{theirs}")
            )

    def close(self) -> None:
        """Delete everything."""
        with suppress(ApiError):
            abandoned = {"annotations": {"workqueue.dev/abandon-queue": "true"}}
            self._api.merge(f"{self._path}/{NAME}", {"metadata": abandoned})
            self._api.call("DELETE", f"{self._path}/{NAME}")
        self._api.call(
            "DELETE", f"/apis/apps/v1/namespaces/{self.name}/deployments?propagationPolicy=Background"
        )
        for host in self._hosts.values():
            self._management.call("DELETE", f"vhosts/{host}")

    def _write(self, method: str, path: str, body: Object) -> None:
        try:
            self._api.call(method, path, body)
        except ApiError as error:
            raise _refused(error) from error

    def _owned(self) -> list[Object]:
        kinds = (self._api.call("GET", f"/{path.format(self.name)}") for path in _COLLECTIONS)
        return [
            {"kind": found["kind"].removesuffix("List"), **one}
            for found in kinds
            for one in found["items"]
            if any(owner["kind"] == KIND for owner in one["metadata"].get("ownerReferences", ()))
        ]

    def _replicas_of_others(self) -> int:
        path = f"/apis/apps/v1/namespaces/{self.name}/deployments/{OTHERS}"
        return int(self._api.call("GET", path)["spec"]["replicas"])

    def _consumers(self, host: str) -> list[str]:
        return sorted(one["queue"]["name"] for one in self._management.call("GET", f"consumers/{host}"))

    def _declared(self, host: str) -> Object:
        found = self._management.call("GET", f"definitions/{quote(host)}")
        bindings = (
            f"{one['source']} to {one['destination']} by {one['routing_key']!r} {one['arguments']}"
            for one in found["bindings"]
        )
        return {
            "queues": {one.pop("name"): one for one in found["queues"]},
            "exchanges": {one.pop("name"): one for one in found["exchanges"]},
            "bindings": sorted(bindings),
        }


class Stage:
    """The parts, while they run."""

    _numbers = itertools.count(1)

    def __init__(self, plane: ControlPlane, broker: Broker, management: Management) -> None:
        self.api = plane.api
        self.broker = broker
        self._management = management
        self._log = plane.folder / "operator.log"
        self._kubeconfig = plane.kubeconfig(OPERATOR)
        self._operator: subprocess.Popen[bytes] | None = None
        self._read = 0

    def start_operator(self) -> None:
        """Start the operator and wait until it is Ready."""
        self._operator = operatorprocess.start(
            self._log,
            self._kubeconfig,
            (*ENDS_WITH_US, *operatorprocess.COMMAND),
            leader_election=False,
            port=PORT,
            log_format="text",
            worker_network_policy=True,
            worker_image="workqueue-operator:dev",
        )
        eventually(
            lambda: answers(f"http://127.0.0.1:{PORT}/readyz", 5), START_SECONDS, "the operator is Ready"
        )

    def stop_operator(self) -> None:
        """Kill the operator."""
        if self._operator is not None:
            self._operator.kill()
            self._operator.wait()
            self._operator = None

    @contextmanager
    def place(self) -> Iterator[Place]:
        """A new namespace with new virtual hosts."""
        made = Place(self.api, self._management, self.broker, f"generated-{next(self._numbers)}-n")
        try:
            yield made
        finally:
            made.close()

    def complaints(self) -> str:
        """Return the unexpected errors that the operator has logged since the last call."""
        text = self._log.read_text(errors="replace")[self._read :]
        self._read += len(text)
        return text[text.index("Traceback") - 500 :][:5000] if "Traceback" in text else ""


@contextmanager
def stage() -> Iterator[Stage]:
    """Everything, while the context lasts."""
    folder = Path(tempfile.mkdtemp(prefix="generated-", dir=MEMORY if MEMORY.exists() else None))
    # Its own network reaches no archive.
    installed(DEFAULT)
    try:
        with (
            own_network(),
            running(DEFAULT) as broker,
            ControlPlane(folder / "control-plane").running() as plane,
            stubkubelet.running(plane.folder),
        ):
            management = Management(broker)
            made = Stage(plane, broker, management)
            crd = yaml.load(CRD.read_text(), yaml.CSafeLoader)
            plane.api.apply(
                f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}", crd
            )
            made.start_operator()
            try:
                yield made
            finally:
                made.stop_operator()
                management.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def conditions(workqueue: Object) -> dict[str, Object]:
    """Return the conditions by type."""
    return {one["type"]: one for one in workqueue.get("status", {}).get("conditions", ())}


def is_reported(workqueue: Object) -> bool:
    """Return whether the status is about the present spec, and says whether the WorkQueue is Ready."""
    about = workqueue.get("status", {}).get("observedGeneration")
    ready = conditions(workqueue).get("Ready", {}).get("status", "Unknown")
    return bool(about == workqueue.get("metadata", {}).get("generation") and ready != "Unknown")


def _refused(error: ApiError) -> Exception:
    known = {HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.BAD_REQUEST}
    return RefusedError(str(error)) if error.status in known else error


_OWN_TO_EACH: Final = (
    "creationTimestamp",
    "resourceVersion",
    "uid",
    "generation",
    "managedFields",
    "namespace",
    "lastTransitionTime",
    "observedGeneration",
    "lastScaleTime",
    "lastScaleReason",
    "deployment.kubernetes.io/revision",
    # A hash of a template that names the virtual host.
    "workqueue.dev/template-hash",
    # It depends on whether a pod of this template has been Ready.
    "maxSurge",
    "data",
    # Times of recurring messages.
    "slot",
    "publishing",
    "published",
)


def _visible(part: Any) -> Any:
    """Return an object without the fields that differ between any two."""
    if isinstance(part, list):
        return [_visible(one) for one in part]
    if not isinstance(part, dict):
        return part
    return {key: _visible(value) for key, value in part.items() if key not in _OWN_TO_EACH}


def _title(body: Object) -> str:
    return f"{body['kind']}/{body['metadata']['name']}"


def _users_deployment() -> Object:
    labels = {"app": OTHERS}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "own", "image": "own:1"}]}}
    spec = {"replicas": 0, "selector": {"matchLabels": labels}, "template": pod}
    return _object("apps/v1", "Deployment", OTHERS, spec=spec)


def _object(api_version: str, kind: str, name: str, **rest: Any) -> Object:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, **rest}
