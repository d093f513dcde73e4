"""Authentication by TokenReview and authorization by SubjectAccessReview.

Users see the WorkQueues that they may list with kubectl. Answers are cached for a minute, to spare the API server. A
revoked permission takes effect within that minute.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

from workqueue_operator.kube.client import Cluster
from workqueue_operator.names import GROUP, PLURAL

AUDIENCE: Final = "workqueue-page"
"""Default audience of the tokens that users log in with."""

KEPT_SECONDS: Final = 60.0
TOKENS_KEPT: Final = 2_000
RIGHTS_KEPT: Final = 50_000
"""Of all users together, in about 15 MiB. A user of single namespaces has one for each namespace with WorkQueues."""

AT_ONCE: Final = 2
WAITING: Final = 100
"""Limits of concurrent and of waiting requests, so that token guessing does not load the API server. After a restart,
all browsers ask in the same moment."""

T = TypeVar("T")


class TooManyError(Exception):
    """Too many requests are waiting. The user has to retry."""


@dataclass(frozen=True, slots=True)
class Person:
    """The user of a token, as in the TokenReview. A SubjectAccessReview needs all these fields."""

    name: str
    uid: str
    groups: tuple[str, ...]
    extra: tuple[tuple[str, tuple[str, ...]], ...]


class Right(NamedTuple):
    """A right of Kubernetes' RBAC. An empty namespace or name means all."""

    verb: str
    group: str
    resource: str
    namespace: str = ""
    name: str = ""

    @property
    def attributes(self) -> dict[str, str]:
        """The attributes in a SubjectAccessReview. The core group is empty there, too."""
        given = {"namespace": self.namespace, "name": self.name}
        attributes = {"group": self.group, "resource": self.resource, "verb": self.verb}
        return attributes | {field: value for field, value in given.items() if value}

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}{f' {self.name}' if self.name else ''}"


class Access:
    """Asks the cluster who a user is and what they may see.

    Args:
        clock: a monotonic clock, in seconds.
        audience: the required audience of tokens. The API server refuses tokens for this audience, and this page
            refuses tokens for the API server.

    Attributes:
        audience: as above.
    """

    def __init__(self, cluster: Cluster, clock: Any = time.monotonic, audience: str = AUDIENCE) -> None:
        self.audience = audience
        self._cluster = cluster
        self._clock = clock
        self._people: OrderedDict[bytes, tuple[float, Person | None]] = OrderedDict()
        self._rights: OrderedDict[Person, dict[Right, tuple[float, bool]]] = OrderedDict()
        self._rights_kept = 0
        self._asking: dict[Hashable, asyncio.Task[Any]] = {}
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0

    async def person(self, token: str) -> Person | None:
        """Return the user of a token; None if the token is not valid.

        Raises:
            ClusterError: the API server did not answer.
            TooManyError: too many requests are waiting.
        """
        if not (token.isascii() and token.isprintable()):
            return None  # also bytes of a header that are no text
        key = hashlib.sha256(token.encode()).digest()
        known = self._people.get(key)
        if known is not None and self._is_current(known[0]):
            return known[1]
        return await self._shared(key, lambda: self._review(token, key))

    async def _review(self, token: str, key: bytes) -> Person | None:
        spec = {"token": token, "audiences": [self.audience]}
        answer = await self._ask("authentication.k8s.io/v1/tokenreviews", spec)
        status = answer.get("status") or {}
        # An API server without support for audiences returns none.
        good = status.get("authenticated") and self.audience in (status.get("audiences") or ())
        found = _person(status["user"]) if good and "user" in status else None
        self._people[key] = (self._clock(), found)
        self._people.move_to_end(key)
        while len(self._people) > TOKENS_KEPT:
            self._people.popitem(last=False)
        return found

    async def may_list(self, person: Person, namespace: str = "") -> bool:
        """Return whether a user may list WorkQueues in a namespace; without one, in all namespaces.

        Raises:
            ClusterError, TooManyError: as `person`.
        """
        return await self.may(person, Right("list", GROUP, PLURAL, namespace))

    async def may(self, person: Person, right: Right, *, fresh: bool = False) -> bool:
        """Return whether a user has a right.

        Args:
            fresh: whether to ask the API server now, as before each change.

        Raises:
            ClusterError, TooManyError: as `person`.
        """
        if fresh:
            return await self._review_right(person, right)
        known = self._rights.get(person, {}).get(right)
        if known is not None and self._is_current(known[0]):
            return known[1]
        return await self._shared((person, right), lambda: self._review_right(person, right))

    async def _review_right(self, person: Person, right: Right) -> bool:
        answer = await self._ask(
            "authorization.k8s.io/v1/subjectaccessreviews",
            {
                "user": person.name,
                "uid": person.uid,
                "groups": list(person.groups),
                "extra": {name: list(values) for name, values in person.extra},
                "resourceAttributes": right.attributes,
            },
        )
        status = answer.get("status") or {}
        allowed = bool(status.get("allowed")) and not status.get("denied")
        self._keep(person, right, allowed=allowed)
        return allowed

    async def namespaces(self, person: Person, there: Iterable[str]) -> frozenset[str]:
        """Return the namespaces whose WorkQueues a user may list.

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

    async def _shared(self, key: Hashable, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Ask once for all that want the same answer: the open pages of a user ask in the same moment."""
        task: asyncio.Task[T] | None = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.create_task(ask())
            task.add_done_callback(lambda done: self._on_answer(key, done))
        return await asyncio.shield(task)

    def _on_answer(self, key: Hashable, done: asyncio.Task[Any]) -> None:
        del self._asking[key]
        if not done.cancelled():
            done.exception()  # otherwise asyncio logs it if all browsers have gone away

    def _is_current(self, at: float) -> bool:
        return bool(self._clock() - at < KEPT_SECONDS)

    def _keep(self, person: Person, right: Right, *, allowed: bool) -> None:
        rights = self._rights.setdefault(person, {})
        self._rights.move_to_end(person)
        self._rights_kept -= rights.pop(right, None) is not None
        rights[right] = (self._clock(), allowed)
        self._rights_kept += 1
        while self._rights_kept > RIGHTS_KEPT and len(self._rights) > 1:
            _, forgotten = self._rights.popitem(last=False)
            self._rights_kept -= len(forgotten)
        while self._rights_kept > RIGHTS_KEPT:
            # All of one user, who has looked at ever new WorkQueues. The oldest answer comes first.
            del rights[next(iter(rights))]
            self._rights_kept -= 1


def _person(user: dict[str, Any]) -> Person:
    extra = user.get("extra") or {}
    return Person(
        name=user.get("username", ""),
        uid=user.get("uid", ""),
        groups=tuple(user.get("groups") or ()),
        extra=tuple((name, tuple(values)) for name, values in sorted(extra.items())),
    )
