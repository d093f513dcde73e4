"""Requests to the Kubernetes API server, except kopf's watches and leader election.

Objects are plain dicts in the form of the API. Each request has a timeout. Each write first calls the fence, which
raises if this process no longer leads.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeAlias

from workqueue_operator.errors import ClusterError
from workqueue_operator.kube.light_imports import (
    ApiClient,
    ApiException,
    Configuration,
    load_incluster_config,
    load_kube_config,
)
from workqueue_operator.light_aiohttp import aiohttp
from workqueue_operator.names import FIELD_MANAGER

Object: TypeAlias = dict[str, Any]

REQUEST_TIMEOUT: Final = 8.0
"""Seconds for one request, so that lost packets keep neither a pass nor a process that has lost its Lease."""

CONNECTIONS: Final = 12
"""Connections of the passes to the API server. Each costs 0.25 MB, and more do not make the server faster."""

COUNT_CONNECTIONS: Final = 32
"""Connections for writes of a replica count and for retirements. They open when they are needed: with a slow API
server each one adds to the number of queues that wake in a second."""

LONGEST_RETRY_AFTER: Final = 60.0
"""Seconds. A proxy before the API server may ask for hours."""

REPORT_CONNECTIONS: Final = 8
"""Connections for statuses and Events."""

_APPLY: Final = "application/apply-patch+yaml"
_BEYOND_BMP: Final = re.compile(r"\\ud[89ab]..\\ud[c-f]..")

_NAME: Final = re.compile(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?")
_SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


class Cluster:
    """Requests to the API server.

    Args:
        api: an ApiClient of `kubernetes.aio`.
        fence: called before each write. It raises if this process must no longer write.
        connections: how many requests are sent at the same time.
        on_request: called before each request.
    """

    def __init__(
        self,
        api: ApiClient,
        fence: Callable[[], None] = lambda: None,
        connections: int = CONNECTIONS,
        on_request: Callable[[], None] = lambda: None,
    ) -> None:
        self.api = api
        self._fence = fence
        # Not the limit of aiohttp: the timeout of a request would include the wait for a connection.
        self._connections = asyncio.Semaphore(connections)
        self._on_request = on_request
        self._unanswered = 0

    @property
    def busy(self) -> bool:
        """Whether a request waits for its connection or for its answer."""
        return self._unanswered > 0

    @property
    def is_full(self) -> bool:
        """Whether a further request would wait for a connection."""
        return self._connections.locked()

    async def get(self, path: str, **query: str) -> Object:
        """GET one object, or a list.

        Raises:
            ClusterError: the server refused or did not answer.
        """
        return await self._request("GET", path, query)

    async def create(self, path: str, body: Object) -> Object:
        """POST an object to a collection."""
        return await self._request("POST", path, {}, body)

    async def replace(self, path: str, body: Object) -> Object:
        """PUT an object. Its resourceVersion, if given, must be current."""
        return await self._request("PUT", path, {}, body)

    async def delete(self, path: str, uid: str | None = None) -> Object:
        """DELETE an object; with `uid`, only the object with that UID."""
        return await self._request("DELETE", path, {}, {"preconditions": {"uid": uid}} if uid else None)

    async def apply(
        self, path: str, body: Object, manager: str = FIELD_MANAGER, *, force: bool = True
    ) -> Object:
        """Server-side apply.

        Args:
            force: whether to take over fields of other managers. Otherwise they are a conflict, and nothing changes.
        """
        query = {"fieldManager": manager, "force": str(force).lower()}
        return await self._request("PATCH", path, query, body, _APPLY)

    async def merge(self, path: str, body: Object) -> Object:
        """PATCH an object with a JSON Merge Patch."""
        return await self._request(
            "PATCH", path, {"fieldManager": FIELD_MANAGER}, body, "application/merge-patch+json"
        )

    async def json_patch(self, path: str, operations: list[Object], manager: str = FIELD_MANAGER) -> Object:
        """PATCH an object with a JSON Patch. A failed `test` operation answers 422."""
        return await self._request(
            "PATCH", path, {"fieldManager": manager}, operations, "application/json-patch+json"
        )

    async def close(self) -> None:
        """Close the connections."""
        await self.api.close()

    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Object | list[Object] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        self._unanswered += 1
        try:
            async with self._connections:
                return await self._request_now(method, path, query, body, content_type)
        finally:
            self._unanswered -= 1

    async def _request_now(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Object | list[Object] | str | None,
        content_type: str,
    ) -> Object:
        if method != "GET":
            self._fence()
        self._on_request()
        if content_type == _APPLY:
            # With a parameter in the content type, the client sends the text unchanged.
            content_type, body = f"{_APPLY}; charset=utf-8", _yaml(body)
        try:
            # Authenticate each request, because the service account token is renewed.
            request = await self.api.param_serialize(
                method,
                path,
                query_params=list(query.items()),
                header_params={"Accept": "application/json", "Content-Type": content_type},
                body=body,
                auth_settings=["BearerToken"],
            )
            response = await self.api.call_api(*request, _request_timeout=REQUEST_TIMEOUT)
            text = await response.read()
        except ApiException as error:
            raise ClusterError(error.status or 0, str(error.reason)) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ClusterError(0, f"the API server did not answer: {error!r}") from error
        if response.status >= HTTPStatus.BAD_REQUEST:
            raise _refusal(response.status, text, response.headers.get("Retry-After"))
        try:
            answer: Object = json.loads(text, object_hook=_without_managed_fields)
        except ValueError as error:
            raise ClusterError(0, "the answer is not from the API server: it is no JSON") from error
        return answer


async def connect(
    kubeconfig: str | None = None,
    fence: Callable[[], None] = lambda: None,
    connections: int = CONNECTIONS,
    on_request: Callable[[], None] = lambda: None,
) -> Cluster:
    """Return a client for the cluster of this pod, or for the kubeconfig.

    Args:
        kubeconfig: a file that takes precedence over the service account.
        connections: how many connections it opens at most.
        on_request: called before each request.
    """
    configuration = Configuration()
    configuration.connection_pool_maxsize = connections
    # Otherwise aiohttp searches for a netrc file in a thread before each request.
    configuration.client_session_kwargs = {"trust_env": False}
    # Verify as Go does: the certificates of many clusters lack extensions that Python requires since 3.13.
    configuration.disable_strict_ssl_verification = True
    if kubeconfig is None and _SERVICE_ACCOUNT.exists():
        load_incluster_config(client_configuration=configuration)
    else:
        await load_kube_config(config_file=kubeconfig, client_configuration=configuration)
    return Cluster(ApiClient(configuration), fence, connections, on_request)


def _without_managed_fields(value: Object) -> Object:
    """Remove metadata.managedFields while a text is parsed. Those of a whole page of a LIST would take 3 MiB."""
    if isinstance(value.get("managedFields"), list):
        del value["managedFields"]
    return value


def _yaml(body: Any) -> str:
    """Return JSON that is also YAML: YAML has one escape where JSON has two surrogates (for example an emoji)."""

    def one_escape(pair: re.Match[str]) -> str:
        character: str = json.loads(f'"{pair[0]}"')
        return f"\\U{ord(character):08x}"

    return _BEYOND_BMP.sub(one_escape, json.dumps(body))


def _refusal(status: int, text: bytes | str, retry_after: str | None) -> ClusterError:
    try:
        message = json.loads(text).get("message") or HTTPStatus(status).phrase
    except (ValueError, AttributeError):
        message = f"HTTP {status}"
    seconds = None
    if retry_after and retry_after.isdecimal():
        seconds = min(float(retry_after), LONGEST_RETRY_AFTER)
    return ClusterError(status, message, retry_after=seconds)


def micro_time(moment: datetime) -> str:
    """Return a moment in UTC as Kubernetes' MicroTime."""
    return f"{moment.replace(tzinfo=None).isoformat(timespec='microseconds')}Z"  # a third of the time of strftime


def workqueues_path(namespace: str | None) -> str:
    """Return the path of the WorkQueues of a namespace, or of all."""
    scope = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/workqueue.dev/v1alpha1{scope}/workqueues"


def workqueue_path(namespace: str, name: str) -> str:
    """Return the path of a WorkQueue."""
    return f"{workqueues_path(namespace)}/{_part(name)}"


def deployments_path(namespace: str | None) -> str:
    """Return the path of the Deployments of a namespace, or of all."""
    scope = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/apps/v1{scope}/deployments"


def deployment_path(namespace: str, name: str) -> str:
    """Return the path of a Deployment."""
    return f"{deployments_path(namespace)}/{_part(name)}"


def scale_path(namespace: str, name: str) -> str:
    """Return the path of the count of a Deployment, its subresource `scale`."""
    return f"{deployment_path(namespace, name)}/scale"


def replicaset_path(namespace: str, name: str) -> str:
    """Return the path of a ReplicaSet."""
    return f"/apis/apps/v1/namespaces/{namespace}/replicasets/{_part(name)}"


def pods_path(namespace: str | None) -> str:
    """Return the path of the pods of a namespace, or of all."""
    scope = f"/namespaces/{namespace}" if namespace else ""
    return f"/api/v1{scope}/pods"


def pod_path(namespace: str, name: str) -> str:
    """Return the path of a pod."""
    return f"{pods_path(namespace)}/{_part(name)}"


def secrets_path(namespace: str) -> str:
    """Return the path of the Secrets of a namespace."""
    return f"/api/v1/namespaces/{namespace}/secrets"


def configmap_path(namespace: str, name: str) -> str:
    """Return the path of a ConfigMap."""
    return f"/api/v1/namespaces/{_part(namespace)}/configmaps/{_part(name)}"


def secret_path(namespace: str, name: str) -> str:
    """Return the path of a Secret."""
    return f"{secrets_path(namespace)}/{_part(name)}"


def nodes_path() -> str:
    """Return the path of all nodes."""
    return "/api/v1/nodes"


def namespaces_path() -> str:
    """Return the path of all namespaces."""
    return "/api/v1/namespaces"


def namespace_path(name: str) -> str:
    """Return the path of a namespace."""
    return f"{namespaces_path()}/{_part(name)}"


def leases_path() -> str:
    """Return the path of the Leases of all namespaces."""
    return "/apis/coordination.k8s.io/v1/leases"


def namespace_leases_path(namespace: str) -> str:
    """Return the path of the Leases of a namespace."""
    return f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"


def lease_path(namespace: str, name: str) -> str:
    """Return the path of a Lease."""
    return f"{namespace_leases_path(namespace)}/{_part(name)}"


def events_path(namespace: str) -> str:
    """Return the path of the Events of a namespace."""
    return f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"


def cluster_role_path(name: str) -> str:
    """Return the path of a ClusterRole."""
    return f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{_part(name)}"


def autoscalers_path(namespace: str) -> str:
    """Return the path of the HorizontalPodAutoscalers of a namespace."""
    return f"/apis/autoscaling/v2/namespaces/{namespace}/horizontalpodautoscalers"


def _part(name: str) -> str:
    """Return a name for use in a path. The API server has validated it, unless it has another CRD of WorkQueue.

    Raises:
        ClusterError: the name would change the path.
    """
    if not _NAME.fullmatch(name):
        raise ClusterError(HTTPStatus.BAD_REQUEST, f"{name!r} is not a valid object name")
    return name
