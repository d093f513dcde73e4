"""The web page's HTTP server: login, overview and details, with live updates by server-sent events.

Read-only. The templates escape everything. The script only inserts fragments that the server has rendered.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

from aiohttp import web
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import ValidationError

from workqueue_operator.api.workqueue import WorkQueue
from workqueue_operator.bounded_server import BoundedServer
from workqueue_operator.errors import ClusterError
from workqueue_operator.kube.store import Object, Store
from workqueue_web import view_model
from workqueue_web.access import Access, Person, TooManyError
from workqueue_web.dead_letters import DeadLetters, Reasons
from workqueue_web.decisions import Decisions
from workqueue_web.sampler import Sampler

HERE: Final = Path(__file__).parent
LIVE_SECONDS: Final = 2.0
KEEP_ALIVE_SECONDS: Final = 15.0
CONNECTIONS: Final = 128
MOST_LIVE: Final = 96
"""Maximum number of live pages. The other connections stay free for page loads."""

COOKIE: Final = "workqueue_token"
"""Has the user's token, so that every replica accepts it. The API server checks it for each request."""

COOKIE_SECONDS: Final = 8 * 3600
LONGEST_TOKEN: Final = 3_800
"""Browsers store cookies of at most 4,096 bytes."""

ROWS_AT_ONCE: Final = 20
"""Rows rendered before the loop yields: a row takes 0.5 ms, and the probes must not wait long."""

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


@dataclass(frozen=True, slots=True)
class PageDependencies:
    """The sources of the page's data."""

    store: Store
    sampler: Sampler
    access: Access
    decisions: Decisions
    dead_letters: DeadLetters


class Page:
    """The HTTP server of the page.

    Args:
        port: 0 for any free port.
        host: the address to listen on; None for all addresses.

    Attributes:
        live: number of browsers with live updates.
    """

    def __init__(self, port: int, dependencies: PageDependencies, host: str | None = None) -> None:
        self.port = port
        self.live = 0
        self._host = host
        self._dependencies = dependencies
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

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the port is taken.
        """
        app = web.Application(middlewares=[_harden, self._show_errors, self._require_login])
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
            CONNECTIONS,
            shutdown_timeout=1.0,
            handler_cancellation=True,  # stops the stream of a closed browser immediately
        )
        self.port = await self._server.start()

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            await self._server.stop()

    # -- middleware ----------------------------------------------------------------------------------

    @web.middleware
    async def _show_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Show each error as a page with a sentence."""
        try:
            return await handler(request)
        except web.HTTPRedirection:
            raise
        except web.HTTPException as error:
            return self._message(error.status, error.reason, error.text or "")
        except TooManyError:
            return self._message(
                503, "Too many requests", "Many users are logging in at this moment. Try again in a minute."
            )
        except ClusterError as error:
            said = f"The API server could not check your permissions: {error.message}. Try again in a minute."
            return self._message(503, "No answer", said)

    @web.middleware
    async def _require_login(self, request: web.Request, handler: Handler) -> web.StreamResponse:
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
        token = bearer if kind.lower() == "bearer" else request.cookies.get(COOKIE, "")
        return await self._dependencies.access.person(token) if token else None

    # -- login ---------------------------------------------------------------------------------------

    async def _login_form(self, request: web.Request) -> web.Response:
        return self._login_page(request)

    def _login_page(self, request: web.Request, *, status: int = 200, problem: str = "") -> web.Response:
        audience = self._dependencies.access.audience
        return self._html(
            "login.html", status=status, problem=problem, audience=audience, next=_next(request)
        )

    async def _login(self, request: web.Request) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            raise web.HTTPForbidden(text="This form was sent from another site.")
        form = await request.post()
        token = str(form.get("token", "")).strip()
        if len(token) > LONGEST_TOKEN:
            problem = (
                f"The token has {len(token)} characters. Browsers keep at most {LONGEST_TOKEN}: send it in the"
                " header Authorization, or use a shorter one."
            )
            return self._login_page(request, status=400, problem=problem)
        person = await self._dependencies.access.person(token) if token else None
        if person is None:
            problem = (
                "The cluster does not accept this token: it is wrong, expired, or for another audience. Create a new "
                "one as shown below."
            )
            return self._login_page(request, status=401, problem=problem)
        answer = _see(_next(request))
        answer.set_cookie(
            COOKIE,
            token,
            max_age=COOKIE_SECONDS,
            httponly=True,
            samesite="Strict",
            secure=request.secure or request.headers.get("X-Forwarded-Proto") == "https",
            path="/",
        )
        return answer

    async def _logout(self, _: web.Request) -> web.StreamResponse:
        answer = _see("/login")
        answer.del_cookie(COOKIE, path="/")
        return answer

    # -- all WorkQueues ------------------------------------------------------------------------------

    async def _overview(self, request: web.Request) -> web.Response:
        words = request.query.get("q", "")
        with self._dependencies.sampler.viewing():
            fragment = await self._overview_fragment(request[PERSON], words)
            return self._html("overview.html", fragment=fragment, words=words, person=request[PERSON].name)

    async def _overview_events(self, request: web.Request) -> web.StreamResponse:
        words = request.query.get("q", "")
        return await self._stream(request, lambda person: self._overview_fragment(person, words))

    async def _overview_fragment(self, person: Person, words: str) -> str:
        store, sampler = self._dependencies.store, self._dependencies.sampler
        allowed = await self._dependencies.access.namespaces(person, {key[0] for key in store.workqueues})
        if store.workqueues and not allowed:
            raise web.HTTPForbidden(
                text=f"{person.name} may not list WorkQueues in any namespace that has one. Ask an administrator of"
                " the cluster for the role view."
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
                rows.append(self._row(shown, sampler))
        return self._templates.get_template("_overview.html").render(
            rows=rows, found=len(found), summary=summary, words=words
        )

    def _row(self, body: Object, sampler: Sampler) -> str:
        """Return the HTML of a row. Renders it only after a change."""
        key = (body["metadata"]["namespace"], body["metadata"]["name"])
        rate = sampler.rate(key)
        state = (body["metadata"]["resourceVersion"], sampler.history.rounds, rate)
        known = self._rows.get(key)
        if known is None or known[0] != state:
            row = view_model.row(body, sampler.history.depths(body["metadata"]["uid"]), rate)
            known = self._rows[key] = (state, self._templates.get_template("_row.html").render(row=row))
            if len(self._rows) > 2 * len(self._dependencies.store.workqueues) + view_model.ROWS:
                self._rows.clear()
        return known[1]

    # -- one WorkQueue -------------------------------------------------------------------------------

    async def _detail(self, request: web.Request) -> web.Response:
        key = request.match_info["namespace"], request.match_info["name"]
        person = request[PERSON]
        with self._dependencies.sampler.viewing():
            await self._require(person, key)
            await self._dependencies.sampler.ask_now(key)
            fragment = await self._detail_fragment(person, key)
        return self._html("detail.html", fragment=fragment, namespace=key[0], name=key[1], person=person.name)

    async def _detail_events(self, request: web.Request) -> web.StreamResponse:
        key = request.match_info["namespace"], request.match_info["name"]
        await self._require(request[PERSON], key)

        return await self._stream(request, lambda person: self._detail_fragment(person, key))

    async def _reasons(self, body: Object) -> Reasons:
        if not (body.get("status") or {}).get("deadLetters"):
            return Reasons()
        try:
            return await self._dependencies.dead_letters.reasons(WorkQueue.model_validate(body))
        except ValidationError:
            return Reasons(
                problem="The page cannot read this WorkQueue: the cluster has another version of it."
            )

    async def _require(self, person: Person, key: tuple[str, str]) -> Object:
        """Return a WorkQueue. The error is the same for a forbidden and for a missing WorkQueue."""
        body = self._dependencies.store.workqueue(key)
        access = self._dependencies.access
        if body is None or not (await access.may_list(person) or await access.may_list(person, key[0])):
            raise web.HTTPNotFound(text=f"There is no WorkQueue {key[0]}/{key[1]}, or you may not see it.")
        return body

    async def _detail_fragment(self, person: Person, key: tuple[str, str]) -> str:
        body = await self._require(person, key)
        sampler, uid = self._dependencies.sampler, body["metadata"]["uid"]
        pods = self._dependencies.store.pods_of(key)
        return self._templates.get_template("_detail.html").render(
            row=view_model.row(body, sampler.history.depths(uid), sampler.rate(key)),
            conditions=list(view_model.conditions(body).values()),
            queue=(body.get("status") or {}).get("queueName") or key[1],
            pods=view_model.pods(pods, sampler.statuses(key[0], pods), datetime.now(UTC)),
            recent=await self._dependencies.decisions.recent(key[0], uid),
            reasons=await self._reasons(body),
        )

    # -- live ----------------------------------------------------------------------------------------

    async def _stream(
        self, request: web.Request, make: Callable[[Person], Awaitable[str]]
    ) -> web.StreamResponse:
        """Send the fragment after each change, while the user may see it."""
        if self.live >= MOST_LIVE:
            raise web.HTTPServiceUnavailable(text="Too many pages are open. This page is not updated.")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8", **HEADERS})
        self.live += 1
        try:
            with self._dependencies.sampler.viewing():
                await response.prepare(request)
                async for chunk in self._chunks(request, make):
                    await response.write(chunk)
        except (ConnectionError, asyncio.CancelledError):
            pass  # the browser has closed the connection, or the process is stopping
        finally:
            self.live -= 1
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
    """Return the page of this site that was requested before the login."""
    wanted = request.query.get("next", "/")
    # Browsers interpret //host and /\host as another site, after they have removed tabs and line feeds.
    if not wanted.startswith("/") or wanted[1:2] in {"/", "\\"} or not wanted.isprintable():
        return "/"
    return wanted


def _see(path: str) -> web.Response:
    return web.Response(status=303, headers={"Location": path})


@web.middleware
async def _harden(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Add the headers that restrict the browser to showing the page."""
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
