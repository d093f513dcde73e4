"""A Kubernetes API server in memory, behind the operator's Cluster interface: recorded requests and responses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from workqueue_operator.errors import ClusterError, OperatorError
from workqueue_operator.kube.client import Cluster, Object


@dataclass(frozen=True)
class Request:
    """One request."""

    method: str
    path: str
    query: Mapping[str, str]
    body: Any
    content_type: str


def scale_of(deployment: Object) -> Object:
    """The Scale of a Deployment. Kubernetes leaves out a count of 0."""
    names = ("namespace", "name", "uid", "resourceVersion")
    replicas = deployment["spec"].get("replicas", 1)
    return {
        "metadata": {name: value for name, value in deployment["metadata"].items() if name in names},
        "spec": {"replicas": replicas} if replicas else {},
    }


class FakeCluster(Cluster):
    """Responds to each request by the first matching rule: an object, an error, or a function of the request."""

    def __init__(self) -> None:
        super().__init__(cast("Any", None))
        self.asked: list[Request] = []
        self._rules: list[tuple[str, str, Any]] = []

    def answer(
        self, method: str, path: str, answer: Object | OperatorError | Callable[[Request], Any]
    ) -> None:
        """Answer requests whose path contains `path`; the newest rule comes first."""
        self._rules.insert(0, (method, path, answer))

    def paths(self, method: str) -> list[str]:
        """The paths of all requests with this method."""
        return [request.path for request in self.asked if request.method == method]

    async def _request_now(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Object | list[Object] | str | None,
        content_type: str,
    ) -> Object:
        request = Request(method, path, dict(query), body, content_type)
        self.asked.append(request)
        for wanted, part, answer in self._rules:
            if wanted == method and part in path:
                found = answer(request) if callable(answer) else answer
                if hasattr(found, "__await__"):
                    found = await found
                if isinstance(found, OperatorError):
                    raise found
                return cast("Object", found)
        raise ClusterError(404, f"{path} not found")
