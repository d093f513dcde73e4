"""The response of a real API server to a WorkQueue.

The CRD is installed under its own group and removed afterwards, so that it affects neither an operator in the
cluster nor a chart with the real CRD.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes import client, config

from tests.support.objects import Object
from tests.support.wait import eventually
from workqueue_operator import names
from workqueue_operator.api import crd

PLURAL = "workqueuesundertest"
SINGULAR = "workqueueundertest"

BASE: Object = {
    "connectionSecretRef": {"name": "rabbitmq"},
    "worker": {"image": "thumbs:1", "handler": {"python": "thumbs:resize"}},
}
"""The shortest valid spec."""


@dataclass(frozen=True)
class Admission:
    """An API server with the CRD. Only `stored` stores an object."""

    api: Any
    group: str
    namespace: str = "default"

    def create(self, spec: Object, name: str = "thumbs") -> Object:
        """What creating would store.

        Raises:
            RefusedError: with the API server's sentences.
        """
        return self._ask(self.api.create_namespaced_custom_object, body=self._body(spec, name), dry_run="All")

    @contextmanager
    def stored(self, spec: Object) -> Iterator[Object]:
        """A stored WorkQueue."""
        made = self._ask(
            self.api.create_namespaced_custom_object, body=self._body(spec, f"thumbs-{uuid.uuid4().hex[:8]}")
        )
        try:
            yield made
        finally:
            self._ask(self.api.delete_namespaced_custom_object, name=made["metadata"]["name"])

    def update(self, stored: Object, spec: Object) -> Object:
        """What replacing the spec of a stored one would store.

        Raises:
            RefusedError: with the API server's sentences.
        """
        body = {**stored, "spec": spec}
        return self._ask(
            self.api.replace_namespaced_custom_object,
            name=stored["metadata"]["name"],
            body=body,
            dry_run="All",
        )

    def _body(self, spec: Object, name: str) -> Object:
        api_version = f"{self.group}/{names.VERSION}"
        return {"apiVersion": api_version, "kind": names.KIND, "metadata": {"name": name}, "spec": spec}

    def _ask(self, call: Any, **arguments: Any) -> Object:
        if "body" in arguments:
            arguments["field_validation"] = "Strict"
        where = (self.group, names.VERSION, self.namespace, PLURAL)
        try:
            answer: Object = call(*where, **arguments)
        except client.ApiException as error:
            raise RefusedError(json.loads(error.body)["message"]) from error
        return answer


class RefusedError(Exception):
    """The API server refused; the text is its message."""


@contextmanager
def installed(kubeconfig: Path) -> Iterator[Admission]:
    """The CRD, under its own group."""
    group = f"t{uuid.uuid4().hex[:8]}.test.{names.GROUP}"
    definition = crd.crd()
    definition["metadata"]["name"] = f"{PLURAL}.{group}"
    definition["spec"]["group"] = group
    # `kubectl get workqueues`, `workqueue` and `wq` must still mean the real ones.
    definition["spec"]["names"] |= {"plural": PLURAL, "singular": SINGULAR, "shortNames": []}
    with config.new_client_from_config(str(kubeconfig)) as connection:
        extensions = client.ApiextensionsV1Api(connection)
        extensions.create_custom_resource_definition(definition)
        try:
            admission = Admission(client.CustomObjectsApi(connection), group)
            eventually(lambda: _is_served(admission), 120, "the CRD is served")
            yield admission
        finally:
            extensions.delete_custom_resource_definition(definition["metadata"]["name"])


def _is_served(admission: Admission) -> bool:
    try:
        admission.create(BASE)
    except (RefusedError, ValueError):
        return False
    return True
