"""A real Chromium for the tests of pages, and axe to say whether everyone can use them."""

import json
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.async_api import Browser, Page, async_playwright, expect

BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
"""Names a system's package manager gives Chromium or its sibling, best first."""

LAUNCH_ARGUMENTS = ("--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu")
"""The pages are our own, and containers grant neither user namespaces nor a large /dev/shm."""

INSTALL_CHROMIUM = (
    "no Chromium on this machine; to run the tests of pages, type: "
    "apt-get install chromium  (or: python -m playwright install --with-deps chromium)"
)

WIDTHS = (320, 1280)
"""Pixels: the narrowest screen WCAG 2.2 asks for (1.4.10, Reflow), and a desktop."""

SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")

expect.set_options(timeout=60_000)  # milliseconds; a busy machine draws slowly


@asynccontextmanager
async def open_browser() -> AsyncIterator[Browser]:
    """Run a headless Chromium: the system's, else the one playwright downloaded.

    Where there is neither, the test is skipped with the line to type, or fails where
    ``USERSTREAM_REQUIRE_BROWSER=1`` says that a skip would hide something.
    """
    async with async_playwright() as playwright:
        executable = _find_chromium(playwright.chromium.executable_path)
        browser = await playwright.chromium.launch(
            executable_path=executable, args=list(LAUNCH_ARGUMENTS)
        )
        try:
            yield browser
        finally:
            await browser.close()


async def assert_accessible(
    page: Page,
    *,
    widths: Sequence[int] = WIDTHS,
    schemes: Sequence[Literal["light", "dark"]] = SCHEMES,
) -> None:
    """Fail if axe finds anything on ``page``, or it scrolls sideways, at any width or scheme.

    The page's content security policy stays in force: what breaks under it, breaks here.
    """
    size = page.viewport_size or {"width": 1280, "height": 800}
    found = [
        problem
        for scheme in schemes
        for width in widths
        for problem in await _problems(page, width=width, height=size["height"], scheme=scheme)
    ]
    await page.emulate_media(color_scheme=None)
    await page.set_viewport_size(size)
    assert not found, f"{page.url} is not accessible:\n" + "\n".join(found)


async def _problems(
    page: Page, *, width: int, height: int, scheme: Literal["light", "dark"]
) -> list[str]:
    await page.set_viewport_size({"width": width, "height": height})
    await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    await page.evaluate(AXE_SCRIPT)
    result: dict[str, Any] = await page.evaluate("axe.run({resultTypes: ['violations']})")
    where = f"{width} px, {scheme}"
    problems = [_describe(violation, where) for violation in result["violations"]]
    overflow = await page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    if overflow > 0:
        problems.append(f"[{where}] the page is {overflow} px wider than the window")
    return problems


def _describe(violation: dict[str, Any], where: str) -> str:
    nodes = "; ".join(
        f"{json.dumps(node['target'])} {node.get('failureSummary', '')}"
        for node in violation["nodes"][:5]
    )
    return f"[{where}] {violation['id']} ({violation['impact']}): {violation['help']}: {nodes}"


def _find_chromium(downloaded: str) -> str:
    if executable := next(filter(None, map(shutil.which, BROWSERS)), None):
        return executable
    if Path(downloaded).exists():
        return downloaded
    return _no_browser()


def _no_browser() -> NoReturn:
    if os.environ.get("USERSTREAM_REQUIRE_BROWSER") == "1":
        pytest.fail(INSTALL_CHROMIUM)
    pytest.skip(INSTALL_CHROMIUM)
