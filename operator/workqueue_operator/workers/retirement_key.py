"""The key that signs retirement calls to the workers of one WorkQueue, in a Secret that the WorkQueue owns.

`apply` creates the Secret before the Deployment that mounts it. `scale` reads it before a scale-in.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from dataclasses import dataclass, field
from typing import Final

from workqueue_operator.api.reasons import Reason
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.errors import ClusterError, ReconcileError
from workqueue_operator.kube.client import Object, secret_path, secrets_path
from workqueue_operator.names import RETIREMENT_KEY, retirement_secret_name
from workqueue_operator.ports import Clock, Kubernetes
from workqueue_operator.workers import render

MAX_AGE: Final = 60.0
"""Seconds after which the Secret is read again. To rotate a key, delete its Secret."""

KEY_BYTES: Final = 32

_CONFLICT: Final = 409


@dataclass(frozen=True, slots=True)
class _Known:
    at: float
    key: bytes = field(repr=False)


class RetirementKeys:
    """Creates and reads the keys."""

    def __init__(self, kubernetes: Kubernetes, clock: Clock) -> None:
        self._kubernetes = kubernetes
        self._clock = clock
        self._known: dict[str, _Known] = {}

    def forget(self, uid: str) -> None:
        """The WorkQueue is deleted. Kubernetes deletes the Secret."""
        self._known.pop(uid, None)

    async def ensure(self, workqueue: WorkQueue) -> None:
        """Create the Secret unless it exists.

        Raises:
            ClusterError: the API server refused or did not answer.
        """
        if workqueue.metadata.uid not in self._known:
            try:
                await self._create(workqueue)
            except ClusterError as error:
                if error.status == _CONFLICT:
                    return
                # A quota or a policy refuses an object before the API server looks whether it exists.
                if not (error.denied and await self._exists(workqueue)):
                    raise

    async def read(self, workqueue: WorkQueue) -> bytes:
        """Return the key, and create the Secret again if it was deleted.

        Raises:
            ReconcileError: a Secret of that name exists and has another owner.
            ClusterError: the API server refused or did not answer.
        """
        known = self._known.get(workqueue.metadata.uid)
        if known is not None and self._clock.monotonic() - known.at < MAX_AGE:
            return known.key
        name = retirement_secret_name(workqueue.metadata.name)
        try:
            secret = await self._kubernetes.get(secret_path(workqueue.metadata.namespace, name))
        except ClusterError as error:
            if not error.not_found:
                raise
            return await self._create(workqueue)
        owners = secret["metadata"].get("ownerReferences") or []
        if not any(owner["uid"] == workqueue.metadata.uid for owner in owners):
            raise ReconcileError(
                Reason.NAME_CONFLICT,
                f"The Secret {name!r} exists and does not belong to this WorkQueue. The operator needs that name for "
                "the key that it signs its calls to the workers with. Delete or rename the Secret.",
            )
        return self._keep(workqueue, _decoded(secret))

    async def _exists(self, workqueue: WorkQueue) -> bool:
        name = retirement_secret_name(workqueue.metadata.name)
        try:
            await self._kubernetes.get(secret_path(workqueue.metadata.namespace, name))
        except ClusterError:
            return False
        return True

    async def _create(self, workqueue: WorkQueue) -> bytes:
        key = secrets.token_hex(KEY_BYTES).encode()
        body = render.retirement_secret(workqueue, key)
        await self._kubernetes.create(secrets_path(workqueue.metadata.namespace), body)
        return self._keep(workqueue, key)

    def _keep(self, workqueue: WorkQueue, key: bytes) -> bytes:
        self._known[workqueue.metadata.uid] = _Known(self._clock.monotonic(), key)
        return key


def _decoded(secret: Object) -> bytes:
    """Return the key in a Secret; empty without one, which every worker refuses."""
    try:
        return base64.b64decode((secret.get("data") or {}).get(RETIREMENT_KEY, "")).strip()
    except binascii.Error:
        return b""
