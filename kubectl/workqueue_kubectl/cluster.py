"""WorkQueues, their pods, their Events and their Secrets, read with kubectl.

Place in the flow: between the commands and `kubectl`; objects are parsed by the operator's own model.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from pydantic import ValidationError

from workqueue.contract.binding import Binding, from_mapping
from workqueue.contract.worker_api import PORT, STATUS_PATH
from workqueue_kubectl.errors import KubectlFailed, NotFound, PluginError
from workqueue_kubectl.kubectl import Kubectl, Object
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.names import API_VERSION, KIND, LABEL_WORKQUEUE, PLURAL

AT_ONCE: Final = 8
_RESOURCE: Final = f"{PLURAL}.{API_VERSION.partition('/')[0]}"


class Cluster:
    """What the commands need of the cluster.

    Args:
        namespace: the one that was asked for; None for that of the current context.
    """

    def __init__(self, kubectl: Kubectl, namespace: str | None = None) -> None:
        self.kubectl = kubectl
        self._namespace = namespace

    @property
    def namespace(self) -> str:
        """The namespace that commands about one WorkQueue speak about."""
        if self._namespace is None:
            self._namespace = self.kubectl.namespace()
        return self._namespace

    def workqueues(self, *, everywhere: bool) -> tuple[list[WorkQueue], list[str]]:
        """The WorkQueues of the namespace, or of all; and the names of those that this version cannot read.

        Raises:
            PluginError: the definition is not installed, or listing is refused.
        """
        scope = "" if everywhere else f"/namespaces/{self.namespace}"
        try:
            items = self.kubectl.get(f"/apis/{API_VERSION}{scope}/{PLURAL}")["items"]
        except NotFound as error:
            raise _not_installed() from error
        read: list[WorkQueue] = []
        unreadable: list[str] = []
        for item in items:
            try:
                read.append(WorkQueue.model_validate(item))
            except ValidationError:
                unreadable.append(f"{item['metadata']['namespace']}/{item['metadata']['name']}")
        return read, unreadable

    def workqueue(self, name: str) -> WorkQueue:
        """One WorkQueue.

        Raises:
            PluginError: it is not there, or cannot be read.
        """
        try:
            body = self.kubectl.get(f"/apis/{API_VERSION}/namespaces/{self.namespace}/{PLURAL}/{name}")
        except NotFound as error:
            if PLURAL not in str(error):
                raise _not_installed() from error
            raise PluginError(
                f"The namespace {self.namespace} has no WorkQueue {name!r}: `kubectl get wq -A` lists all, -n "
                "chooses a namespace."
            ) from error
        try:
            return WorkQueue.model_validate(body)
        except ValidationError as error:
            raise PluginError(
                f"The WorkQueue {name!r} cannot be read by this version of the plugin: {error.errors()[0]['msg']}."
                " Use the plugin of the operator's version."
            ) from error

    def change(self, name: str, spec: Object) -> None:
        """Merge into a WorkQueue's spec.

        Raises:
            PluginError: it is not there, or the API server refuses the change.
        """
        try:
            self.kubectl.merge(self.namespace, _RESOURCE, name, {"spec": spec})
        except NotFound:
            self.workqueue(name)  # says which of the two is missing
            raise

    def pods(self, workqueue: WorkQueue) -> list[Object]:
        """The pods of the workers that the operator runs, by name; none for a workloadRef."""
        namespace, name = workqueue.key
        listed = self.kubectl.get(
            f"/api/v1/namespaces/{namespace}/pods", labelSelector=f"{LABEL_WORKQUEUE}={name}"
        )
        return sorted(listed["items"], key=lambda pod: str(pod["metadata"]["name"]))

    def events(self, workqueue: WorkQueue) -> list[Object]:
        """The Events about a WorkQueue, oldest first."""
        namespace, name = workqueue.key
        selector = f"involvedObject.kind={KIND},involvedObject.name={name}"
        listed = self.kubectl.get(f"/api/v1/namespaces/{namespace}/events", fieldSelector=selector)
        return sorted(listed["items"], key=told_at)

    def worker_statuses(self, namespace: str, pods: Sequence[str]) -> dict[str, Object]:
        """What workers say at /status, by pod; who cannot be asked is not in it.

        They are asked through the API server, which needs the right to get pods/proxy.
        """
        if not pods:
            return {}
        with ThreadPoolExecutor(min(len(pods), AT_ONCE)) as pool:
            answers = pool.map(lambda pod: self._worker_status(namespace, pod), pods)
            return {pod: answer for pod, answer in zip(pods, answers, strict=True) if answer is not None}

    def _worker_status(self, namespace: str, pod: str) -> Object | None:
        try:
            return self.kubectl.get(f"/api/v1/namespaces/{namespace}/pods/{pod}:{PORT}/proxy{STATUS_PATH}")
        except (KubectlFailed, ValueError):
            return None

    def binding(self, workqueue: WorkQueue) -> Binding:
        """The connection data of a WorkQueue, from its Secret.

        Raises:
            PluginError: the Secret is not there or may not be read.
            BindingError: its keys are not enough.
        """
        namespace, name = workqueue.metadata.namespace, workqueue.spec.connection_secret_ref.name
        try:
            secret = self.kubectl.get(f"/api/v1/namespaces/{namespace}/secrets/{name}")
        except NotFound as error:
            raise PluginError(
                f"The Secret {name!r}, which the WorkQueue names, is not in the namespace {namespace}: create it."
            ) from error
        except KubectlFailed as error:
            raise PluginError(
                f"The credentials are in the Secret {name!r} of the namespace {namespace}, which you may have to "
                f"be allowed to get: {error}"
            ) from error
        return from_mapping(_decoded(secret.get("data") or {}), f"The Secret {name!r}")


def _decoded(data: dict[str, str]) -> dict[str, str]:
    found = {}
    for key, value in data.items():
        try:
            found[key] = base64.b64decode(value).decode()
        except (binascii.Error, UnicodeDecodeError):
            continue  # a key that is no text is none of ours
    return found


def told_at(event: Object) -> str:
    """When an Event was last told. RFC 3339 in UTC sorts as text."""
    series = event.get("series") or {}
    return str(
        series.get("lastObservedTime")
        or event.get("lastTimestamp")
        or event.get("eventTime")
        or event["metadata"]["creationTimestamp"]
    )


def _not_installed() -> PluginError:
    return PluginError(
        "This cluster knows no WorkQueues: install workqueue-operator, or choose another cluster with --context."
    )
