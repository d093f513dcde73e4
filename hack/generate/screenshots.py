"""Take the screenshots of the web page for docs/page.md: `make screenshots`.

With a folder, take one of every page, at 1280 and 320 pixels, light and dark, into it. The page runs in this process
with sample data, and Chromium shows it. The pixels depend on the machine's fonts, so no test compares them. Take the
pictures again after a change of the page, and look at them.
"""

from __future__ import annotations

import asyncio
import math
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, cast

from playwright.async_api import Page as BrowserPage

from tests.support.browser import Scheme, chromium, looking
from tests.support.fakecluster import FakeCluster, Request
from workqueue_operator.api.workqueue import timestamp
from workqueue_operator.kube.store import Store
from workqueue_operator.names import EVENT_REPORTER
from workqueue_operator.workers.client import Address, Workers, WorkerStatus
from workqueue_web.access import Access
from workqueue_web.actions import Actions
from workqueue_web.dead_letters import DeadLetters, Reasons
from workqueue_web.decisions import Decisions
from workqueue_web.history import SAMPLES
from workqueue_web.operator_lease import OperatorLease
from workqueue_web.sampler import Sampler
from workqueue_web.server import Page, PageDependencies

IMAGES: Final = Path(__file__).parents[2] / "docs" / "images"
NOW: Final = datetime.now(UTC)
Object = dict[str, Any]

QUEUES: Final = {
    # namespace/name: waiting, retrying, dead, workers, busy, maximum, reason of ScalingActive
    "shop/invoices": (38, 4, 7, 2, 2, 4, "AsExpected"),
    "shop/thumbnails": (120, 0, 0, 5, 4, 10, "AsExpected"),
    "shop/labels": (0, 0, 0, 1, 0, 4, "ScaledToZero"),
    "shop/exports": (None, None, None, 0, 0, 4, "AuthenticationFailed"),
    "mail/newsletter": (14_000, 260, 31, 10, 10, 10, "AtMaximum"),
    "mail/receipts": (3, 0, 0, 1, 1, 5, "AsExpected"),
    "reports/nightly": (0, 0, 2, 0, 0, 3, "ScaledToZero"),
    "search/reindex": (460, 12, 0, 8, 8, 8, "AsExpected"),
}
CONDITIONS: Final = (
    ("QueueDeclared", "Declared", "The queue 'invoices' and its dead-letter queue exist."),
    ("WorkloadApplied", "Applied", "The API server has accepted the Deployment."),
    ("DepthKnown", "DepthObserved", "The queue's depth is known."),
    ("WorkersAvailable", "WorkersReady", "Workers are Ready."),
    ("ScalingActive", "AsExpected", "Replicas follow the depth of the queue."),
    ("Ready", "AsExpected", "The queue exists and its workers follow its depth."),
)
EVENTS: Final = (
    (3, "Scale", "Backlog", "Scaled out from 1 to 2: 41 waiting and 1 in handlers ask for 2 replicas."),
    (14, "WorkersAvailable", "WorkersReady", "Workers are Ready."),
    (15, "Scale", "Backlog", "Scaled out from 0 to 1: 1 waiting and 0 in handlers ask for 1 replica."),
    (31, "Scale", "Idle", "Scaled in from 2 to 0: Nothing has waited or been in a handler for 60 s."),
)


class SampleWorkers:
    """Workers whose slots are busy."""

    async def statuses(self, addresses: list[Address]) -> dict[str, WorkerStatus]:
        """Return a status for each worker."""
        return {one.pod: WorkerStatus(1, 1, True, 0.41, 2.3) for one in addresses}


class SampleDeadLetters:
    """Two reasons."""

    async def reasons(self, _: object) -> Reasons:
        """Return the reasons of the dead letters."""
        return Reasons((("Rejected", 5), ("Exception", 2)), 7, 7, read_at=NOW.timestamp())

    async def count(self, _: object) -> int:
        """Return the number of dead letters."""
        return 7


def workqueue(place: str) -> Object:
    """Return a WorkQueue with a status."""
    waiting, retrying, dead, workers, busy, maximum, scaling = QUEUES[place]
    namespace, name = place.split("/")
    failed = "The broker refuses the user 'exports' with this password." if waiting is None else ""
    conditions = [
        {
            "type": kind,
            "status": "False" if failed and kind in {"Ready", "ScalingActive"} else "True",
            "reason": scaling if kind == "ScalingActive" or (failed and kind == "Ready") else reason,
            "message": failed or message,
        }
        for kind, reason, message in CONDITIONS
    ]
    numbers = {"messages": waiting, "retrying": retrying, "deadLetters": dead}
    return {
        "apiVersion": "workqueue.dev/v1alpha1",
        "kind": "WorkQueue",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": place,
            "generation": 1,
            "resourceVersion": "1",
            "creationTimestamp": timestamp(NOW),
        },
        "spec": {
            "connectionSecretRef": {"name": "rabbitmq"},
            "worker": {"image": "shop:1", "handler": {"python": "shop:invoice"}},
            "scaling": {"maxReplicas": maximum},
        },
        "status": {
            **{field: value for field, value in numbers.items() if value is not None},
            "readyReplicas": workers,
            "desiredReplicas": 0 if scaling == "ScaledToZero" else workers,
            "busyReplicas": busy,
            "conditions": conditions,
        },
    }


def pod(place: str, number: int) -> Object:
    """Return a running pod of a WorkQueue."""
    namespace, name = place.split("/")
    return {
        "metadata": {
            "name": f"{name}-worker-57b98b8b96-{'7gghg' if number else 'xk2pd'}",
            "namespace": namespace,
            "uid": f"{place}-{number}",
            "resourceVersion": "1",
            "creationTimestamp": timestamp(NOW - timedelta(minutes=3 + 12 * number)),
            "labels": {"workqueue.dev/workqueue": name},
        },
        "spec": {"nodeName": "node"},
        "status": {
            "podIP": "127.0.0.1",
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "worker", "state": {"running": {}}, "ready": True}],
        },
    }


def cluster() -> FakeCluster:
    """Return an API server that accepts every token, and has the Events."""
    made = FakeCluster()

    def review(request: Request) -> Object:
        user = {"username": "system:serviceaccount:shop:viewer"}
        return {
            "status": {"authenticated": True, "audiences": request.body["spec"]["audiences"], "user": user}
        }

    events = [
        {
            "metadata": {},
            "eventTime": timestamp(NOW - timedelta(minutes=minutes)),
            "type": "Normal",
            "action": action,
            "reason": reason,
            "note": note,
            "reportingController": EVENT_REPORTER,
        }
        for minutes, action, reason, note in EVENTS
    ]
    made.answer("POST", "tokenreviews", review)
    made.answer("POST", "subjectaccessreviews", {"status": {"allowed": True}})
    made.answer("GET", "/events", {"items": events, "metadata": {}})
    made.answer("GET", "/leases/", {"spec": {"renewTime": timestamp(NOW)}})
    return made


@dataclass(frozen=True)
class Picture:
    """One screenshot.

    Attributes:
        docs: whether the documentation shows it. The others are for looking at.
        shows: a text that comes later than the page.
    """

    name: str
    path: str
    width: int = 1240
    height: int = 630
    scheme: Scheme = "light"
    docs: bool = False
    shows: str = ""

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"page-{self.name}-{self.scheme}{'' if self.docs else f'-{self.width}'}.png"


DOCUMENTED: Final = (
    Picture("overview", "/", docs=True, shows="23/s"),
    Picture("detail", "/queues/shop/invoices", scheme="dark", docs=True, shows="4.6/s"),
)
PATHS: Final = {
    "overview": "/",
    "namespaces": "/namespaces",
    "namespace": "/namespaces/shop?show=problems",
    "detail": "/queues/shop/invoices",
    "action": "/queues/shop/invoices/purge",
    "missing": "/queues/shop/nothing",
}
SCHEMES: Final[tuple[Scheme, ...]] = ("light", "dark")
ALL: Final = tuple(
    Picture(name, path, width, 700, scheme)
    for name, path in PATHS.items()
    for width in (1280, 320)
    for scheme in SCHEMES
)


async def main(folder: Path | None = None) -> None:
    """Take the screenshots of the documentation; with a folder, those of every page, width and colour scheme."""
    store = Store(lambda _: None)
    sampler = Sampler(store, cast(Workers, SampleWorkers()))
    for place, (_, _, _, workers, *_) in QUEUES.items():
        store.put_workqueue(workqueue(place))
        for number in range(workers):
            store.put_pod(pod(place, number) if place == "shop/invoices" else _named(place, number))
    for number in range(SAMPLES):
        sampler.history.record((place, _depth(place, number)) for place in QUEUES)
    server = cluster()
    dead_letters = cast(DeadLetters, SampleDeadLetters())
    access = Access(server)
    # The lease is never renewed here: without its name the page does not read it.
    lease = OperatorLease(server, "workqueue-system", "")
    actions = Actions(server, access, dead_letters, "page")
    parts = PageDependencies(
        store, sampler, access, Decisions(server), dead_letters, lease, actions, "https://runbooks.example"
    )
    page = Page(0, parts, "127.0.0.1")
    await page.start()
    sampler.start()
    try:
        async with chromium() as browser:
            for picture in ALL if folder is not None else DOCUMENTED:
                width, height = picture.width, picture.height
                async with looking(browser, picture.scheme, width=width, height=height) as seen:
                    url = f"http://127.0.0.1:{page.port}{picture.path}"
                    await _take(seen.page, url, picture.shows, (folder or IMAGES) / picture.file)
    finally:
        await sampler.stop()
        await page.stop()


async def _take(browser: BrowserPage, url: str, shows: str, file: Path) -> None:
    await browser.goto(url)
    await browser.get_by_label("Token").fill("token")
    await browser.get_by_role("button", name="Log in").click()
    await browser.get_by_role("heading", level=1).wait_for()
    if await browser.locator("#live").count():
        await browser.get_by_text("live", exact=True).wait_for()
    if shows:
        await browser.get_by_text(shows, exact=True).wait_for()
    await browser.evaluate("document.activeElement.blur()")
    await browser.screenshot(path=file, full_page=True)


def _named(place: str, number: int) -> Object:
    made = pod(place, 0)
    made["metadata"] |= {"name": f"{place.partition('/')[2]}-{number}", "uid": f"{place}-{number}"}
    return made


def _depth(place: str, number: int) -> int | None:
    """Return a depth that ends at the present one."""
    waiting = QUEUES[place][0]
    if waiting is None:
        return None if number > SAMPLES // 2 else 20 + number % 7
    if place == "reports/nightly":
        return round(900 * math.exp(-(((number - 60) / 18) ** 2)))
    phase = 2 * math.pi * (number - SAMPLES + 1) / (SAMPLES / (1 + len(place) % 4))
    return max(0, round(waiting * (1 + 0.8 * math.sin(phase))))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
