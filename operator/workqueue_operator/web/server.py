"""The page's HTTP server: log in, look at all WorkQueues, look at one; live by server-sent events.

Place in the flow: made by `__main__`. HTML comes from the templates beside it, which escape everything; the script
only puts fragments that the server made where they belong. Nothing here changes anything.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

from aiohttp import web
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import ValidationError

from workqueue.contract.limits import CONNECTIONS
from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.bounded_server import BoundedServer
from workqueue_operator.errors import ClusterError
from workqueue_operator.kube.store import Object, Store
from workqueue_operator.web import view_model
from workqueue_operator.web.access import Access, Person, TooManyError
from workqueue_operator.web.dead_letters import DeadLetters, Reasons
from workqueue_operator.web.relay import Relay
from workqueue_operator.web.sampler import Watch
from workqueue_operator.web.sessions import COOKIE, LASTS_SECONDS, Sessions

HERE: Final = Path(__file__).parent
LIVE_SECONDS: Final = 2.0
KEEP_ALIVE_SECONDS: Final = 15.0
MOST_LIVE: Final = CONNECTIONS * 3 // 4
"""Browsers with live updates at the same time. The other connections stay free for pages that are loaded."""

ROWS_AT_ONCE: Final = 5
"""Rendered without a pause: a row takes half a millisecond, and a bell must not wait long."""

HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
PERSON: Final = web.RequestKey("person", Person)

logger = logging.getLogger(__name__)


class PageDependencies:
    """What a leader shows."""

    def __init__(self, store: Store, watch: Watch, access: Access, letters: DeadLetters) -> None:
        self.store = store
        self.watch = watch
        self.access = access
        self.letters = letters


class Page:
    """Serves browsers; a standby sends them on to the leader.

    Args:
        port: 0 for any free one.
        relay: the way to the leader; None where this process is the only one.
        host: the address to listen on; None for all.
    """

    def __init__(self, port: int, relay: Relay | None = None, host: str | None = None) -> None:
        self.port = port
        self._host = host
        self._relay = relay
        self._parts: PageDependencies | None = None
        self._sessions = Sessions()
        self._live = 0
        self._server: BoundedServer | None = None
        self._rows: dict[tuple[str, str], tuple[object, str]] = {}
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters["moment"] = view_model.moment
        self._templates.globals.update(width=view_model.WIDTH, height=view_model.HEIGHT)

    def lead(self, parts: PageDependencies) -> None:
        """From now on this process knows what there is to show."""
        self._parts = parts

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the port is taken.
        """
        app = web.Application(middlewares=[_harden, self._say, self._to_the_leader, self._known_people_only])
        app.router.add_static("/static", HERE / "static", append_version=False)
        app.router.add_get("/login", self._login_form)
        app.router.add_post("/login", self._login)
        app.router.add_post("/logout", self._logout)
        app.router.add_get("/", self._overview)
        app.router.add_get("/events", self._overview_events)
        app.router.add_get("/queues/{namespace}/{name}", self._detail)
        app.router.add_get("/queues/{namespace}/{name}/events", self._detail_events)
        self._server = BoundedServer(
            app,
            self.port,
            self._host,
            shutdown_timeout=1.0,
            handler_cancellation=True,  # a browser that has gone is noticed at once
        )
        self.port = await self._server.start()

    async def stop(self) -> None:
        """Stop listening."""
        if self._relay is not None:
            await self._relay.close()
        if self._server is not None:
            await self._server.stop()

    # -- around every request ------------------------------------------------------------------------

    @web.middleware
    async def _say(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Errors as pages, with a sentence."""
        try:
            return await handler(request)
        except web.HTTPRedirection:
            raise
        except web.HTTPException as error:
            return self._message(error.status, error.reason, error.text or "")
        except TooManyError:
            return self._message(
                503, "Too many at once", "Many people ask at this moment: try again in a minute."
            )
        except ClusterError as error:
            said = f"The API server could not say who may look: {error.message}. Try again in a minute."
            return self._message(503, "No answer", said)

    @web.middleware
    async def _to_the_leader(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """A standby knows nothing itself."""
        if self._parts is not None or request.path.startswith("/static/"):
            return await handler(request)
        if self._relay is None:
            raise web.HTTPServiceUnavailable(text="The operator is starting: try again in a moment.")
        return await self._relay.send(request)

    @web.middleware
    async def _known_people_only(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith("/static/") or request.path in {"/login", "/logout"}:
            return await handler(request)
        person = await self._person(request)
        if person is None:
            if request.path.endswith("/events"):
                raise web.HTTPUnauthorized(text="Log in again.")
            raise web.HTTPSeeOther(f"/login?next={quote(request.path_qs, safe='/')}")
        request[PERSON] = person
        return await handler(request)

    async def _person(self, request: web.Request) -> Person | None:
        kind, _, bearer = request.headers.get("Authorization", "").partition(" ")
        token = bearer if kind.lower() == "bearer" else self._sessions.token(request.cookies.get(COOKIE, ""))
        return await self._knows.access.person(token) if token else None

    @property
    def _knows(self) -> PageDependencies:
        assert self._parts is not None  # noqa: S101 - `_to_the_leader` has looked
        return self._parts

    # -- logging in ----------------------------------------------------------------------------------

    async def _login_form(self, request: web.Request) -> web.Response:
        return self._login_page(request)

    def _login_page(self, request: web.Request, *, status: int = 200, problem: str = "") -> web.Response:
        audience = self._knows.access.audience
        return self._html(
            "login.html", status=status, problem=problem, audience=audience, next=_next(request)
        )

    async def _login(self, request: web.Request) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            raise web.HTTPForbidden(text="This form was sent from another site.")
        form = await request.post()
        token = str(form.get("token", "")).strip()
        person = await self._knows.access.person(token) if token else None
        if person is None:
            problem = (
                "The cluster does not know this token for this page: it is wrong, expired, or for another audience. "
                "Make a new one as shown below."
            )
            return self._login_page(request, status=401, problem=problem)
        answer = _see(_next(request))
        answer.set_cookie(
            COOKIE,
            self._sessions.begin(token),
            max_age=LASTS_SECONDS,
            httponly=True,
            samesite="Strict",
            secure=request.secure or request.headers.get("X-Forwarded-Proto") == "https",
            path="/",
        )
        return answer

    async def _logout(self, request: web.Request) -> web.StreamResponse:
        self._sessions.end(request.cookies.get(COOKIE, ""))
        answer = _see("/login")
        answer.del_cookie(COOKIE, path="/")
        return answer

    # -- all WorkQueues ------------------------------------------------------------------------------

    async def _overview(self, request: web.Request) -> web.Response:
        words = request.query.get("q", "")
        with self._knows.watch.looking():
            fragment = await self._overview_fragment(request[PERSON], words)
            return self._html("overview.html", fragment=fragment, words=words, person=request[PERSON].name)

    async def _overview_events(self, request: web.Request) -> web.StreamResponse:
        words = request.query.get("q", "")
        return await self._stream(request, lambda person: self._overview_fragment(person, words))

    async def _overview_fragment(self, person: Person, words: str) -> str:
        store, watch = self._knows.store, self._knows.watch
        allowed = await self._knows.access.namespaces(person, {key[0] for key in store.workqueues})
        if store.workqueues and not allowed:
            raise web.HTTPForbidden(
                text=f"{person.name} may not list WorkQueues, in no namespace that has any. Whoever manages the"
                " cluster can give that right: the role view has it."
            )
        summary, found = view_model.Summary(), []
        async for body in store.each_workqueue(allowed):
            summary.add(body)
            if view_model.matches(body, words):
                found.append(view_model.order(body))
        rows = []
        for number, (*_, namespace, name) in enumerate(sorted(found)[: view_model.ROWS]):
            if number % ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)
            if (shown := store.workqueue((namespace, name))) is not None:
                rows.append(self._row(shown, watch))
        return self._templates.get_template("_overview.html").render(
            rows=rows, found=len(found), summary=summary, words=words
        )

    def _row(self, body: Object, watch: Watch) -> str:
        """A row's HTML; rendered again only when something in it has changed."""
        key = (body["metadata"]["namespace"], body["metadata"]["name"])
        rate = watch.rate(key)
        state = (body["metadata"]["resourceVersion"], watch.history.rounds, rate)
        known = self._rows.get(key)
        if known is None or known[0] != state:
            row = view_model.row(body, watch.history.depths(body["metadata"]["uid"]), rate)
            known = self._rows[key] = (state, self._templates.get_template("_row.html").render(row=row))
            if len(self._rows) > 2 * len(self._knows.store.workqueues) + view_model.ROWS:
                self._rows.clear()
        return known[1]

    # -- one WorkQueue -------------------------------------------------------------------------------

    async def _detail(self, request: web.Request) -> web.Response:
        key = request.match_info["namespace"], request.match_info["name"]
        person = request[PERSON]
        with self._knows.watch.looking():
            await self._require(person, key)
            await self._knows.watch.ask_now(key)
            fragment = await self._detail_fragment(person, key, Reasons(problem="They are being looked at."))
        return self._html("detail.html", fragment=fragment, namespace=key[0], name=key[1], person=person.name)

    async def _detail_events(self, request: web.Request) -> web.StreamResponse:
        key = request.match_info["namespace"], request.match_info["name"]
        await self._require(request[PERSON], key)

        async def fragment(person: Person) -> str:
            body = await self._require(person, key)
            return await self._detail_fragment(person, key, await self._reasons(body))

        return await self._stream(request, fragment)

    async def _reasons(self, body: Object) -> Reasons:
        if not (body.get("status") or {}).get("deadLetters"):
            return Reasons()
        try:
            return await self._knows.letters.reasons(WorkQueue.model_validate(body))
        except ValidationError:
            return Reasons(problem="The resource cannot be read.")

    async def _require(self, person: Person, key: tuple[str, str]) -> Object:
        """The WorkQueue. Who may not see it learns as little as about one that does not exist."""
        body = self._knows.store.workqueue(key)
        access = self._knows.access
        if body is None or not (await access.may_list(person) or await access.may_list(person, key[0])):
            raise web.HTTPNotFound(text=f"There is no WorkQueue {key[0]}/{key[1]}, or you may not see it.")
        return body

    async def _detail_fragment(self, person: Person, key: tuple[str, str], reasons: Reasons) -> str:
        body = await self._require(person, key)
        watch, uid = self._knows.watch, body["metadata"]["uid"]
        pods = self._knows.store.pods_of(key)
        return self._templates.get_template("_detail.html").render(
            row=view_model.row(body, watch.history.depths(uid), watch.rate(key)),
            conditions=list(view_model.conditions(body).values()),
            queue=(body.get("status") or {}).get("queueName") or key[1],
            pods=view_model.pods(pods, watch.statuses(key[0], pods), datetime.now(UTC)),
            decisions=watch.history.decisions(uid),
            reasons=reasons,
        )

    # -- live ----------------------------------------------------------------------------------------

    async def _stream(
        self, request: web.Request, make: Callable[[Person], Awaitable[str]]
    ) -> web.StreamResponse:
        """Send the fragment again whenever it has changed, for as long as the person may see it."""
        if self._live >= MOST_LIVE:
            raise web.HTTPServiceUnavailable(text="Too many pages are open: this one stays as it is.")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8", **HEADERS})
        self._live += 1
        try:
            with self._knows.watch.looking():
                await response.prepare(request)
                async for chunk in self._chunks(request, make):
                    await response.write(chunk)
        except (ConnectionError, asyncio.CancelledError):
            pass  # the browser has gone, or the process ends
        finally:
            self._live -= 1
        return response

    async def _chunks(
        self, request: web.Request, make: Callable[[Person], Awaitable[str]]
    ) -> AsyncIterator[bytes]:
        shown, silent = b"", 0.0
        while True:
            try:
                person = await self._person(request)
                html = "" if person is None else await make(person)
            except (web.HTTPException, ClusterError, TooManyError):
                person, html = None, ""
            if person is None:
                yield b"event: end\ndata:\n\n"
                return
            digest = hashlib.sha256(html.encode()).digest()
            if digest != shown:
                shown, silent = digest, 0.0
                lines = "".join(f"data: {line}\n" for line in html.splitlines())
                yield f"event: fragment\n{lines}\n".encode()
            elif silent >= KEEP_ALIVE_SECONDS:
                silent = 0.0
                yield b": still here\n\n"
            await asyncio.sleep(LIVE_SECONDS)
            silent += LIVE_SECONDS

    # -- pages ---------------------------------------------------------------------------------------

    def _html(self, template: str, status: int = 200, **values: Any) -> web.Response:
        text = self._templates.get_template(template).render(**values)
        return web.Response(text=text, status=status, content_type="text/html", charset="utf-8")

    def _message(self, status: int, title: str, sentence: str) -> web.Response:
        return self._html("message.html", status=status, title=title, sentence=sentence)


def _next(request: web.Request) -> str:
    """Return the page of this site that was asked for before the login."""
    wanted = request.query.get("next", "/")
    # A browser reads //host and /\host as another site, and drops tabs and line feeds before it reads.
    if not wanted.startswith("/") or wanted[1:2] in {"/", "\\"} or not wanted.isprintable():
        return "/"
    return wanted


def _see(path: str) -> web.Response:
    return web.Response(status=303, headers={"Location": path})


@web.middleware
async def _harden(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The headers that keep a browser from doing anything but showing the page."""
    try:
        response = await handler(request)
    except web.HTTPException as error:
        error.headers.update(HEADERS)
        raise
    if not response.prepared:
        response.headers.update(HEADERS)
        if request.path.startswith("/static/"):
            response.headers["Cache-Control"] = "max-age=3600"
    return response
