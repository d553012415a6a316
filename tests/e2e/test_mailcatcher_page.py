"""The mail catcher's pages in a real browser: live, safe, usable by everyone."""

import smtplib
import socket
from asyncio import to_thread
from collections.abc import AsyncIterator
from contextlib import closing
from email.message import EmailMessage
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect

from tests.browser import assert_accessible, open_browser
from tools.mailcatcher.app import catching
from tools.mailcatcher.settings import Settings


@pytest.fixture
async def catcher(tmp_path: Path) -> AsyncIterator[Settings]:
    with closing(socket.socket()) as one, closing(socket.socket()) as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        settings = Settings(
            mailcatcher_smtp_port=one.getsockname()[1],
            mailcatcher_web_port=other.getsockname()[1],
            mailcatcher_dir=tmp_path,
        )
    async with catching(settings):
        yield settings


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with open_browser() as browser:
        yield browser


@pytest.fixture
async def page(browser: Browser, catcher: Settings) -> AsyncIterator[Page]:
    """The inbox, open; at the end no error may have been logged in it."""
    complaints: list[str] = []
    page = await browser.new_page(base_url=address(catcher))
    page.on("console", lambda entry: complaints.append(entry.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    await page.goto("/")
    yield page
    await page.close()
    assert complaints == []


def address(catcher: Settings) -> str:
    return f"http://127.0.0.1:{catcher.mailcatcher_web_port}"


async def send(catcher: Settings, subject: str = "Hello", html: str = "<p>Hello</p>") -> None:
    mail = EmailMessage()
    mail["From"] = "UserStream <no-reply@example.org>"
    mail["To"] = "Ada Lovelace <ada@example.org>"
    mail["Subject"] = subject
    mail.set_content("Please confirm: https://example.org/confirm\n")
    mail.add_alternative(html, subtype="html")

    def deliver() -> None:
        with smtplib.SMTP("127.0.0.1", catcher.mailcatcher_smtp_port) as smtp:
            smtp.send_message(mail)

    await to_thread(deliver)


async def test_a_mail_appears_in_an_open_page_by_itself(page: Page, catcher: Settings) -> None:
    await expect(page.get_by_role("heading", name="Waiting for the first mail")).to_be_visible()

    await send(catcher, "First")
    await expect(page.locator("#mails li")).to_have_count(1)
    await send(catcher, "Second")

    await expect(page.locator("#mails .subject")).to_have_text(["Second", "First"])
    await expect(page.get_by_role("status")).to_have_text("2 mails")


async def test_a_new_mail_does_not_take_the_focus_away(page: Page, catcher: Settings) -> None:
    await send(catcher, "First")
    first = page.get_by_role("link", name="First")
    await first.focus()

    await send(catcher, "Second")
    await expect(page.locator("#mails li")).to_have_count(2)

    await expect(first).to_be_focused()
    await page.keyboard.press("ArrowUp")
    await expect(page.get_by_role("link", name="Second")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Second")).to_be_visible()


async def test_each_view_of_a_mail_is_a_link_away(page: Page, catcher: Settings) -> None:
    await send(catcher, "Welcome", "<h1>Hello from HTML</h1>")
    await page.get_by_role("link", name="Welcome").click()

    frame = page.frame_locator("iframe")
    await expect(frame.get_by_role("heading")).to_have_text("Hello from HTML")
    await page.get_by_role("link", name="Text", exact=True).click()
    await expect(page.get_by_role("link", name="https://example.org/confirm")).to_be_visible()
    await page.get_by_role("link", name="Source").click()
    await expect(page.locator("pre")).to_contain_text("Return-Path: <no-reply@example.org>")
    await page.get_by_role("link", name="Headers").click()
    await expect(page.get_by_role("row", name="Subject")).to_contain_text("Welcome")


async def test_a_link_in_a_mail_opens_in_a_window_of_its_own(page: Page, catcher: Settings) -> None:
    await send(catcher, "Welcome", f"<a href='{address(catcher)}/livez'>Confirm</a>")
    await page.goto("/view/latest")

    async with page.expect_popup() as opening:
        await page.frame_locator("iframe").get_by_role("link", name="Confirm").click()

    popup = await opening.value
    await expect(popup.locator("body")).to_have_text("ok")


async def test_a_hostile_mail_runs_nothing(browser: Browser, catcher: Settings) -> None:
    attack = "<script>top.document.title='taken'</script>"
    await send(catcher, attack, f"{attack}<img src=x onerror=\"top.document.title='taken'\">")
    page = await browser.new_page(base_url=address(catcher))

    for path in ("/", "/view/latest", "/view/latest.html"):
        await page.goto(path)  # returns after the load event: pictures and frames are done
        assert await page.title() != "taken"
    await page.close()


async def test_everything_works_without_javascript(browser: Browser, catcher: Settings) -> None:
    await send(catcher, "Welcome")
    context = await browser.new_context(base_url=address(catcher), java_script_enabled=False)
    page = await context.new_page()

    await page.goto("/")
    await page.get_by_role("searchbox").fill("to:ada@example.org")
    await page.get_by_role("button", name="Search").click()
    await expect(page.get_by_role("status")).to_have_text("1 of 1 mail")
    await page.get_by_role("link", name="Welcome").click()
    await expect(page.get_by_role("heading", name="Welcome")).to_be_visible()
    await page.get_by_role("link", name="All mails").click()
    await page.get_by_role("link", name="Delete all").click()
    await page.get_by_role("button", name="Delete").click()
    await expect(page.get_by_role("heading", name="Waiting for the first mail")).to_be_visible()

    await context.close()


async def test_every_page_is_accessible(page: Page, catcher: Settings) -> None:
    await assert_accessible(page)
    await send(catcher, "Long words: " + "Donaudampfschifffahrtsgesellschaft" * 5)
    await expect(page.locator("#mails li")).to_have_count(1)
    await assert_accessible(page)

    for tab in ("html", "text", "source", "headers"):
        await page.goto(f"/view/latest?tab={tab}")
        await assert_accessible(page)
    for path in ("/?query=nothing", "/delete"):
        await page.goto(path)
        await assert_accessible(page)
