"""A model of the Kubernetes API server: objects, versions, server-side apply, watches that lag, and refusals.

Stored objects are never changed, only replaced, so that readers share them without a copy.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from tests.simulation.loop import Process, Stream
from tests.simulation.world import World
from tests.support.fakecluster import scale_of
from workqueue_operator.errors import ClusterError
from workqueue_operator.kube.client import CONNECTIONS, REQUEST_TIMEOUT, Cluster
from workqueue_operator.names import LABEL_WORKQUEUE

Object = dict[str, Any]
Key = tuple[str, str, str]
"""Plural, namespace, name."""

_PATH: Final = re.compile(
    r"/(?:api/v1|apis/[^/]+/[^/]+)(?:/namespaces/(?P<namespace>[^/]+)(?=/))?"
    r"/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?(?:(?P<status>/status)|/scale)?"
)
_DISCOVERY: Final = "/apis/workqueue.dev/v1alpha1"
_OURS: Final = frozenset(
    {"Ready", "QueueDeclared", "DepthKnown", "WorkloadApplied", "WorkersAvailable", "ScalingActive"}
)
_LISTED_LATER: Final = 0.5
"""Seconds after which a broken watch lists again."""


@dataclass
class Weather:
    """What is wrong with the API server now.

    Attributes:
        slow: seconds that each request takes longer.
        queues: seconds that each request waits before it is carried out, except for those of the leader election.
        down: whether no request is answered.
        loses_answers: the share of writes that are carried out and get no answer.
        refuses: the share of requests that get a 429 or a 500.
        refuses_statuses: whether each write of a status gets a 500.
        refuses_counts: how many of the next writes of a count get a 500; infinite: all.
        lag: seconds that each event of a watch comes later, at most.
        denies: for each rule, a function of plural, old and new object that returns the API server's words, or None.
    """

    slow: float = 0.0
    queues: float = 0.0
    down: bool = False
    loses_answers: float = 0.0
    refuses: float = 0.0
    refuses_statuses: bool = False
    refuses_counts: float = 0
    lag: float = 0.05
    denies: dict[str, Callable[[str, Object | None, Object], str | None]] = field(default_factory=dict)


class Watch:
    """One reader's stream of events of one kind, in order. It may lag, and break.

    Args:
        feed: called with the type of the event and the object.
        on_list: called after each LIST, as with kopf, whose LIST reports no deletions. Its objects have no type.
    """

    def __init__(
        self,
        world: World,
        server: ApiServer,
        plural: str,
        feed: Callable[[Any, Object], None],
        process: Process | None = None,
        *,
        on_list: Callable[[], None] | None = None,
    ) -> None:
        self._world = world
        self._server = server
        self._plural = plural
        self._feed = feed
        self._on_list = on_list
        self._process = process
        self._stream = Stream(world.loop, process)
        self._broken = False
        self._known: dict[Key, Object] = {}
        self.lag = 0.0
        """Seconds that its events come later at present."""

    def begin(self) -> None:
        """List everything, and follow the changes."""
        self._note_list()
        for key, body in self._server.of(self._plural):
            self._known[key] = body
            self._send(None if self._on_list else "ADDED", body)

    def notify(self, kind: str, key: Key, body: Object) -> None:
        """An object has changed."""
        if self._broken:
            return
        if kind == "DELETED":
            self._known.pop(key, None)
        else:
            self._known[key] = body
        self._send(kind, body)

    def break_off(self, seconds: float) -> None:
        """Lose all events for some seconds, as after a 410. Then list again."""
        if not self._broken:
            self._broken = True
            self._world.later(seconds, self._mend)

    def _mend(self) -> None:
        if self._server.weather.down:
            self._world.later(_LISTED_LATER, self._mend)
            return
        self._broken = False
        self._note_list()
        now = dict(self._server.of(self._plural))
        for key in [key for key in self._known if key not in now]:
            body = self._known.pop(key)
            if not self._on_list:
                self._send("DELETED", body)
        for key, body in now.items():
            if self._on_list or self._known.get(key) is not body:
                self._known[key] = body
                self._send(None if self._on_list else "MODIFIED", body)

    def _note_list(self) -> None:
        if self._on_list is not None and (self._process is None or self._process.alive):
            self._on_list()

    def _send(self, kind: str | None, body: Object) -> None:
        if self._process is not None and not self._process.alive:
            return
        weather, chance = self._server.weather, self._world.random
        seconds = 0.001 + chance.random() * weather.lag + self.lag
        self._stream.send(seconds, self._feed, kind, body)


class ApiServer:
    """The API server, and the objects."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.weather = Weather()
        self.objects: dict[Key, Object] = {}
        self._by_plural: dict[str, dict[Key, Object]] = {}
        self._paths: dict[str, tuple[str, str, str, bool]] = {}
        self._version = 100
        self._uids = 0
        self._watches: dict[str, list[Watch]] = {}
        self._owners_of_replicas: dict[Key, set[tuple[str, str]]] = {}
        self._status_fields: dict[Key, dict[str, set[str]]] = {}
        """The fields of a status that each manager has applied."""
        self.on_count_conflict: Callable[[str, Key], None] = lambda _writer, _key: None
        """Called with the writer and the key when a count differs from the one that a writer has tested."""
        self.on_write: list[Callable[[str, str, Key, Object | None, Object | None], None]] = []
        """Called with the writer, the verb, the key, the object before and after."""
        self.requests = 0
        self.writes = 0
        self.events: list[Object] = []

    # -- readers -------------------------------------------------------------------------------------

    def of(self, plural: str) -> list[tuple[Key, Object]]:
        """Return all objects of a kind."""
        return list(self._by_plural.get(plural, {}).items())

    def get(self, plural: str, namespace: str, name: str) -> Object | None:
        """Return an object."""
        return self.objects.get((plural, namespace, name))

    def watch(self, plural: str, feed: Callable[[Any, Object], None], **named: Any) -> Watch:
        """Begin a watch."""
        made = Watch(self._world, self, plural, feed, **named)
        self._watches.setdefault(plural, []).append(made)
        made.begin()
        return made

    def unwatch(self, watches: list[Watch]) -> None:
        """End watches."""
        for some in self._watches.values():
            some[:] = [one for one in some if one not in watches]

    # -- writers -------------------------------------------------------------------------------------

    def put(self, writer: str, key: Key, body: Object, *, status: bool = False) -> Object:
        """Store an object, as the API server does after admission. Returns the stored object."""
        plural, namespace, name = key
        before = self.objects.get(key)
        metadata = dict(body.get("metadata") or {})
        self._version += 1
        metadata |= {"name": name, "resourceVersion": str(self._version)}
        if namespace:
            metadata["namespace"] = namespace
        if before is None:
            self._uids += 1
            metadata |= {
                "uid": metadata.get("uid") or f"uid-{self._uids}",
                "creationTimestamp": self._world.timestamp(),
                "generation": 1,
            }
        else:
            old = before["metadata"]
            changed = not status and (
                (body.get("spec") is not before.get("spec") and body.get("spec") != before.get("spec"))
                or (plural == "deployments" and metadata.get("annotations") != old.get("annotations"))
            )
            metadata |= {
                "uid": old["uid"],
                "creationTimestamp": old["creationTimestamp"],
                "generation": old["generation"] + changed,
            }
        now = {**body, "metadata": metadata}
        if before is not None and _same(before, now):
            self._version -= 1
            return before
        released = metadata.get("deletionTimestamp") and not metadata.get("finalizers")
        if before is not None and released and plural != "pods":
            self._remove(writer, key, now)
            return now
        self.objects[key] = now
        self._by_plural.setdefault(plural, {})[key] = now
        self._tell(writer, "MODIFIED" if before is not None else "ADDED", key, before, now)
        return now

    def change(
        self, writer: str, key: Key, change: Callable[[Object], Object], *, status: bool = False
    ) -> Object | None:
        """Store a changed object, if it exists."""
        before = self.objects.get(key)
        return None if before is None else self.put(writer, key, change(before), status=status)

    def delete(self, writer: str, key: Key) -> None:
        """Delete an object. One with a finalizer, and a pod, stays until it is released."""
        body = self.objects.get(key)
        if body is None or body["metadata"].get("deletionTimestamp"):
            return
        if key[0] == "pods" or body["metadata"].get("finalizers"):
            metadata = {**body["metadata"], "deletionTimestamp": self._world.timestamp()}
            self.put(writer, key, {**body, "metadata": metadata})
        else:
            self._remove(writer, key, body)

    def remove(self, writer: str, key: Key) -> None:
        """Remove an object immediately."""
        body = self.objects.get(key)
        if body is not None:
            self._remove(writer, key, body)

    def _remove(self, writer: str, key: Key, body: Object) -> None:
        before = self.objects.pop(key)
        del self._by_plural[key[0]][key]
        self._owners_of_replicas.pop(key, None)
        self._status_fields.pop(key, None)
        self._version += 1
        gone = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self._version)}}
        self._tell(writer, "DELETED", key, before, gone)

    def _tell(self, writer: str, kind: str, key: Key, before: Object | None, after: Object) -> None:
        for watch in self._watches.get(key[0], ()):
            watch.notify(kind, key, after)
        for heard in self.on_write:
            heard(writer, kind, key, before, None if kind == "DELETED" else after)

    # -- requests ------------------------------------------------------------------------------------

    async def request(
        self, writer: str, method: str, path: str, query: Mapping[str, str], body: Any, content_type: str
    ) -> Object:
        """Carry out one request of a client."""
        weather, chance = self.weather, self._world.random
        self.requests += 1
        there, back = 0.001 + 0.004 * chance.random(), 0.001 + 0.004 * chance.random()
        if weather.queues and "/leases/" not in path:
            there += weather.queues
        if weather.slow:
            there += weather.slow * chance.random()
            back += weather.slow * chance.random()
        if weather.down:
            # A server that is down refuses the connection, or its packets are lost.
            await asyncio.sleep(0.005 if chance.random() < 0.5 else REQUEST_TIMEOUT)
            raise ClusterError(0, "the API server did not answer: connection refused")
        if there >= REQUEST_TIMEOUT:
            self._world.later(there, self._execute_late, writer, method, path, query, body, content_type)
            await asyncio.sleep(REQUEST_TIMEOUT)
            raise ClusterError(0, "the API server did not answer: TimeoutError()")
        await asyncio.sleep(there)
        if weather.refuses and chance.random() < weather.refuses:
            await asyncio.sleep(back)
            if chance.random() < 0.5:
                raise ClusterError(429, "too many requests", retry_after=float(chance.choice([1, 1, 2, 5])))
            raise ClusterError(500, "etcdserver: request timed out")
        if self._refuses_kind(path, content_type):
            await asyncio.sleep(back)
            raise ClusterError(500, "etcdserver: request timed out")
        answer = self.execute(writer, method, path, query, body, content_type)
        lost = method != "GET" and weather.loses_answers and chance.random() < weather.loses_answers
        if lost or there + back >= REQUEST_TIMEOUT or (weather.down and chance.random() < 0.5):
            await asyncio.sleep(REQUEST_TIMEOUT - there)
            raise ClusterError(0, "the API server did not answer: TimeoutError()")
        await asyncio.sleep(back)
        return answer

    def _refuses_kind(self, path: str, content_type: str) -> bool:
        weather = self.weather
        if weather.refuses_counts and content_type.startswith("application/json-patch"):
            weather.refuses_counts -= 1
            return True
        return weather.refuses_statuses and path.endswith("/status")

    def _execute_late(self, *arguments: Any) -> None:
        with contextlib.suppress(ClusterError):
            self.execute(*arguments)

    def execute(  # noqa: PLR0911 - one return for each verb
        self, writer: str, method: str, path: str, query: Mapping[str, str], body: Any, content_type: str
    ) -> Object:
        """Carry out one request now.

        Raises:
            ClusterError: refused.
        """
        if path == _DISCOVERY:
            return {"resources": [{"name": "workqueues"}]}
        plural, namespace, name, status = self._parsed(path)
        if method == "GET":
            return self._get(plural, namespace, name) if name else self._list(plural, namespace, query)
        self.writes += 1
        if method == "POST":
            return self._create(writer, plural, namespace, body)
        key = (plural, namespace, name)
        if content_type.startswith("application/apply-patch"):
            return self._apply(writer, key, body, query, status=status)
        before = self.objects.get(key)
        if before is None:
            raise ClusterError(404, f'{plural} "{name}" not found')
        if method == "PUT":
            _require_version(before, body)
            return self.put(writer, key, body)
        if content_type.startswith("application/json-patch"):
            return self._json_patch(writer, key, before, body)
        _require_version(before, body)
        after = _merged(before, body)
        self._admit(plural, before, after)
        return self.put(writer, key, after)

    def _parsed(self, path: str) -> tuple[str, str, str, bool]:
        known = self._paths.get(path)
        if known is None:
            found = _PATH.fullmatch(path)
            assert found is not None, path
            known = self._paths[path] = (
                found["plural"],
                found["namespace"] or "",
                found["name"] or "",
                bool(found["status"]),
            )
        return known

    def _get(self, plural: str, namespace: str, name: str) -> Object:
        found = self.objects.get((plural, namespace, name))
        if found is None:
            raise ClusterError(404, f'{plural} "{name}" not found')
        return found

    def _list(self, plural: str, namespace: str, query: Mapping[str, str]) -> Object:
        label = query.get("labelSelector")
        fields = query.get("fieldSelector", "")
        items = [body for key, body in self.of(plural) if namespace in {"", key[1]}]
        if label is not None:
            items = [body for body in items if label in (body["metadata"].get("labels") or {})]
        if fields.startswith("metadata.name="):
            items = [body for body in items if body["metadata"]["name"] == fields.partition("=")[2]]
        elif fields:
            items = [body for body in items if body.get("spec", {}).get("unschedulable")]
        return {"items": items, "metadata": {}}

    def _create(self, writer: str, plural: str, namespace: str, body: Object) -> Object:
        metadata = body["metadata"]
        if plural == "events":
            self.events.append(body)
            return body
        key = (plural, namespace, metadata["name"])
        self._admit(plural, None, body)
        if key in self.objects:
            raise ClusterError(409, f'{plural} "{metadata["name"]}" already exists')
        return self.put(writer, key, body)

    def _admit(self, plural: str, before: Object | None, after: Object) -> None:
        for denies in self.weather.denies.values():
            if (words := denies(plural, before, after)) is not None:
                raise ClusterError(403, words)

    def _json_patch(self, writer: str, key: Key, before: Object, operations: list[Object]) -> Object:
        test, replace = operations
        if scale_of(before)["spec"] != test["value"]:
            self.on_count_conflict(writer, key)
            raise ClusterError(422, "the server rejected our request: testing value /spec failed")
        after = {**before, "spec": {**before["spec"], **replace["value"]}}
        self._admit(key[0], before, after)
        self._owners_of_replicas.setdefault(key, set()).add((writer, "Update"))
        return scale_of(self.put(writer, key, after))

    def _apply_status(
        self, writer: str, key: Key, before: Object | None, status: Object, manager: str
    ) -> Object:
        if before is None:
            raise ClusterError(404, "not found")
        old = before.get("status") or {}
        fields = self._status_fields.setdefault(key, {})
        removed = fields.get(manager, set()) - status.keys()
        fields[manager] = set(status)
        new = {**{name: value for name, value in old.items() if name not in removed}, **status}
        if "conditions" in status:
            others = [one for one in old.get("conditions", ()) if one["type"] not in _OURS]
            new["conditions"] = [*status["conditions"], *others]
        return self.put(writer, key, {**before, "status": new}, status=True)

    def _apply(
        self, writer: str, key: Key, body: Object, query: Mapping[str, str], *, status: bool
    ) -> Object:
        before = self.objects.get(key)
        uid = body["metadata"].get("uid")
        if uid is not None and (before is None or before["metadata"]["uid"] != uid):
            raise ClusterError(409 if before is not None else 404, "uid mismatch")
        if status:
            return self._apply_status(writer, key, before, body["status"], query["fieldManager"])
        if key[0] != "deployments":
            after = body if before is None else _overlaid(before, body)
            self._admit(key[0], before, after)
            return self.put(writer, key, after)
        manager, force = query["fieldManager"], query["force"] == "true"
        owners = self._owners_of_replicas.setdefault(key, set())
        applies = (manager, "Apply")
        if "replicas" in body["spec"]:
            others_own = owners - {applies}
            differs = before is not None and before["spec"].get("replicas", 1) != body["spec"]["replicas"]
            if others_own and differs and not force:
                raise ClusterError(409, "Apply failed with 1 conflict: .spec.replicas")
            owners.add(applies)
        elif applies in owners:
            owners.discard(applies)
        if before is None:
            after = {**body, "spec": {"replicas": 1, **body["spec"]}}
        else:
            if (
                not force
                and "template" in body["spec"]
                and (before["spec"].get("selector") != body["spec"].get("selector") or not owners - {applies})
            ):
                same = before["spec"].get("template") == body["spec"]["template"]
                if not same:
                    raise ClusterError(409, "Apply failed with conflicts")
            after = _overlaid(before, body)
            if "replicas" not in body["spec"] and not owners:
                after["spec"] = {**after["spec"], "replicas": 1}
        self._admit(key[0], before, after)
        return self.put(writer, key, after)


def _require_version(before: Object, body: Object) -> None:
    given = body.get("metadata") or {}
    version, uid = given.get("resourceVersion"), given.get("uid")
    if version is not None and version != before["metadata"]["resourceVersion"]:
        raise ClusterError(409, "the object has been modified")
    if uid is not None and uid != before["metadata"]["uid"]:
        raise ClusterError(409, "Precondition failed: UID in precondition")


def _merged(before: Any, patch: Any) -> Any:
    """A JSON merge patch."""
    if not isinstance(patch, dict):
        return patch
    result = dict(before) if isinstance(before, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = _merged(result.get(name), value)
    return result


def _overlaid(before: Any, body: Any) -> Any:
    """What an apply leaves: its fields, and beside them the fields of others."""
    if not (isinstance(before, dict) and isinstance(body, dict)):
        return body
    return {**before, **{name: _overlaid(before.get(name), value) for name, value in body.items()}}


def _same(before: Object, after: Object) -> bool:
    one, other = before["metadata"], after["metadata"]
    return (
        before.keys() == after.keys()
        and one.keys() == other.keys()
        and all(one[name] == value for name, value in other.items() if name != "resourceVersion")
        and all(before[name] == value for name, value in after.items() if name != "metadata")
    )


class ModelCluster(Cluster):
    """The operator's client of the model."""

    def __init__(
        self,
        server: ApiServer,
        writer: str,
        fence: Callable[[], None] = lambda: None,
        connections: int = CONNECTIONS,
        on_request: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(cast("Any", None), fence, connections, on_request)
        self._server = server
        self._writer = writer

    async def _request_now(
        self, method: str, path: str, query: Mapping[str, str], body: Any, content_type: str
    ) -> Object:
        if method != "GET":
            self._fence()
        self._on_request()
        return await self._server.request(self._writer, method, path, query, body, content_type)

    async def close(self) -> None:
        """Nothing is open."""


def labelled(body: Object) -> str | None:
    """The WorkQueue that an object's label names."""
    name: str | None = (body["metadata"].get("labels") or {}).get(LABEL_WORKQUEUE)
    return name
