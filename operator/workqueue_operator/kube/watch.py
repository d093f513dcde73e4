"""The callbacks of kopf. Each event updates the store, which enqueues the affected WorkQueues.

Callbacks of `on.event` return None and store nothing in the object, so kopf writes nothing and sets no finalizer.
Each callback names its API group. Otherwise kopf would discover all API groups at start, and one broken aggregated
API would prevent the start.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import Any, Final, cast

from workqueue_operator.backoff import delay
from workqueue_operator.kube.light_imports import ResourceMemories, ResourceMemory, kopf
from workqueue_operator.kube.resync import PATHS
from workqueue_operator.kube.store import Store
from workqueue_operator.light_aiohttp import aiohttp
from workqueue_operator.names import EVENT_REPORTER, GROUP, LABEL_WORKQUEUE, PLURAL, VERSION

logger = logging.getLogger(__name__)

INACTIVITY_SECONDS: Final = 70.0
IDLE_SECONDS: Final = 0.1

CHUNK: Final = 20
"""Objects per response to a LIST of kopf, which parses each of them into about 70 KiB. No doorbell waits for them."""

STOP_SECONDS: Final = 5.0
"""Time that kopf gets to stop."""

_RESOURCES: Final = {
    "workqueues": (GROUP, VERSION, PLURAL),
    "deployments": ("apps", "v1", "deployments"),
    "pods": ("", "v1", "pods"),
}


LOGIN_SECONDS: Final = 1.0
"""Minimum pause between two logins. Each login follows a 401."""

LOGIN_AGAIN: Final = 5.0
"""Seconds after a login that failed, as with a certificate that is being replaced."""

EXPIRED_AGAIN: Final = (1.0, 60.0)
"""Seconds: the first and the longest pause after a LIST whose version has expired."""


def _session(login: kopf.ConnectionInfo, on_list: Callable[[], None]) -> kopf.AiohttpSession:
    """Return a login with an HTTP session of our own.

    - kopf has no callback for the end of a LIST, and none at all for a LIST without objects.
    - kopf stops when the version of a LIST expires between two chunks, as on a slow API server. Here it lists again
      after a pause.
    - kopf stops when a new login equals a refused one, although an API server may answer 401 only briefly. No session
      equals another one.
    - Certificates are verified as Go does: those of many clusters lack extensions that Python requires since 3.13.

    Args:
        on_list: called after each response to a LIST.
    """

    expired = Counter[str]()

    async def responded(_session: Any, _context: Any, request: aiohttp.TraceRequestEndParams) -> None:
        path, query, response = request.url.path, request.url.query, request.response
        if "watch" in query and response.ok:
            expired.pop(path, None)
        # Of kopf's requests, only a LIST has a limit (`CHUNK`).
        if "limit" in query and response.ok:
            on_list()
        if "limit" in query and response.status == HTTPStatus.GONE:
            response.close()
            expired[path] += 1
            pause = delay(expired[path], *EXPIRED_AGAIN)
            logger.warning(
                "The API server forgets the version of a LIST before kopf has read all of it.",
                extra={"path": path, "again_in_seconds": round(pause, 1)},
            )
            await asyncio.sleep(pause)
            # kopf lists again after an interrupted response.
            raise aiohttp.ClientPayloadError("the version of the LIST has expired")

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(responded)
    context = login.as_ssl_context()
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    session = aiohttp.ClientSession(
        # Each watch holds a connection.
        connector=aiohttp.TCPConnector(limit=0, ssl=context),
        headers=login.as_http_headers(),
        proxy=login.proxy_url,
        trust_env=login.trust_env,
        trace_configs=[trace],
    )
    return kopf.AiohttpSession(
        server=login.server, default_namespace=login.default_namespace, aiohttp_session=session
    )


class _NoDifferences(kopf.DiffBaseStorage):
    """No diffs: no callback uses them, and kopf would copy every object twice."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Return nothing to compare."""
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        """Return no earlier state."""

    def store(self, **_: Any) -> None:
        """Store nothing."""


class NoMemories(ResourceMemories):
    """Remembers no object. kopf would keep 1 KiB for each, for resuming handlers, daemons and indices."""

    async def recall(self, raw_body: kopf.RawBody, **about: Any) -> ResourceMemory:
        """Return a new memory, for one event."""
        return await super().recall(raw_body, **{**about, "ephemeral": True})


def settings() -> kopf.OperatorSettings:
    """Return kopf's settings. kopf then writes nothing to the cluster."""
    made = kopf.OperatorSettings()
    # Discovery of new resources and namespaces needs cluster-wide permissions. `discovery` waits for both before kopf
    # starts.
    made.scanning.disabled = True
    made.posting.enabled = False
    made.posting.reporting_component = EVENT_REPORTER
    made.peering.standalone = True
    made.persistence.finalizer = f"{GROUP}/kopf"
    made.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=f"kopf.{GROUP}")
    made.persistence.diffbase_storage = _NoDifferences()
    made.watching.inactivity_timeout = INACTIVITY_SECONDS
    # Each chunk of a LIST is handled before the next one arrives, so that the LIST is never in memory as a whole.
    made.watching.chunk_size = CHUNK
    # Instead of a LIST, which `_session` waits for. Not every API server can do it.
    made.watching.initial_streaming = False
    # kopf holds the last event of each object for this time.
    made.queueing.idle_timeout = IDLE_SECONDS
    made.watching.label_selectors["pods"] = LABEL_WORKQUEUE
    return made


def registry(
    store: Store, kinds: Iterable[str], sessions: list[aiohttp.ClientSession]
) -> kopf.OperatorRegistry:
    """Return the callbacks for some kinds, bound to a store.

    Args:
        sessions: gets the HTTP session of the last login. kopf closes the earlier ones, and none without a request.
    """
    made = kopf.OperatorRegistry()

    last_login = -LOGIN_SECONDS

    @kopf.on.login(registry=made, backoff=LOGIN_AGAIN)
    async def login(**context: Any) -> kopf.AiohttpSession | None:
        """Log in again after each 401, so that a renewed service account token is used."""
        nonlocal last_login
        await asyncio.sleep(last_login + LOGIN_SECONDS - time.monotonic())
        last_login = time.monotonic()
        found = kopf.login_with_service_account(**context) or kopf.login_with_kubeconfig(**context)
        if found is None:
            return None
        session = _session(found, store.watch_lists.set)
        sessions[:] = [session.aiohttp_session]
        return session

    def feeder(kind: str) -> Any:
        async def feed(event: Any, **_: Any) -> None:
            _feed(store, kind, event)

        return feed

    for kind in kinds:
        kopf.on.event(*_RESOURCES[kind], registry=made, id=kind)(feeder(kind))
    return made


async def run(
    store: Store,
    namespaces: Sequence[str],
    *,
    identity: str,
    started: Callable[[], None],
    kinds: Iterable[str] = PATHS,
) -> None:
    """Run kopf until one of its tasks ends, which happens only when it fails.

    `kopf.operator` would then cancel every younger task of this process, and wait for them.

    Args:
        namespaces: the namespaces to watch; empty for the whole cluster.
        identity: the name of this process. Otherwise kopf asks for a user name, which the image does not have.
        started: called when kopf has installed its own signal handlers.
        kinds: keys of `PATHS`.
    """
    sessions: list[aiohttp.ClientSession] = []
    tasks = await kopf.spawn_tasks(
        registry=registry(store, kinds, sessions),
        settings=settings(),
        memories=NoMemories(),
        standalone=True,
        identity=cast(Any, identity),
        clusterwide=not namespaces,
        namespaces=namespaces,
    )
    started()
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait([asyncio.gather(*tasks, return_exceptions=True)], timeout=STOP_SECONDS)
        for session in sessions:
            await session.close()


def _feed(store: Store, kind: str, event: Any) -> None:
    store.saw_event(kind)
    body = event["object"]
    if event["type"] == "DELETED":
        store.drop(kind, body)
    else:
        store.put(kind, body)
    # kopf's wrapper of an event is a reference cycle, which would hold the object until the garbage collector runs.
    for part in ("spec", "status"):
        body.pop(part, None)
    body["metadata"].pop("managedFields", None)
