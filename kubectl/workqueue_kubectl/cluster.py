"""WorkQueues, their pods, their Events and their Secrets, read with kubectl and parsed with the operator's model."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pydantic import ValidationError

from workqueue.contract.binding import Binding, from_mapping
from workqueue.contract.worker_api import PORT, STATUS_PATH, StatusField
from workqueue_kubectl.errors import KubectlError, NotFoundError, PluginError
from workqueue_kubectl.kubectl import Kubectl, Object
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.names import (
    API_VERSION,
    GROUP,
    KIND,
    LABEL_WORKQUEUE,
    PLURAL,
    SINGULAR,
    STATUS_FIELD_MANAGER,
)

AT_ONCE: Final = 8
WORKER_SECONDS: Final = 5.0
"""How long a worker's status may take. The API server waits for minutes for a pod of a node that is down."""

_NUMBERS: Final = (
    StatusField.RECENT_HANDLER_SECONDS,
    StatusField.MEAN_HANDLER_SECONDS,
    StatusField.ARRIVAL_PER_SECOND,
    StatusField.BUSY_SECONDS,
    StatusField.WAITING_FOR_TOKEN,
)
"""The numbers that a status may have. Older workers do not have all of them."""

_RESOURCE: Final = f"{PLURAL}.{GROUP}"
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_NAMESPACE: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Found:
    """A WorkQueue as the API server has it.

    Attributes:
        written: when the operator last wrote its status; None if it never did.
    """

    workqueue: WorkQueue
    written: datetime | None = None

    @property
    def is_behind(self) -> bool:
        """Whether its status is older than its spec: the operator has not seen the last change."""
        observed = self.workqueue.status.observed_generation
        return observed is not None and observed < self.workqueue.metadata.generation


class Cluster:
    """The cluster's objects for the commands.

    Args:
        namespace: the namespace of the command line; None or empty for that of the current context.
    """

    def __init__(self, kubectl: Kubectl, namespace: str | None = None) -> None:
        self.kubectl = kubectl
        self._namespace = namespace

    @property
    def namespace(self) -> str:
        """The namespace for commands about one WorkQueue.

        Raises:
            PluginError: no namespace can have this name.
        """
        if not self._namespace:
            self._namespace = self.kubectl.namespace()
        if _NAMESPACE.fullmatch(self._namespace) is None:
            raise PluginError(
                f"{self._namespace!r} cannot be the name of a namespace. Choose another one with -n."
            )
        return self._namespace

    def workqueues(self, *, everywhere: bool) -> tuple[list[Found], list[str]]:
        """Return the WorkQueues of the namespace, or of all, and the names of those with another schema.

        Raises:
            PluginError: the CRD is not installed, or listing is forbidden.
        """
        scope = "" if everywhere else f"/namespaces/{self.namespace}"
        try:
            items = self.kubectl.get(f"/apis/{API_VERSION}{scope}/{PLURAL}")["items"]
        except NotFoundError as error:
            raise _not_installed() from error
        read: list[Found] = []
        unreadable: list[str] = []
        for item in items:
            try:
                read.append(Found(WorkQueue.model_validate(item), _status_written(item)))
            except ValidationError:
                unreadable.append(f"{item['metadata']['namespace']}/{item['metadata']['name']}")
        return read, unreadable

    def workqueue(self, name: str) -> WorkQueue:
        """Return one WorkQueue.

        Raises:
            PluginError: it does not exist, or has another schema.
        """
        return self.found(name).workqueue

    def found(self, name: str) -> Found:
        """Return one WorkQueue, and when its status was written. Raises as `workqueue`."""
        _check_name(name)
        try:
            body = self.kubectl.get(f"/apis/{API_VERSION}/namespaces/{self.namespace}/{PLURAL}/{name}")
        except NotFoundError as error:
            if PLURAL not in str(error):
                raise _not_installed() from error
            raise PluginError(
                f"The namespace {self.namespace} has no WorkQueue {name!r}. List all with `kubectl get wq -A`; "
                "choose a namespace with -n."
            ) from error
        try:
            return Found(WorkQueue.model_validate(body), _status_written(body))
        except ValidationError as error:
            raise PluginError(
                f"This version of the plugin cannot read the WorkQueue {name!r}: {error.errors()[0]['msg']}."
                " Use the same version as the operator."
            ) from error

    def change(self, name: str, spec: Object) -> None:
        """Merge a patch into a WorkQueue's spec.

        Raises:
            PluginError: it does not exist, or the API server refuses the change.
        """
        _check_name(name)
        try:
            self.kubectl.merge(self.namespace, _RESOURCE, name, {"spec": spec})
        except NotFoundError:
            self.workqueue(name)  # raises if the WorkQueue or the CRD is missing
            raise

    def pods(self, workqueue: WorkQueue) -> list[Object]:
        """Return the pods of the operator's workers, by name; none for a workloadRef."""
        namespace, name = workqueue.key
        listed = self.kubectl.get(
            f"/api/v1/namespaces/{namespace}/pods", labelSelector=f"{LABEL_WORKQUEUE}={name}"
        )
        return sorted(listed["items"], key=lambda pod: str(pod["metadata"]["name"]))

    def events(self, workqueue: WorkQueue) -> list[Object]:
        """Return the Events of a WorkQueue, oldest first."""
        namespace, name = workqueue.key
        selector = f"involvedObject.kind={KIND},involvedObject.name={name}"
        listed = self.kubectl.get(f"/api/v1/namespaces/{namespace}/events", fieldSelector=selector)
        return sorted(listed["items"], key=event_time)

    def worker_statuses(self, namespace: str, pods: Sequence[str]) -> dict[str, Object]:
        """Return the /status of each worker that answers, by pod.

        The requests go through the API server and need the permission to get pods/proxy.
        """
        if not pods:
            return {}
        before, self.kubectl.patience = self.kubectl.patience, WORKER_SECONDS
        try:
            with ThreadPoolExecutor(min(len(pods), AT_ONCE)) as pool:
                answers = list(pool.map(lambda pod: self._worker_status(namespace, pod), pods))
        finally:
            self.kubectl.patience = before
        return {pod: answer for pod, answer in zip(pods, answers, strict=True) if answer is not None}

    def _worker_status(self, namespace: str, pod: str) -> Object | None:
        try:
            answer = self.kubectl.get(f"/api/v1/namespaces/{namespace}/pods/{pod}:{PORT}/proxy{STATUS_PATH}")
        except (KubectlError, ValueError):
            return None
        return answer if _is_status(answer) else None

    def binding(self, workqueue: WorkQueue) -> Binding:
        """Return the connection data in the Secret of a WorkQueue.

        Raises:
            PluginError: the Secret does not exist, or reading it is forbidden.
            BindingError: keys are missing or invalid.
        """
        namespace, name = workqueue.metadata.namespace, workqueue.spec.connection_secret_ref.name
        try:
            secret = self.kubectl.get(f"/api/v1/namespaces/{namespace}/secrets/{name}")
        except NotFoundError as error:
            raise PluginError(
                f"The Secret {name!r} of the WorkQueue does not exist in the namespace {namespace}. Create it."
            ) from error
        except KubectlError as error:
            raise PluginError(
                f"Reading the credentials in the Secret {name!r} of the namespace {namespace} failed. You need the "
                f"permission to get it: {error}"
            ) from error
        return from_mapping(_decoded(secret.get("data") or {}), f"The Secret {name!r}")


def _is_status(answer: Any) -> bool:
    """Return whether this is a worker's status. Any process may listen on a pod's port."""
    if not isinstance(answer, dict):
        return False
    needed = [answer.get(field) for field in (StatusField.SLOTS, StatusField.BUSY, StatusField.HANDLED)]
    others = [answer.get(field) for field in _NUMBERS if answer.get(field) is not None]
    times = answer.get(StatusField.HANDLER_TIMES) or {}
    return (
        all(isinstance(one, int | float) and 0 <= one < math.inf for one in [*needed, *others])
        and isinstance(answer.get(StatusField.LAST_ERROR) or "", str)
        and isinstance(times, dict)
        and all(bucket.lstrip("-").isdecimal() and isinstance(count, int) for bucket, count in times.items())
    )


def _check_name(name: str) -> None:
    """Check a name before it becomes part of a path.

    Raises:
        PluginError: no object can have it.
    """
    if _NAME.fullmatch(name) is None:
        raise PluginError(
            f"{name!r} cannot be the name of a WorkQueue. Give the name alone, as in the column NAME of"
            " `kubectl get wq`."
        )


def _status_written(body: Object) -> datetime | None:
    times = [
        datetime.fromisoformat(entry["time"])
        for entry in body["metadata"].get("managedFields") or ()
        if entry.get("manager") == STATUS_FIELD_MANAGER and entry.get("time")
    ]
    return max(times, default=None)


def _decoded(data: dict[str, str]) -> dict[str, str]:
    found = {}
    for key, value in data.items():
        try:
            found[key] = base64.b64decode(value).decode()
        except (binascii.Error, UnicodeDecodeError):
            continue  # a binary key is not connection data
    return found


def resource_name(name: str) -> str:
    """Return a WorkQueue's name as `kubectl -o name` prints it, for use in other kubectl commands."""
    return f"{SINGULAR}.{GROUP}/{name}"


def event_time(event: Object) -> str:
    """Return when an Event last occurred. RFC 3339 times in UTC sort as text."""
    series = event.get("series") or {}
    return str(
        series.get("lastObservedTime")
        or event.get("lastTimestamp")
        or event.get("eventTime")
        or event["metadata"]["creationTimestamp"]
    )


def _not_installed() -> PluginError:
    return PluginError(
        "The cluster has no CRD of WorkQueues. Install workqueue-operator, or choose another cluster with --context."
    )
