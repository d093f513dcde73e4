"""The web page as a site for tests: its server, with an API server and a RabbitMQ that the test controls."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from playwright.async_api import Browser

from tests.support.browser import Seen, looking
from tests.support.fakecluster import FakeCluster, Request
from workqueue_operator.errors import ClusterError
from workqueue_operator.kube.store import Store
from workqueue_operator.names import EVENT_REPORTER
from workqueue_operator.workers.client import Workers
from workqueue_web.access import Access
from workqueue_web.actions import Actions
from workqueue_web.dead_letters import ChangedError, Outcome, Reasons
from workqueue_web.decisions import Decisions
from workqueue_web.operator_lease import OperatorLease
from workqueue_web.sampler import Sampler
from workqueue_web.server import Page, PageDependencies

LOOPBACK = "127.0.0.1"
EVIL = '<img src=x onerror="alert(1)"><script>alert(2)</script>'
TOKENS = {"admins": "admin", "shops": "shop-reader", "nobodys": "nobody"}


def workqueue(name: str, namespace: str = "shop", version: int = 1, **status: Any) -> dict[str, Any]:
    said = {"Ready": "True", "DepthKnown": "True", "ScalingActive": "True"} | status.pop("conditions", {})
    message = status.pop("message", "So it is.")
    reason = status.pop("reason", "AsExpected")
    return {
        "apiVersion": "workqueue.dev/v1alpha1",
        "kind": "WorkQueue",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{namespace}-{name}",
            "resourceVersion": str(version),
            "generation": 1,
            "creationTimestamp": "2026-11-24T00:00:00Z",
        },
        "spec": {
            "connectionSecretRef": {"name": "rabbitmq"},
            "worker": {"image": "x:1", "handler": {"python": "a:b"}},
            "scaling": {"maxReplicas": 8},
        },
        "status": {
            "messages": 0,
            "deadLetters": 0,
            "readyReplicas": 1,
            "desiredReplicas": 2,
            "busyReplicas": 1,
            **status,
            "conditions": [
                {"type": kind, "status": holds, "reason": reason, "message": message}
                for kind, holds in said.items()
            ],
        },
    }


def pod(name: str, workqueue: str, ip: str, namespace: str = "shop") -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{namespace}-{name}",
            "resourceVersion": "1",
            "creationTimestamp": "2026-11-24T00:00:00Z",
            "labels": {"workqueue.dev/workqueue": workqueue},
        },
        "spec": {"nodeName": "node"},
        "status": {
            "podIP": ip,
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "worker", "state": {"running": {}}, "ready": True}],
        },
    }


BrowserSource = Callable[[], Awaitable[Browser]]
"""Returns the browser, which starts at the first call."""


class Letters:
    """Replaces RabbitMQ: tests/e2e/test_page.py has the real one."""

    def __init__(self) -> None:
        self.found = Reasons((("Rejected", 3), ("TimedOut", 1)), 4, 9, read_at=1_800_000_000.0)
        self.number = 4
        self.settled: list[str] = []
        self.errors: tuple[str, ...] = ()

    async def reasons(self, _: object) -> Reasons:
        return self.found

    async def count(self, _: object) -> int:
        return self.number

    async def replay(self, _: object, expected: int) -> Outcome:
        return self._settle("replay", expected)

    async def purge(self, _: object, expected: int) -> Outcome:
        return self._settle("purge", expected)

    def _settle(self, what: str, expected: int) -> Outcome:
        if expected != self.number:
            raise ChangedError(f"there were {expected}, and now there are {self.number}")
        if self.errors:
            return Outcome(1, self.errors)
        self.settled.append(what)
        self.number = 0
        return Outcome(expected)


class Site:
    """A page with its parts.

    Attributes:
        rights: (user, namespace) pairs that may list; an empty namespace means all.
        changers: users who may patch WorkQueues.
        secret_readers: users who may get Secrets.
        patches: the JSON Patches of WorkQueues that the API server has accepted.
        now: the clock for the cache of `access`, and of the operator's Lease.
        renewed: the renewTime of that Lease.
    """

    def __init__(self, workers: Workers, browser: BrowserSource) -> None:
        self.browser = browser
        self.cluster = FakeCluster()
        self.cluster.answer("POST", "tokenreviews", self._token_review)
        self.cluster.answer("POST", "subjectaccessreviews", self._access_review)
        self.cluster.answer("GET", "/events", self._list_events)
        self.cluster.answer("POST", "/events", self._create_event)
        self.cluster.answer("PATCH", "/workqueues/", self._patch)
        self.cluster.answer("GET", "/leases/", lambda _: {"spec": {"renewTime": self.renewed}})
        self.rights = {("admin", ""), ("shop-reader", "shop")}
        self.changers = {"admin"}
        self.secret_readers = {"admin"}
        self.patches: list[Any] = []
        self.written: list[dict[str, Any]] = []
        self.renewed = "2026-11-24T00:00:00.000000Z"
        self.tokens = dict(TOKENS)
        self.now = 1000.0
        self.store = Store(lambda _: None)
        self.sampler = Sampler(self.store, workers)
        self.letters = Letters()
        self.events: list[dict[str, Any]] = []
        self.decisions = Decisions(self.cluster)
        # The other replica of a release that offers no actions.
        self.page, self.other_replica = self._replica(), self._replica(actions=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.page.port}"

    def _replica(self, *, actions: bool = True) -> Page:
        access = Access(self.cluster, lambda: self.now)
        letters: Any = self.letters
        parts = PageDependencies(
            self.store,
            self.sampler,
            access,
            self.decisions,
            letters,
            OperatorLease(self.cluster, "system", "jobs", lambda: self.now),
            Actions(self.cluster, access, letters, "page-1") if actions else None,
            "https://runbooks.example",
        )
        return Page(0, parts, LOOPBACK)

    def decided(self, *words: str, warning: bool = False, second: int = 0) -> None:
        """Add an Event: action, reason, note."""
        action, reason, note = words
        self.events.append(
            {
                "metadata": {"creationTimestamp": None},
                "eventTime": f"2026-11-24T00:00:{second:02}.000000Z",
                "type": "Warning" if warning else "Normal",
                "action": action,
                "reason": reason,
                "note": note,
                "reportingController": EVENT_REPORTER,
            }
        )

    def _list_events(self, request: Request) -> dict[str, Any]:
        assert request.query["fieldSelector"].startswith("regarding.uid=uid-")
        # The API server returns them in the order of their random names.
        start = int(request.query.get("continue") or 0)
        rest = str(start + 10) if start + 10 < len(self.events) else ""
        shuffled = sorted(self.events, key=lambda event: hash(event["note"]))
        return {"items": shuffled[start : start + 10], "metadata": {"continue": rest}}

    def put(self, *bodies: dict[str, Any]) -> None:
        for body in bodies:
            self.store.put_workqueue(body)

    def _token_review(self, request: Request) -> dict[str, Any]:
        asked = request.body["spec"]
        user = self.tokens.get(asked["token"])
        if user is None:
            return {"status": {"authenticated": False, "error": "unknown"}}
        person = {"username": user, "groups": ["people"]}
        return {"status": {"authenticated": True, "audiences": asked["audiences"], "user": person}}

    def _access_review(self, request: Request) -> dict[str, Any]:
        spec = request.body["spec"]
        assert spec["groups"] == ["people"]
        attributes = spec["resourceAttributes"]
        user, namespace = spec["user"], attributes.get("namespace", "")
        allowed = {
            ("workqueue.dev", "workqueues", "list"): (user, namespace) in self.rights,
            ("workqueue.dev", "workqueues", "patch"): user in self.changers and bool(attributes.get("name")),
            ("", "secrets", "get"): user in self.secret_readers and attributes.get("name") == "rabbitmq",
        }
        asked = attributes["group"], attributes["resource"], attributes["verb"]
        return {"status": {"allowed": allowed[asked]}}

    def _create_event(self, request: Request) -> Any:
        name = request.body["metadata"].get("name")
        if name is not None and name in [event["metadata"].get("name") for event in self.written]:
            return ClusterError(409, f'events.events.k8s.io "{name}" already exists')
        self.written.append(request.body)
        return dict(request.body)

    def _patch(self, request: Request) -> Any:
        """Apply a JSON Patch to the store, as the API server does."""
        namespace, name = request.path.split("/")[5], request.path.split("/")[7]
        found = self.store.workqueue((namespace, name))
        if found is None:
            return ClusterError(404, "not found")
        for operation in request.body:
            *way, last = operation["path"].strip("/").split("/")
            at = found
            for step in way:
                at = at[step]
            if operation["op"] == "test" and at.get(last) != operation["value"]:
                return ClusterError(422, f"testing path {operation['path']}: test failed")
            if operation["op"] == "add":
                at[last] = operation["value"]
            if operation["op"] == "remove":
                del at[last]
        found["metadata"]["generation"] += 1
        found["metadata"]["resourceVersion"] = str(int(found["metadata"]["resourceVersion"]) + 1)
        self.store.put_workqueue(found)
        self.patches.append((request.query["fieldManager"], request.body[-1]))
        return found


@asynccontextmanager
async def logged_in(site: Site, token: str = "admins", url: str = "", **options: Any) -> AsyncIterator[Seen]:
    async with looking(await site.browser(), **options) as seen:
        await seen.page.goto(url or site.url)
        await seen.page.get_by_label("Token").fill(token)
        await seen.page.get_by_role("button", name="Log in").click()
        yield seen
