"""A headless Chromium for tests: Debian's own, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Literal

from playwright.async_api import Browser, Page, async_playwright, expect

from hack.cluster.packages import install_packages

PROGRAM: Final = "chromium"
PACKAGES: Final = ("chromium", "fonts-dejavu-core")
MILLISECONDS: Final = 120_000.0

Scheme = Literal["light", "dark"]


def program() -> str:
    """Chromium's path; installed where it is missing, as root.

    Raises:
        ClusterError: it cannot be installed.
    """
    if shutil.which(PROGRAM) is None:
        install_packages(PACKAGES)
    found = shutil.which(PROGRAM)
    assert found is not None
    return found


class Seen:
    """A page, and everything that its console complained about: scripts and styles that the policy stopped, too."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _note(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"}:
            self.complaints.append(text)


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A browser."""
    # Chromium has no sandbox for root; the flags also announce a missing GPU and little shared memory.
    options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=program(), args=options, timeout=MILLISECONDS
        )
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def looking(
    browser: Browser, scheme: Scheme = "light", *, scripts: bool = True, width: int = 1280, height: int = 800
) -> AsyncIterator[Seen]:
    """A page in a context of its own: no cookies, no cache."""
    context = await browser.new_context(
        color_scheme=scheme,
        java_script_enabled=scripts,
        viewport={"width": width, "height": height},
        device_scale_factor=1,
    )
    context.set_default_timeout(MILLISECONDS)
    expect.set_options(timeout=MILLISECONDS)
    try:
        yield Seen(await context.new_page())
    finally:
        await context.close()
