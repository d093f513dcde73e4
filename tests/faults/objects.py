"""WorkQueues and Deployments by the hundred: kubectl would take a tenth of a second for each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from kubernetes import client, config

from tests.support.kubernetes import kubeconfig

Object = dict[str, Any]

GROUP, VERSION, PLURAL = "workqueue.dev", "v1alpha1", "workqueues"


class RefusedError(Exception):
    """The API server refused; the text is its message."""


class Objects:
    """The objects of one namespace."""

    def __init__(self, connection: Any, namespace: str) -> None:
        self.namespace = namespace
        self._custom = client.CustomObjectsApi(connection)
        self._apps = client.AppsV1Api(connection)
        self._where = (GROUP, VERSION, namespace, PLURAL)

    def create(self, name: str, spec: Object, *, dry_run: bool = False) -> Object:
        """A new WorkQueue.

        Raises:
            RefusedError: with the API server's sentences.
        """
        body = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "WorkQueue",
            "metadata": {"name": name},
            "spec": spec,
        }
        options = {"dry_run": "All"} if dry_run else {}
        return self._ask(
            self._custom.create_namespaced_custom_object, body=body, field_validation="Strict", **options
        )

    def replace_spec(self, name: str, spec: Object) -> Object:
        """Another spec for a WorkQueue.

        Raises:
            RefusedError: with the API server's sentences.
        """
        patch = [{"op": "replace", "path": "/spec", "value": spec}]
        return self._ask(self._custom.patch_namespaced_custom_object, name=name, body=patch)

    def workqueues(self) -> dict[str, Object]:
        """All WorkQueues by name."""
        listed = self._ask(self._custom.list_namespaced_custom_object)
        return {body["metadata"]["name"]: body for body in listed["items"]}

    def deployments(self) -> dict[str, Any]:
        """All Deployments by name, as the client library has them."""
        return {
            made.metadata.name: made for made in self._apps.list_namespaced_deployment(self.namespace).items
        }

    def delete(self, name: str) -> None:
        """Delete a WorkQueue, if it is there."""
        self._delete(self._custom.delete_namespaced_custom_object, *self._where, name)

    def delete_all(self) -> None:
        """Delete all WorkQueues."""
        self._custom.delete_collection_namespaced_custom_object(*self._where)

    def delete_deployment(self, name: str) -> None:
        """Delete a Deployment, if it is there."""
        self._delete(self._apps.delete_namespaced_deployment, name, self.namespace)

    def scale_deployment(self, name: str, replicas: int) -> None:
        """Set a Deployment's count, as a person may by mistake."""
        body = {"spec": {"replicas": replicas}}
        self._delete(self._apps.patch_namespaced_deployment_scale, name, self.namespace, body)

    @staticmethod
    def _delete(call: Any, *arguments: Any) -> None:
        try:
            call(*arguments)
        except client.ApiException as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise

    def _ask(self, call: Any, **arguments: Any) -> Object:
        try:
            answer: Object = call(*self._where, **arguments)
        except client.ApiException as error:
            raise RefusedError(json.loads(error.body)["message"]) from error
        return answer


@contextmanager
def objects_in(namespace: str) -> Iterator[Objects]:
    """The objects of a namespace, while the context lasts."""
    with config.new_client_from_config(str(kubeconfig())) as connection:
        yield Objects(connection, namespace)


def condition(body: Object, kind: str) -> Object:
    """A condition of a WorkQueue; empty while it is not there."""
    found = [one for one in body.get("status", {}).get("conditions", []) if one["type"] == kind]
    return dict(found[0]) if found else {}
