"""kopf's decorators: a shell without logic. Each event goes into the store, which wakes who it concerns.

Place in the flow: the top layer. `on.event` handlers return None and keep nothing in the object, so kopf
writes nothing and sets no finalizer. Every handler names its group: without it kopf discovers all API groups
at start, and one broken aggregated API would keep the operator from starting.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import Any, Final

import kopf

from workqueue_operator.kube.resync import PAGE
from workqueue_operator.kube.store import Store
from workqueue_operator.names import EVENT_REPORTER, GROUP, LABEL_WORKQUEUE, PLURAL, VERSION

INACTIVITY_SECONDS: Final = 70.0
IDLE_SECONDS: Final = 0.1


LOGIN_SECONDS: Final = 1.0
"""Pause between two logins, each of which follows a 401."""


class _Connection(kopf.ConnectionInfo):
    """Each login is another one, also with the same token.

    kopf takes one that equals a refused one for refused, and ends, though an API server may answer 401 for a
    moment only. It verifies as Go does: the certificates of many clusters lack what Python asks for since 3.13.
    """

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def as_ssl_context(self) -> ssl.SSLContext:
        context = super().as_ssl_context()
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return context


class _NoDifferences(kopf.DiffBaseStorage):
    """No handler asks what changed in an object; kopf would copy every one twice to be able to tell."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Nothing of an object is compared."""
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        """Nothing is known from before."""

    def store(self, **_: Any) -> None:
        """Nothing is kept."""


def settings() -> kopf.OperatorSettings:
    """kopf's settings: nothing of kopf's own in the cluster."""
    made = kopf.OperatorSettings()
    # Discovery of new resources and namespaces would need cluster-wide rights; what is needed is waited for
    # before kopf starts.
    made.scanning.disabled = True
    made.posting.enabled = False
    made.posting.reporting_component = EVENT_REPORTER
    made.peering.standalone = True
    made.persistence.finalizer = f"{GROUP}/kopf"
    made.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=f"kopf.{GROUP}")
    made.persistence.diffbase_storage = _NoDifferences()
    made.watching.inactivity_timeout = INACTIVITY_SECONDS
    # What a LIST brings is handled before its next chunk comes, so that it is never in memory as a whole.
    made.watching.chunk_size = PAGE
    # Until then kopf holds the last event of each object.
    made.queueing.idle_timeout = IDLE_SECONDS
    made.watching.label_selectors["pods"] = LABEL_WORKQUEUE
    return made


def registry(store: Store) -> kopf.OperatorRegistry:
    """The handlers, bound to a store."""
    made = kopf.OperatorRegistry()

    last_login = -LOGIN_SECONDS

    @kopf.on.login(registry=made)
    async def login(**context: Any) -> kopf.ConnectionInfo | None:
        """Again after each 401, so that a renewed service account token is picked up."""
        nonlocal last_login
        await asyncio.sleep(last_login + LOGIN_SECONDS - time.monotonic())
        last_login = time.monotonic()
        found = kopf.login_with_service_account(**context) or kopf.login_with_kubeconfig(**context)
        return None if found is None else _Connection(**vars(found))

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=made)
    async def workqueue_event(event: Any, **_: Any) -> None:
        _feed(store, "workqueues", event)

    @kopf.on.event("apps", "v1", "deployments", registry=made)
    async def deployment_event(event: Any, **_: Any) -> None:
        _feed(store, "deployments", event)

    @kopf.on.event("", "v1", "pods", registry=made)
    async def pod_event(event: Any, **_: Any) -> None:
        _feed(store, "pods", event)

    return made


def _feed(store: Store, kind: str, event: Any) -> None:
    store.saw_event(kind)
    body = event["object"]
    if event["type"] == "DELETED":
        store.drop(kind, body)
    else:
        store.put(kind, body)
    # What kopf wraps an event in refers to itself, and would hold all of this until the garbage collector comes.
    for part in ("spec", "status"):
        body.pop(part, None)
    body["metadata"].pop("managedFields", None)
