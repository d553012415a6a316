"""The pages that show each service's API: dark where people want it, narrow, and ready to try."""

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from tests.amqp import eventually
from tests.browser import open_browser
from tests.services import SERVICES, build, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one browser for all

CLICK = "element => element.click()"
BROKEN_BUTTONS = """[...document.querySelectorAll(".try-out__btn")].filter((button) => {
  const text = document.createRange();
  text.selectNodeContents(button);
  const headings = button.closest(".opblock-section-header").querySelectorAll("h4 span");
  const above = Math.max(...[...headings].map((span) => span.getBoundingClientRect().bottom));
  return text.getClientRects().length > 1 || button.getBoundingClientRect().top < above + 4;
}).map((button) => button.textContent)"""
"""Buttons whose word is in two lines, or that lie upon the underlined heading beside them."""

WIDTH = "document.documentElement.scrollWidth"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with open_browser() as browser:
        yield browser


async def opened(page: Page) -> None:
    await expect(page.locator(".opblock").first).to_be_visible()


@pytest.mark.parametrize("service", SERVICES)
async def test_the_page_fits_a_narrow_screen_and_starts_with_what_is_accepted(
    browser: Browser, service: str
) -> None:
    async with serving(build(service)) as client:
        page = await browser.new_page(viewport={"width": 320, "height": 800})
        await page.goto(str(client.make_url("/api-docs")))
        await opened(page)
        assert await page.evaluate(WIDTH) == 320

        shown: list[str] = []
        for operation in await page.locator(".opblock").all():
            # One at a time: Swagger UI draws all that is open anew at each click.
            await operation.locator(".opblock-summary-control").evaluate(CLICK)
            await operation.locator(".try-out__btn").evaluate(CLICK)
            await expect(operation.locator(".try-out__btn.cancel")).to_be_visible()
            sample = operation.locator(".body-param textarea")
            if await operation.locator(".body-param").count():
                await expect(sample).to_be_visible()
                shown.append(await sample.input_value())
            assert await page.evaluate(WIDTH) == 320
            assert await page.evaluate(BROKEN_BUTTONS) == []
            await operation.locator(".opblock-summary-control").evaluate(CLICK)
            await expect(operation.locator(".try-out__btn")).to_have_count(0)

        document = json.loads(await (await client.get("/openapi.json")).text())
        examples = [
            content["application/json"]["example"]
            for path in document["paths"].values()
            for method in path.values()
            if "application/json" in (content := method.get("requestBody", {}).get("content", {}))
        ]
        missing = [e for e in examples if json.dumps(e, indent=2, ensure_ascii=False) not in shown]
        assert missing == []
        await page.close()


async def test_the_page_follows_the_colours_that_people_want(browser: Browser) -> None:
    async with serving(build("frontend")) as client:
        page = await browser.new_page(color_scheme="dark")
        await page.goto(str(client.make_url("/api-docs")))
        await opened(page)

        assert await page.evaluate(LIGHTNESS) < 64
        await page.emulate_media(color_scheme="light")
        await eventually(lambda: is_light(page), "a light page")
        await page.close()


async def is_light(page: Page) -> bool:
    return bool(await page.evaluate(LIGHTNESS) > 192)


LIGHTNESS = """(() => {
  const canvas = document.createElement("canvas").getContext("2d");
  const parts = [document.documentElement, document.body, document.querySelector(".swagger-ui")];
  for (const part of parts) {
    canvas.fillStyle = getComputedStyle(part).backgroundColor;
    canvas.fillRect(0, 0, 1, 1);
  }
  const [red, green, blue, opaque] = canvas.getImageData(0, 0, 1, 1).data;
  return opaque === 0 ? 255 : (red + green + blue) / 3;
})()"""
"""Mean of red, green and blue behind the page, 0 to 255; a page without a colour is white."""
