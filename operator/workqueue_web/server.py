"""The web page's HTTP server: login, overview and details, with live updates by server-sent events, and actions.

The templates escape everything. The script only inserts fragments that the server has rendered.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import logging
import mimetypes
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import ValidationError

from workqueue_operator.api.workqueue import MAX_REPLICAS, WorkQueue
from workqueue_operator.bounded_server import BoundedServer
from workqueue_operator.errors import ClusterError
from workqueue_operator.kube.store import Object, Store
from workqueue_operator.light_aiohttp import web
from workqueue_web import view_model
from workqueue_web.access import Access, Person, TooManyError
from workqueue_web.actions import Action, Actions, RefusedError, form_number, wish_of
from workqueue_web.dead_letters import DeadLetters, Reasons
from workqueue_web.decisions import Decisions
from workqueue_web.index import Index
from workqueue_web.operator_lease import OperatorLease, Stale
from workqueue_web.sampler import Sampler
from workqueue_web.view_model import View

HERE: Final = Path(__file__).parent
STATIC: Final = {path.name: path.read_bytes() for path in (HERE / "static").iterdir()}
"""By name. In memory, since aiohttp leaves a file open if the browser goes away while it opens it."""

EVENT_STREAM: Final = "text/event-stream"
ENDS: Final = frozenset({401, 403, 404})
"""Statuses that end the updates of an open page."""

LIVE_SECONDS: Final = 2.0
KEEP_ALIVE_SECONDS: Final = 15.0
"""A page that gets nothing for 40 s marks its numbers and connects again: see `page.js`."""

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

ROWS_KEPT: Final = 10 * view_model.ROWS
ENTRIES_AT_ONCE: Final = 1000
SHARED_SECONDS: Final = 1.0
"""Viewers with the same rights and the same filter share an overview for this time."""

LONGEST_FILTER: Final = 200
LONGEST_COUNT: Final = 9

STREAM_HEADERS: Final = {
    "Content-Type": f"{EVENT_STREAM}; charset=utf-8",
    "X-Accel-Buffering": "no",  # nginx otherwise sends an event when its buffer is full
}

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
    """The sources of the page's data.

    Attributes:
        actions: None if users may change nothing here.
        runbook_url: address of the runbooks; the alert's name is appended.
    """

    store: Store
    sampler: Sampler
    access: Access
    decisions: Decisions
    dead_letters: DeadLetters
    lease: OperatorLease
    actions: Actions | None = None
    runbook_url: str = ""


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
        self._index = Index(dependencies.store)
        self._streams = (self._overview_events, self._namespaces_events, self._detail_events)
        self._overviews: dict[tuple[frozenset[str], View], tuple[float, str]] = {}
        self._rows: dict[tuple[str, str], tuple[object, str]] = {}
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters["moment"] = view_model.moment
        self._templates.filters["part"] = lambda text: quote(text, safe="")
        self._templates.filters["address"] = lambda key: _address(*key)
        self._templates.globals.update(
            width=view_model.WIDTH,
            height=view_model.HEIGHT,
            shown=view_model.SHOWN,
            runbooks=dependencies.runbook_url.rstrip("/"),
            dead_letters_runbook=view_model.DEAD_LETTERS_RUNBOOK,
        )

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the port is taken.
        """
        app = web.Application(middlewares=[_harden, self._show_errors, self._require_login])
        app.router.add_get("/static/{name}", _static)
        app.router.add_get("/login", self._login_form)
        app.router.add_post("/login", self._login)
        app.router.add_post("/logout", self._logout)
        app.router.add_get("/", self._overview)
        app.router.add_get("/events", self._overview_events, allow_head=False)
        app.router.add_get("/namespaces", self._namespaces)
        # Not below /namespaces: a namespace may be called events.
        app.router.add_get("/events/namespaces", self._namespaces_events, allow_head=False)
        app.router.add_get("/namespaces/{namespace}", self._overview)
        app.router.add_get("/namespaces/{namespace}/events", self._overview_events, allow_head=False)
        app.router.add_get("/queues/{namespace}/{name}", self._detail)
        app.router.add_get("/queues/{namespace}/{name}/events", self._detail_events, allow_head=False)
        if self._dependencies.actions is not None:
            app.router.add_get("/queues/{namespace}/{name}/{action}", self._action_form)
            app.router.add_post("/queues/{namespace}/{name}/{action}", self._act)
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
            if error.status in ENDS and request.headers.get("Accept") == EVENT_STREAM:
                # A browser tells its script no status, and after this one it need not try again.
                return _stream_end(error.text or error.reason)
            return self._message(error.status, error.reason, error.text or "")
        except RefusedError as error:
            return self._message(error.status, error.status.phrase, str(error), back=_place_of(request))
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
            if request.match_info.handler in self._streams:
                raise web.HTTPUnauthorized(text="Your login has ended. Reload the page.")
            raise web.HTTPSeeOther(f"/login?next={quote(request.path_qs, safe='/')}")
        request[PERSON] = person
        return await handler(request)

    async def _person(self, request: web.Request) -> Person | None:
        token = _token(request)
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
        if "Origin" in request.headers:  # programs that log in send none
            _require_same_origin(request)
        form = await _form(request)
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
            secure=request.secure or _is_forwarded_https(request),
            path="/",
        )
        return answer

    async def _logout(self, request: web.Request) -> web.StreamResponse:
        if "Origin" in request.headers:
            _require_same_origin(request)
        answer = _see("/login")
        answer.del_cookie(COOKIE, path="/")
        return answer

    # -- all WorkQueues ------------------------------------------------------------------------------

    async def _overview(self, request: web.Request) -> web.Response:
        view, person = _view(request), request[PERSON]
        with self._dependencies.sampler.viewing():
            fragment = await self._overview_fragment(person, view)
        return self._html("overview.html", fragment=fragment, view=view, person=person.name)

    async def _overview_events(self, request: web.Request) -> web.StreamResponse:
        view = _view(request)
        return await self._stream(request, lambda person: self._overview_fragment(person, view))

    async def _namespaces(self, request: web.Request) -> web.Response:
        fragment = await self._namespaces_fragment(request[PERSON])
        return self._html("namespaces.html", fragment=fragment, person=request[PERSON].name)

    async def _namespaces_events(self, request: web.Request) -> web.StreamResponse:
        return await self._stream(request, self._namespaces_fragment)

    async def _namespaces_fragment(self, person: Person) -> str:
        allowed = await self._allowed(person)
        found = view_model.by_namespace(one for one in self._index if one.namespace in allowed)
        template = self._templates.get_template("_namespaces.html")
        return template.render(namespaces=found, stale=await self._stale())

    async def _allowed(self, person: Person) -> frozenset[str]:
        """Return the namespaces that a user may see."""
        await self._index.refresh()
        there = {one.namespace for one in self._index}
        allowed = await self._dependencies.access.namespaces(person, there)
        if there and not allowed:
            raise web.HTTPForbidden(
                text=f"{person.name} may not list WorkQueues in any namespace that has one. Ask an administrator of"
                " the cluster for the role view."
            )
        return allowed

    async def _overview_fragment(self, person: Person, view: View) -> str:
        allowed = await self._allowed(person)
        if view.namespace:
            allowed &= {view.namespace}
            if not allowed:
                raise web.HTTPNotFound(
                    text=f"The namespace {view.namespace} has no WorkQueue, or you may not see it."
                )
        key, now = (allowed, view), time.monotonic()
        known = self._overviews.get(key)
        if known is not None and now - known[0] < SHARED_SECONDS:
            return known[1]
        html = await self._render_overview(allowed, view)
        self._overviews = {
            other: entry for other, entry in self._overviews.items() if now - entry[0] < SHARED_SECONDS
        }
        self._overviews[key] = now, html
        return html

    async def _render_overview(self, allowed: frozenset[str], view: View) -> str:
        store, sampler = self._dependencies.store, self._dependencies.sampler
        summary, found = view_model.Summary(), []
        for number, one in enumerate(self._index):
            if number % ENTRIES_AT_ONCE == 0:
                await asyncio.sleep(0)
            if one.namespace in allowed:
                summary.add(one)
                if view.takes(one):
                    found.append(one)
        rows = []
        for number, one in enumerate(heapq.nsmallest(view_model.ROWS, found, key=lambda one: one[:4])):
            if number % ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)
            if (body := store.workqueue((one.namespace, one.name))) is not None:
                rows.append(self._row(body, sampler))
        return self._templates.get_template("_overview.html").render(
            rows=rows, found=len(found), summary=summary, view=view, stale=await self._stale()
        )

    async def _stale(self) -> Stale | None:
        await self._dependencies.lease.look()
        return self._dependencies.lease.stale()

    def _row(self, body: Object, sampler: Sampler) -> str:
        """Return the HTML of a row. Renders it only after a change."""
        key = (body["metadata"]["namespace"], body["metadata"]["name"])
        rate = sampler.rate(key)
        terminating = sum(pod.terminating for pod in self._dependencies.store.pods_of(key))
        state = (body["metadata"]["resourceVersion"], sampler.history.rounds, rate, terminating)
        known = self._rows.get(key)
        if known is None or known[0] != state:
            depths = sampler.history.depths(body["metadata"]["uid"])
            row = view_model.row(body, depths, rate, terminating)
            known = self._rows[key] = (state, self._templates.get_template("_row.html").render(row=row))
            if len(self._rows) > ROWS_KEPT:
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
        return self._html(
            "detail.html",
            fragment=fragment,
            namespace=key[0],
            name=key[1],
            person=person.name,
            done=_done(request),
        )

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
        actions = self._dependencies.actions
        terminating = sum(pod.terminating for pod in pods)
        return self._templates.get_template("_detail.html").render(
            row=view_model.row(body, sampler.history.depths(uid), sampler.rate(key), terminating),
            conditions=list(view_model.conditions(body).values()),
            queue=(body.get("status") or {}).get("queueName") or key[1],
            pods=view_model.pods(
                pods, sampler.statuses(key[0], pods), datetime.now(UTC), sampler.ages(key[0], pods)
            ),
            recent=await self._dependencies.decisions.recent(key[0], uid),
            reasons=await self._reasons(body),
            offer=await actions.offer(person, body) if actions is not None else None,
            stale=await self._stale(),
        )

    # -- actions -------------------------------------------------------------------------------------

    async def _action_form(self, request: web.Request) -> web.Response:
        """Show what an action will do, and ask for confirmation."""
        action, body, actions = await self._wanted(request)
        person = request[PERSON]
        await actions.require(person, action, body)
        spec, metadata = body["spec"], body["metadata"]
        return self._html(
            "action.html",
            action=action.value,
            namespace=metadata["namespace"],
            name=metadata["name"],
            uid=metadata["uid"],
            generation=metadata["generation"],
            form_token=_form_token(request),
            once=form_number(time.time()),
            replicas=spec.get("replicas"),
            desired=(body.get("status") or {}).get("desiredReplicas"),
            most_replicas=MAX_REPLICAS,
            dead_letters=await actions.dead_letters(body) if action.is_about_dead_letters else None,
            person=person.name,
        )

    async def _act(self, request: web.Request) -> web.StreamResponse:
        """Carry out a confirmed action, and lead back to the WorkQueue, so that a reload repeats nothing."""
        _require_same_origin(request)
        form = await _form(request)
        if not secrets.compare_digest(str(form.get("form", "")).encode(), _form_token(request).encode()):
            raise web.HTTPForbidden(
                text="This form is not from your present login. Nothing was changed. Open it again."
            )
        action, body, actions = await self._wanted(request)
        name = body["metadata"]["name"]
        if action is Action.PURGE and str(form.get("confirm", "")).strip() != name:
            raise web.HTTPBadRequest(text=f"Nothing was deleted. To confirm, write the name {name}.")
        count = await actions.carry_out(request[PERSON], wish_of(action, form, time.time()), body)
        return _see(f"{_place_of(request)}?done={action.value}&count={count}")

    async def _wanted(self, request: web.Request) -> tuple[Action, Object, Actions]:
        """Return what a request asks for. The error is the same for all that the user may not see."""
        key = request.match_info["namespace"], request.match_info["name"]
        body = await self._require(request[PERSON], key)
        actions = self._dependencies.actions
        try:
            action = Action(request.match_info["action"])
        except ValueError:
            raise web.HTTPNotFound(text="There is no such action.") from None
        assert actions is not None  # noqa: S101 - otherwise it has no route
        return action, body, actions

    # -- live ----------------------------------------------------------------------------------------

    async def _stream(
        self, request: web.Request, make: Callable[[Person], Awaitable[str]]
    ) -> web.StreamResponse:
        """Send the fragment after each change, while the user may see it."""
        if self.live >= MOST_LIVE:
            raise web.HTTPServiceUnavailable(text="Too many pages are open. This page is not updated.")
        response = web.StreamResponse(headers={**STREAM_HEADERS, **HEADERS})
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
        shown, said_at = b"", time.monotonic()
        while True:
            try:
                person = await self._person(request)
                if person is None:
                    yield _event("end", "Your login has ended. Reload the page.")
                    return
                html = await make(person)
            except web.HTTPException as error:
                yield _event("end", error.text or error.reason)
                return
            except (ClusterError, TooManyError) as error:
                # Nothing is sent without knowing that the user may still see it. What the browser shows gets old.
                shown = b""
                detail = error.message if isinstance(error, ClusterError) else "too many requests wait"
                yield _event("away", f"The API server cannot check your permissions: {detail}")
                await asyncio.sleep(LIVE_SECONDS)
                continue
            digest = hashlib.sha256(html.encode()).digest()
            if digest != shown:
                shown, said_at = digest, time.monotonic()
                yield _event("fragment", html)
            elif time.monotonic() - said_at >= KEEP_ALIVE_SECONDS:
                said_at = time.monotonic()
                yield _event("same", "")
            await asyncio.sleep(LIVE_SECONDS)

    # -- pages ---------------------------------------------------------------------------------------

    def _html(self, template: str, status: int = 200, **values: Any) -> web.Response:
        text = self._templates.get_template(template).render(**values)
        return web.Response(text=text, status=status, content_type="text/html", charset="utf-8")

    def _message(self, status: int, title: str, sentence: str, back: str = "") -> web.Response:
        return self._html("message.html", status=status, title=title, sentence=sentence, back=back)


def _next(request: web.Request) -> str:
    """Return the page of this site that was requested before the login."""
    wanted = request.query.get("next", "/")
    # Browsers interpret //host and /\host as another site, after they have removed tabs and line feeds.
    if not wanted.startswith("/") or wanted[1:2] in {"/", "\\"} or not wanted.isprintable():
        return "/"
    return wanted


def _event(kind: str, text: str) -> bytes:
    """Return a server-sent event. The text cannot begin another one, whatever line breaks it has."""
    lines = "".join(f"data: {line}\n" for line in text.splitlines() or [""])
    return f"event: {kind}\n{lines}\n".encode()


def _stream_end(sentence: str) -> web.Response:
    """Return a stream of one event, which ends the updates of an open page."""
    return web.Response(body=_event("end", sentence), headers=STREAM_HEADERS)


def _is_forwarded_https(request: web.Request) -> bool:
    """Return whether the browser used HTTPS, by what proxies say. Each of them may add a value."""
    return request.headers.get("X-Forwarded-Proto", "").partition(",")[0].strip().lower() == "https"


async def _form(request: web.Request) -> Mapping[str, Any]:
    """Return the fields of a form.

    Raises:
        web.HTTPBadRequest: it cannot be read. Browsers send the encoding of the page, UTF-8.
    """
    try:
        form = await request.post()
        for value in form.values():
            str(value).encode()  # UTF-7 has halves of characters
    except (ValueError, LookupError, RuntimeError) as error:
        raise web.HTTPBadRequest(text="The form cannot be read. Nothing was changed.") from error
    return form


def _token(request: web.Request) -> str:
    kind, _, bearer = request.headers.get("Authorization", "").partition(" ")
    return bearer if kind.lower() == "bearer" else request.cookies.get(COOKIE, "")


def _form_token(request: web.Request) -> str:
    """Return what the forms of this login contain. Only a page that knows the token can make one."""
    return hashlib.sha256(b"workqueue-page form\0" + _token(request).encode()).hexdigest()


def _require_same_origin(request: web.Request) -> None:
    """Refuse forms of other sites, also where a proxy logs the user in and no cookie of ours is needed."""
    origin, site = request.headers.get("Origin", ""), request.headers.get("Sec-Fetch-Site", "same-origin")
    if _host_of(origin) != request.host or site != "same-origin":
        raise web.HTTPForbidden(text="This form was sent from another site. Nothing was changed.")


def _host_of(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:  # such as an IPv6 address without its end
        return ""


def _view(request: web.Request) -> View:
    show = request.query.get("show", "")
    return View(
        request.match_info.get("namespace", ""),
        request.query.get("q", "")[:LONGEST_FILTER],
        show if show in view_model.SHOWN else "",
    )


def _place_of(request: web.Request) -> str:
    """Return the address of the WorkQueue that a request is about; that of all without one."""
    found = request.match_info
    if "name" not in found:
        return "/"
    return _address(found["namespace"], found["name"])


def _address(namespace: str, name: str) -> str:
    return f"/queues/{quote(namespace, safe='')}/{quote(name, safe='')}"


def _done(request: web.Request) -> str:
    """Return what an action has just done, in words of the page and no others."""
    text = request.query.get("count", "")
    count = int(text) if text.isascii() and text.isdecimal() and len(text) <= LONGEST_COUNT else 0
    letters = "1 dead letter was" if count == 1 else f"{count} dead letters were"
    return {
        "pause": "Paused. Running workers continue, and their number does not change.",
        "resume": "Resumed.",
        "scale": f"Pinned. The number of workers stays at {count} until it is released.",
        "release": "Released. The number of workers follows the depth again.",
        "replay": f"{letters} replayed.",
        "purge": f"{letters} deleted.",
    }.get(request.query.get("done", ""), "")


def _see(path: str) -> web.Response:
    return web.Response(status=303, headers={"Location": path})


async def _static(request: web.Request) -> web.Response:
    name = request.match_info["name"]
    if name not in STATIC:
        raise web.HTTPNotFound
    return web.Response(body=STATIC[name], content_type=mimetypes.guess_type(name)[0])


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
