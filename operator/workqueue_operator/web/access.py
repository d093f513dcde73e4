"""Who may look, and at what: asked of the cluster by TokenReview and SubjectAccessReview.

Place in the flow: `server` asks for each request. Whoever may list WorkQueues with kubectl may see them here, and
nobody else. Answers are kept for a minute, so that a page costs the API server next to nothing, and a right that
was taken away is gone within that minute.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from workqueue_operator.kube.client import Cluster
from workqueue_operator.names import GROUP, PAGE_AUDIENCE, PLURAL

KEPT_SECONDS: Final = 60.0
KEPT: Final = 2_000
AT_ONCE: Final = 2
WAITING: Final = 50
"""Guessing tokens must not hold up the operator's own requests: so many are asked at once, and wait."""

T = TypeVar("T")


class TooManyError(Exception):
    """So many people ask that the next one has to come again."""


@dataclass(frozen=True, slots=True)
class Person:
    """Who a token belongs to, as the cluster says; this is what a SubjectAccessReview is asked with."""

    name: str
    uid: str
    groups: tuple[str, ...]
    extra: tuple[tuple[str, tuple[str, ...]], ...]


class Access:
    """Asks the cluster.

    Args:
        clock: seconds that only go forward.
        audience: what a token must have been made for. One for this page is worth nothing at the API server, and one
            for the API server is not accepted here.

    Attributes:
        audience: the same.
    """

    def __init__(self, cluster: Cluster, clock: Any = time.monotonic, audience: str = PAGE_AUDIENCE) -> None:
        self.audience = audience
        self._cluster = cluster
        self._clock = clock
        self._people: OrderedDict[bytes, tuple[float, Person | None]] = OrderedDict()
        self._rights: OrderedDict[tuple[Person, str], tuple[float, bool]] = OrderedDict()
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0

    async def person(self, token: str) -> Person | None:
        """Whose token this is; None when the cluster does not know it.

        Raises:
            ClusterError: the cluster gave no answer.
            TooManyError: too many are waiting for theirs.
        """
        key = hashlib.sha256(token.encode()).digest()
        known = self._kept(self._people, key)
        if known is not None:
            return known[1]
        spec = {"token": token, "audiences": [self.audience]}
        answer = await self._ask("authentication.k8s.io/v1/tokenreviews", spec)
        status = answer.get("status") or {}
        # An API server that does not know audiences says so by naming none.
        good = status.get("authenticated") and self.audience in (status.get("audiences") or ())
        found = _person(status["user"]) if good and "user" in status else None
        self._keep(self._people, key, found)
        return found

    async def may_list(self, person: Person, namespace: str = "") -> bool:
        """Whether a person may list WorkQueues in a namespace; in all, when none is named.

        Raises:
            ClusterError, TooManyError: as `person`.
        """
        key = (person, namespace)
        known = self._kept(self._rights, key)
        if known is not None:
            return known[1]
        resource = {"group": GROUP, "resource": PLURAL, "verb": "list"}
        answer = await self._ask(
            "authorization.k8s.io/v1/subjectaccessreviews",
            {
                "user": person.name,
                "uid": person.uid,
                "groups": list(person.groups),
                "extra": {name: list(values) for name, values in person.extra},
                "resourceAttributes": resource | ({"namespace": namespace} if namespace else {}),
            },
        )
        allowed = bool((answer.get("status") or {}).get("allowed"))
        self._keep(self._rights, key, allowed)
        return allowed

    async def namespaces(self, person: Person, there: Iterable[str]) -> frozenset[str]:
        """Those of the namespaces whose WorkQueues a person may list.

        Raises:
            ClusterError, TooManyError: as `person`.
        """
        names = frozenset(there)
        if await self.may_list(person):
            return names
        return frozenset([name for name in sorted(names) if await self.may_list(person, name)])

    async def _ask(self, resource: str, spec: dict[str, Any]) -> dict[str, Any]:
        if self._waiting >= WAITING:
            raise TooManyError
        group, version, plural = resource.split("/")
        kind = "TokenReview" if plural == "tokenreviews" else "SubjectAccessReview"
        body = {"apiVersion": f"{group}/{version}", "kind": kind, "spec": spec}
        self._waiting += 1
        try:
            async with self._turn:
                return await self._cluster.create(f"/apis/{resource}", body)
        finally:
            self._waiting -= 1

    def _kept(self, cache: OrderedDict[Any, tuple[float, T]], key: object) -> tuple[float, T] | None:
        found = cache.get(key)
        return found if found is not None and self._clock() - found[0] < KEPT_SECONDS else None

    def _keep(self, cache: OrderedDict[Any, tuple[float, T]], key: object, value: T) -> None:
        cache[key] = (self._clock(), value)
        cache.move_to_end(key)
        while len(cache) > KEPT:
            cache.popitem(last=False)


def _person(user: dict[str, Any]) -> Person:
    extra = user.get("extra") or {}
    return Person(
        name=user.get("username", ""),
        uid=user.get("uid", ""),
        groups=tuple(user.get("groups") or ()),
        extra=tuple((name, tuple(values)) for name, values in sorted(extra.items())),
    )
