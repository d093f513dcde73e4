"""Decides which release of the operator serves a namespace.

Each release reads the same three claims: the namespace's label `workqueue.dev/operator`; the Lease `workqueue.dev` in
the namespace, which the chart creates for a release that lists the namespace; and the ClusterRole `workqueue.dev`,
which the chart creates for a release that watches the whole cluster. They are read every 15 s. If a read fails, the
previous claims stay valid.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from workqueue_operator.errors import ClusterError
from workqueue_operator.kube.client import (
    Cluster,
    Object,
    cluster_role_path,
    lease_path,
    leases_path,
    namespace_path,
    namespaces_path,
)
from workqueue_operator.names import CLAIM, LABEL_OPERATOR

logger = logging.getLogger(__name__)

LOOK_EVERY: Final = 15.0
"""Seconds between two reads. Until then, two operators may serve a namespace; the guards of each write still hold."""

FIRST_AGAIN: Final = 2.0
"""Seconds between two attempts of the first read."""


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims. An operator is named `NAMESPACE/RELEASE`, as its chart writes it.

    Attributes:
        labels: the release in the label of each namespace.
        listed: the operator that lists each namespace.
        everywhere: the operator that watches the whole cluster; empty for none.
    """

    labels: dict[str, str] = field(default_factory=dict)
    listed: dict[str, str] = field(default_factory=dict)
    everywhere: str = ""

    def server(self, namespace: str) -> str:
        """Return the operator that serves a namespace: only its release if just a label names it; empty for none."""
        candidates = [one for one in (self.listed.get(namespace), self.everywhere) if one]
        label = self.labels.get(namespace)
        if label is not None:
            candidates = [one for one in candidates if one.rpartition("/")[2] == label] or [label]
        return candidates[0] if candidates else ""


class Ownership:
    """Tells which namespaces this operator serves.

    Args:
        operator: this operator, as NAMESPACE/RELEASE.
        namespaces: the namespaces that this operator lists; empty if it watches the whole cluster.
        changed: called with the namespaces whose operator has changed.
        known: returns the namespaces with WorkQueues.
    """

    def __init__(
        self,
        cluster: Cluster,
        operator: str,
        namespaces: Sequence[str],
        changed: Callable[[set[str]], None],
        known: Callable[[], Iterable[str]],
    ) -> None:
        self._cluster = cluster
        self.operator = operator
        self._namespaces = tuple(namespaces)
        self._changed = changed
        self._known = known
        self._claims = self._with_own(Claims())
        self._forbidden = False
        self._refused: frozenset[str] = frozenset()
        self._looked_for = set(namespaces)
        self._looking: asyncio.Task[None] | None = None

    async def elsewhere(self, namespace: str) -> str | None:
        """Return the other operator that serves this namespace; None if it is this one.

        Raises:
            ClusterError: the namespace is new, and the API server did not answer.
        """
        if namespace not in self._looked_for:
            # The claims of a new namespace may be newer than the last read. Concurrent callers share one read.
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self.look())
            await asyncio.shield(self._looking)
            self._looked_for.add(namespace)
        server = self._claims.server(namespace)
        return None if server == self.operator else server

    async def first(self) -> None:
        """Read the claims once. Retries until the API server has answered."""
        while True:
            try:
                return await self.look()
            except ClusterError as error:
                logger.warning(
                    "Reading the claims of the operators failed. Retrying.",
                    extra={"status": error.status, "detail": error.message},
                )
                await asyncio.sleep(error.retry_after or FIRST_AGAIN)

    async def run(self) -> None:
        """Read the claims periodically until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                await self.look()
            except ClusterError as error:
                logger.warning(
                    "Reading the claims of the operators failed.",
                    extra={"status": error.status, "detail": error.message},
                )
            except Exception:
                logger.exception("Reading the claims of the operators failed.")

    async def look(self) -> None:
        """Read the claims.

        Raises:
            ClusterError: the API server did not answer. The previous claims stay.
        """
        before = self._claims
        try:
            claims = await (self._of_listed() if self._namespaces else self._of_cluster())
            self._forbidden = False
        except ClusterError as error:
            if not error.forbidden:
                raise
            if not self._forbidden:
                logger.warning(
                    "No permission to read the claims of other operators. This operator serves all its namespaces.",
                    extra={"detail": error.message},
                )
            self._forbidden, claims = True, Claims()
        self._claims = claims = self._with_own(claims)
        self._looked_for.update(self._known())
        changed = {one for one in self._known() if claims.server(one) != before.server(one)}
        if changed:
            self._changed(changed)

    def _with_own(self, claims: Claims) -> Claims:
        """Add the implicit claim of an operator that the chart did not install: all that no other operator claims."""
        if self._namespaces:
            own = dict.fromkeys(self._namespaces, self.operator)
            return Claims(claims.labels, {**own, **claims.listed})
        return Claims(claims.labels, claims.listed, claims.everywhere or self.operator)

    async def _of_listed(self) -> Claims:
        claims = Claims()
        refusals: dict[str, ClusterError] = {}
        for namespace in self._namespaces:
            try:
                await self._add_claims_on(namespace, claims)
            except ClusterError as error:
                if not error.forbidden:
                    raise
                # A namespace is deleted with the Role in it. The claims on the other namespaces still count.
                refusals[namespace] = error
        if len(refusals) == len(self._namespaces):
            raise refusals[self._namespaces[0]]
        if refusals.keys() - self._refused:
            logger.warning(
                "No permission to read the claims on some namespaces. This operator serves them.",
                extra={"namespaces": sorted(refusals), "detail": next(iter(refusals.values())).message},
            )
        self._refused = frozenset(refusals)
        return claims

    async def _add_claims_on(self, namespace: str, claims: Claims) -> None:
        if (body := await self._get(namespace_path(namespace))) is not None:
            label = (body["metadata"].get("labels") or {}).get(LABEL_OPERATOR)
            if label:
                claims.labels[namespace] = label
        if (lease := await self._get(lease_path(namespace, CLAIM))) is not None:
            holder = _holder(lease)
            if holder:
                claims.listed[namespace] = holder

    async def _get(self, path: str) -> Object | None:
        try:
            return await self._cluster.get(path)
        except ClusterError as error:
            if error.not_found:
                return None
            raise

    async def _of_cluster(self) -> Claims:
        labelled = await self._cluster.get(namespaces_path(), labelSelector=LABEL_OPERATOR)
        # Selected by name, because RBAC restricts the permission to list Leases to this name.
        listed = await self._cluster.get(leases_path(), fieldSelector=f"metadata.name={CLAIM}")
        everywhere = await self._get(cluster_role_path(CLAIM)) or {"metadata": {}}
        return Claims(
            {
                one["metadata"]["name"]: label
                for one in labelled["items"]
                if (label := one["metadata"]["labels"].get(LABEL_OPERATOR))
            },
            {one["metadata"]["namespace"]: holder for one in listed["items"] if (holder := _holder(one))},
            (everywhere["metadata"].get("annotations") or {}).get(LABEL_OPERATOR, ""),
        )


def _holder(lease: Object) -> str:
    return str(lease["spec"].get("holderIdentity") or "")
