"""The pages as people meet them: the real frontend and a real browser.

The broker and database_service are fakes here, because their failures must be forced.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import ClassVar, cast
from uuid import UUID

import pytest
import pytest_asyncio
from aiohttp.test_utils import TestServer
from playwright.async_api import Browser, ConsoleMessage, Page, Route, expect
from pydantic import AnyHttpUrl, SecretStr, TypeAdapter, ValidationError

from common.contracts.registrations import (
    Journey,
    JourneyStatus,
    RegistrationRequest,
    RegistrationSubmitted,
)
from common.contracts.rules import EMAIL_HINT, NAME_STRAY, EmailAddress, PersonName
from common.database_client.circuit import Circuit
from common.errors import (
    BrokerUnavailableError,
    DatabaseServiceUnavailableError,
    UserStreamError,
)
from common.settings import AmqpUrl
from frontend.app import build_app
from frontend.identity import Identities
from frontend.pages import FIELDS, NOT_READABLE_NOTICE, UNCONFIRMED_NOTICE
from frontend.settings import Settings
from tests.browser import assert_accessible, open_browser

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one browser for all

SECRET = "a secret of the tests, long enough"
REGISTRATION = Identities(SECRET).identify(
    RegistrationRequest(name="Ada", surname="Lovelace", email="ada@example.org"), None
)
STATUS_PAGE = re.compile(r"/registrations/[0-9a-f-]{36}$")
MOMENT = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


class ShortOutageError(BrokerUnavailableError):
    """Over within a second, or so the Retry-After says."""

    retry_after_seconds: ClassVar[int] = 1


@dataclass
class FakeBroker:
    """Stands for the publisher: keeps what it confirmed, by message id."""

    confirmed: dict[UUID, RegistrationSubmitted] = field(default_factory=dict)
    asked: int = 0
    failures: list[UserStreamError] = field(default_factory=list)
    """Raised one by one before anything is confirmed."""

    may_confirm: asyncio.Event = field(default_factory=asyncio.Event)

    async def publish(
        self, data: RegistrationSubmitted, *, message_id: UUID, correlation_id: str
    ) -> None:
        assert correlation_id
        self.asked += 1
        if self.failures:
            raise self.failures.pop(0)
        await self.may_confirm.wait()
        self.confirmed[message_id] = data

    async def check(self) -> None:
        """Always ready."""


@dataclass
class FakeDatabase:
    """Stands for database_service: every registration is on the same journey."""

    journey: Journey | UserStreamError

    def __post_init__(self) -> None:
        """Show a circuit that is always closed."""
        self.circuit = Circuit("database_service", is_ready=self.is_ready)

    async def is_ready(self) -> bool:
        """Say yes."""
        return True

    async def select_journey(self, registration_id: UUID) -> Journey:
        if isinstance(self.journey, UserStreamError):
            raise self.journey
        return self.journey.model_copy(update={"registration_id": registration_id})

    async def select_journeys(self, registration_ids: Sequence[UUID]) -> list[Journey]:
        return [await self.select_journey(each) for each in registration_ids]


@dataclass
class Site:
    """A running frontend and what stands behind it."""

    url: str
    broker: FakeBroker
    database: FakeDatabase

    def status_page(self) -> str:
        return f"{self.url}/registrations/{REGISTRATION}"


def a_journey(status: JourneyStatus) -> Journey:
    stored = status is not JourneyStatus.PENDING
    return Journey(
        registration_id=REGISTRATION,
        status=status,
        received_at=MOMENT if stored else None,
        stored_at=MOMENT if stored else None,
        mailed_at=MOMENT if status is JourneyStatus.MAILED else None,
    )


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with open_browser() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def site(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    broker, database = FakeBroker(), FakeDatabase(a_journey(JourneyStatus.PENDING))
    broker.may_confirm.set()
    monkeypatch.setattr("common.messaging.wiring.Publisher", _opening(broker))
    monkeypatch.setattr("frontend.app.DatabaseClient.open", _opening(database))
    async with TestServer(build_app(_settings())) as server:
        yield Site(str(server.make_url("")).rstrip("/"), broker, database)


def _settings() -> Settings:
    return Settings(
        queue_url=AmqpUrl("amqp://localhost"),
        database_service_url=AnyHttpUrl("http://localhost"),
        registration_id_secret=SecretStr(SECRET),
    )


def _opening(fake: object) -> Callable[..., AbstractAsyncContextManager[object]]:
    """What gives the fake where the real part would be opened."""

    @asynccontextmanager
    async def open_(*_: object, **__: object) -> AsyncIterator[object]:
        yield fake

    return open_


@asynccontextmanager
async def a_page(browser: Browser, *, javascript: bool = True) -> AsyncIterator[Page]:
    """A new page, on which nothing may break: neither a script nor the security policy."""
    broken: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text:
            broken.append(message.text)

    context = await browser.new_context(java_script_enabled=javascript)
    page = await context.new_page()
    page.on("console", listen)
    page.on("pageerror", lambda error: broken.append(str(error)))
    yield page
    await context.close()
    assert not broken


async def fill(
    page: Page,
    name: str = "Ada",
    surname: str = "Lovelace",
    email: str = "ada@example.org",
) -> None:
    for input_, value in zip(FIELDS, (name, surname, email), strict=True):
        await page.get_by_label(input_.label).fill(value)


async def press_register(page: Page) -> None:
    await page.get_by_role("button", name="Register").click()


async def test_form_is_accessible_whatever_happened(browser: Browser, site: Site) -> None:
    async with a_page(browser) as page:
        await page.goto(site.url)
        await assert_accessible(page)

        await fill(page, "", "R2-D2", "ada@example")
        await press_register(page)
        await expect(page.locator("#summary")).to_be_visible()
        await assert_accessible(page)

        await page.route("**/api/registrations", lambda route: route.fulfill(status=500))
        await fill(page)
        await press_register(page)
        await expect(page.locator("#notice")).to_be_visible()
        await assert_accessible(page)


@pytest.mark.parametrize("status", list(JourneyStatus))
async def test_status_page_is_accessible_at_every_stage(
    browser: Browser, site: Site, status: JourneyStatus
) -> None:
    site.database.journey = a_journey(status)

    async with a_page(browser) as page:
        await page.goto(site.status_page())

        await assert_accessible(page)


async def test_status_page_is_accessible_while_the_database_is_away(
    browser: Browser, site: Site
) -> None:
    site.database.journey = DatabaseServiceUnavailableError()

    async with a_page(browser) as page:
        answer = await page.goto(site.status_page())

        assert answer is not None
        assert answer.status == 503
        await expect(page.get_by_text(NOT_READABLE_NOTICE)).to_be_visible()
        await assert_accessible(page)


async def test_problem_page_is_accessible(browser: Browser, site: Site) -> None:
    async with a_page(browser) as page:
        answer = await page.goto(f"{site.url}/nowhere")

        assert answer is not None
        assert answer.status == 404
        await expect(page.get_by_role("link", name="Go to the registration form")).to_be_visible()
        await assert_accessible(page)


async def test_form_registers_without_javascript(browser: Browser, site: Site) -> None:
    async with a_page(browser, javascript=False) as page:
        await page.goto(site.url)
        await fill(page)
        await press_register(page)

        await page.wait_for_url(STATUS_PAGE)
        await expect(page.get_by_role("heading", name="On its way")).to_be_visible()
        site.database.journey = a_journey(JourneyStatus.MAILED)  # and the page reloads by itself
        await expect(
            page.get_by_text("Handed to the mail server, unless none was due.")
        ).to_be_visible()

    [registration] = site.broker.confirmed.values()
    assert (registration.name, registration.email) == ("Ada", "ada@example.org")


async def test_form_without_javascript_leads_to_the_errors_and_keeps_the_rest(
    browser: Browser, site: Site
) -> None:
    async with a_page(browser, javascript=False) as page:
        await page.goto(site.url)
        await fill(page, "Ada", "R2-D2", "")
        await press_register(page)

        await expect(page.locator("#summary")).to_be_focused()
        await expect(page.locator("#surname-error")).to_have_text(
            NAME_STRAY.format(character="“2”")
        )
        await expect(page.locator("#email-error")).to_have_text("Enter your e-mail address.")
        await expect(page.get_by_label("First name")).to_have_value("Ada")
        await expect(page.get_by_label("Surname")).to_have_value("R2-D2")
    assert not site.broker.asked


async def test_form_without_javascript_keeps_its_nonce_over_an_outage(
    browser: Browser, site: Site
) -> None:
    site.broker.failures = [BrokerUnavailableError()]

    async with a_page(browser, javascript=False) as page:
        await page.goto(site.url)
        nonce = await page.locator("[name=nonce]").input_value()
        await fill(page)
        await press_register(page)

        await expect(page.locator("#notice")).to_be_focused()
        await expect(page.locator("#notice")).to_contain_text(UNCONFIRMED_NOTICE)
        assert await page.locator("[name=nonce]").input_value() == nonce
        await press_register(page)  # everything is still there
        await page.wait_for_url(STATUS_PAGE)

    assert len(site.broker.confirmed) == 1


async def test_both_ways_of_sending_make_the_same_registration(
    browser: Browser, site: Site
) -> None:
    addresses = []
    for javascript in (True, False):
        async with a_page(browser, javascript=javascript) as page:
            await page.goto(site.url)
            await page.locator("[name=nonce]").evaluate("input => input.value = 'the-same-nonce'")
            await fill(page, " Ada ", "Nguye\u0302\u0303n")
            await press_register(page)
            await page.wait_for_url(STATUS_PAGE)
            addresses.append(page.url)

    assert addresses[0] == addresses[1]
    [registration] = site.broker.confirmed.values()
    assert (registration.name, registration.surname) == ("Ada", "Nguy\u1ec5n")


async def test_form_can_be_used_with_the_keyboard_alone(browser: Browser, site: Site) -> None:
    async with a_page(browser) as page:
        await page.goto(site.url)
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="UserStream")).to_be_focused()
        for input_, value in zip(FIELDS, ("Ada", "Lovelace", "ada@example.org"), strict=True):
            await page.keyboard.press("Tab")
            await expect(page.get_by_label(input_.label)).to_be_focused()
            await page.keyboard.type(value)
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("button", name="Register")).to_be_focused()
        outline = await page.get_by_role("button").evaluate("b => getComputedStyle(b).outlineStyle")
        assert outline == "solid"

        await page.keyboard.press("Enter")

        await page.wait_for_url(STATUS_PAGE)
    assert len(site.broker.confirmed) == 1


async def test_form_complains_after_the_first_visit_and_not_before(
    browser: Browser, site: Site
) -> None:
    async with a_page(browser) as page:
        await page.goto(site.url)
        name, error = page.get_by_label("First name"), page.locator("#name-error")

        await name.focus()
        await name.blur()
        await expect(error).to_be_hidden()  # only passing by
        await name.press_sequentially("R2")
        await expect(error).to_be_hidden()  # still typing
        await name.blur()
        await expect(error).to_have_text(NAME_STRAY.format(character="“2”"))
        await expect(name).to_have_attribute("aria-invalid", "true")
        await name.fill("R")
        await expect(error).to_be_hidden()  # at once
        await expect(name).to_have_attribute("aria-invalid", "false")


async def test_form_names_the_character_in_the_words_of_the_server(
    browser: Browser, site: Site
) -> None:
    async with a_page(browser) as page:
        await page.goto(site.url)
        for input_, typed, rule in (
            ("name", "Ada@", PersonName),
            ("name", "A\ue000", PersonName),
            ("name", "😀", PersonName),
            ("name", "...", PersonName),
            ("email", "ada lovelace@example.org", EmailAddress),
            ("email", "ada@example.org, eve@example.org", EmailAddress),
            ("email", "ada", EmailAddress),
        ):
            await page.locator(f"#{input_}").fill(typed)
            await page.locator(f"#{input_}").blur()

            with pytest.raises(ValidationError) as refused:
                TypeAdapter(rule).validate_python(typed)
            words = str(refused.value.errors()[0]["ctx"]["error"])
            await expect(page.locator(f"#{input_}-error")).to_have_text(words)


async def test_form_takes_names_of_all_scripts_and_what_is_pasted(
    browser: Browser, site: Site
) -> None:
    async with a_page(browser) as page:
        await page.goto(site.url)
        for name in (
            "レオナルド・ディカプリオ", "\u05d2\u05f3\u05d5\u05e8\u05d2\u05f3", "བཀྲ་ཤིས་",
            "क्\u200dष", "അരുണ്\u200d",
            "山田\u3000太郎", "Jean\u2011Luc", "\u200fמשה", "O‘Brien", "Jean\u202fLuc",  # noqa: RUF001
        ):  # fmt: skip
            await page.locator("#name").fill(name)
            await page.locator("#name").blur()
            await expect(page.locator("#name-error")).to_be_hidden()
        await fill(page, "山田\u3000太郎", "Jean\u2011Luc", "\u200bAda <ada＠example.org>,")  # noqa: RUF001
        await press_register(page)
        await page.wait_for_url(STATUS_PAGE)

    [registration] = site.broker.confirmed.values()
    assert (registration.name, registration.surname) == ("山田 太郎", "Jean-Luc")
    assert registration.email == "ada@example.org"


async def test_form_tells_of_a_text_that_is_too_long_and_does_not_cut_it(
    browser: Browser, site: Site
) -> None:
    async with a_page(browser) as page:
        await page.goto(site.url)
        name, error = page.get_by_label("First name"), page.locator("#name-error")

        await name.fill("𠮷" * 100)  # two UTF-16 units each, and one character
        await name.blur()
        await expect(error).to_be_hidden()
        await name.fill("e\u0301" * 100)  # é in two characters, composed as the server does
        await expect(error).to_be_hidden()
        await name.fill("   ")
        await expect(error).to_have_text("Enter your first name.")
        await name.fill("a" * 101)
        await expect(error).to_have_text("Use at most 100 characters.")
        assert len(await name.input_value()) == 101


async def test_form_leads_from_the_errors_to_the_fields(browser: Browser, site: Site) -> None:
    async with a_page(browser) as page:
        await page.goto(site.url)
        await press_register(page)

        await expect(page.locator("#summary")).to_be_focused()
        await expect(page).to_have_title(re.compile("^Error"))
        await page.keyboard.press("Tab")
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await expect(page.get_by_label("Surname")).to_be_focused()
    assert not site.broker.asked


async def test_form_shows_what_only_the_server_knows_at_its_field(
    browser: Browser, site: Site
) -> None:
    async with a_page(browser) as page:
        await page.goto(site.url)
        await fill(page, email="ada@example..org")
        await press_register(page)

        await expect(page.locator("#email-error")).to_have_text(EMAIL_HINT)
        await expect(page.locator("#summary")).to_be_focused()
        await press_register(page)  # unchanged: no need to ask again
        await expect(page.locator("#email-error")).to_have_text(EMAIL_HINT)
        assert (await page.locator("#summary a").all_inner_texts()) == [EMAIL_HINT]
        await page.get_by_label("E-mail address").fill("ada@example.org")
        await expect(page.locator("#email-error")).to_be_hidden()
        await press_register(page)
        await page.wait_for_url(STATUS_PAGE)


async def test_form_is_sent_once_however_often_the_button_is_pressed(
    browser: Browser, site: Site
) -> None:
    site.broker.may_confirm.clear()

    async with a_page(browser) as page:
        sent: list[str] = []
        page.on("request", lambda request: sent.append(request.method))
        await page.goto(site.url)
        await fill(page)
        await press_register(page)
        button = page.get_by_role("button")
        await expect(button).to_have_text("Sending…")
        await expect(page.locator(".spinner")).to_be_visible()
        await button.click(force=True)
        await page.get_by_label("Surname").press("Enter")
        site.broker.may_confirm.set()

        await page.wait_for_url(STATUS_PAGE)
    assert sent.count("POST") == 1
    assert site.broker.asked == 1


async def test_form_sends_again_by_itself_after_an_outage(browser: Browser, site: Site) -> None:
    site.broker.failures = [ShortOutageError(), ShortOutageError()]

    async with a_page(browser) as page:
        await page.goto(site.url)
        await fill(page)
        await press_register(page)

        await expect(page.locator("#notice")).to_contain_text("by itself (try 2 of 5)")
        await page.wait_for_url(STATUS_PAGE)
    assert site.broker.asked == 3
    assert len(site.broker.confirmed) == 1


async def test_form_leaves_the_decision_to_the_person_after_five_tries(
    browser: Browser, site: Site
) -> None:
    site.broker.failures = [ShortOutageError() for _ in range(5)]

    async with a_page(browser) as page:
        await page.goto(site.url)
        await fill(page)
        await press_register(page)

        await expect(page.locator("#notice")).to_contain_text(UNCONFIRMED_NOTICE)
        await expect(page.locator("#notice")).to_be_focused()
        assert site.broker.asked == 5
        await expect(page.get_by_label("Surname")).to_have_value("Lovelace")
        await press_register(page)
        await page.wait_for_url(STATUS_PAGE)
    assert len(site.broker.confirmed) == 1


async def test_form_registers_once_when_the_answer_is_lost(browser: Browser, site: Site) -> None:
    async def lose_the_answer(route: Route) -> None:
        await route.fetch()
        await route.abort()

    async with a_page(browser) as page:
        await page.goto(site.url)
        await page.route("**/api/registrations", lose_the_answer, times=1)
        await fill(page)
        await press_register(page)

        await page.wait_for_url(STATUS_PAGE)
    assert site.broker.asked == 2
    assert len(site.broker.confirmed) == 1


async def test_form_restored_with_a_used_nonce_registers_another_person(
    browser: Browser, site: Site
) -> None:
    async with a_page(browser) as page:
        await page.goto(site.url)
        nonce = await page.locator("[name=nonce]").input_value()
        answer = await page.request.post(
            f"{site.url}/api/registrations",
            data={"name": "Grace", "surname": "Hopper", "email": "grace@example.org"},
            headers={"Idempotency-Key": nonce},
        )
        assert answer.status == 202
        await fill(page)
        await press_register(page)

        await page.wait_for_url(STATUS_PAGE)
    assert {data.name for data in site.broker.confirmed.values()} == {"Grace", "Ada"}


async def test_status_page_follows_the_journey_and_stops_listening_at_its_end(
    browser: Browser, site: Site
) -> None:
    async with a_page(browser) as page:
        await page.add_init_script(
            "globalThis.streams = [];"
            "globalThis.EventSource = class extends EventSource {"
            "  constructor(...args) { super(...args); streams.push(this); }"
            "};"
        )
        await page.goto(site.status_page())
        await expect(page.get_by_role("heading", name="On its way")).to_be_visible()
        await page.evaluate("globalThis.reloaded = false")

        site.database.journey = a_journey(JourneyStatus.STORED)
        await expect(page.get_by_role("heading", name="You are registered")).to_be_visible()
        await expect(page.locator("[aria-current=step]")).to_contain_text("Confirmation mail")
        await expect(page.locator("#announcer")).to_contain_text("Your registration is stored.")

        site.database.journey = a_journey(JourneyStatus.MAILED)
        await expect(page.locator("[data-moment=mailedAt]")).to_contain_text("2026")
        await expect(page.locator("[aria-current=step]")).to_have_count(0)
        await expect(page).to_have_title(re.compile("^You are registered"))
        assert await page.evaluate("reloaded") is False
        assert await page.evaluate("streams.map(stream => stream.readyState)") == [2]


async def test_status_page_tells_what_to_do_when_the_mail_is_refused(
    browser: Browser, site: Site
) -> None:
    async with a_page(browser) as page:
        await page.goto(site.status_page())

        site.database.journey = a_journey(JourneyStatus.MAIL_FAILED)

        link = page.get_by_role("link", name="Register again with the corrected address")
        await link.click()
        await expect(page.get_by_label("E-mail address")).to_be_visible()


async def test_status_page_goes_on_by_itself_when_the_database_is_back(
    browser: Browser, site: Site
) -> None:
    async with a_page(browser) as page:
        await page.goto(site.status_page())
        await expect(page.locator("#notice")).to_be_hidden()

        site.database.journey = DatabaseServiceUnavailableError()
        await expect(page.locator("#notice")).to_be_visible()
        site.database.journey = a_journey(JourneyStatus.STORED)

        await expect(page.locator("#notice")).to_be_hidden()
        await expect(page.get_by_role("heading", name="You are registered")).to_be_visible()


async def test_status_page_asks_for_the_state_where_there_is_no_stream(
    browser: Browser, site: Site
) -> None:
    async with a_page(browser) as page:
        await page.route("**/events", lambda route: route.fulfill(status=503))
        await page.goto(site.status_page())

        site.database.journey = a_journey(JourneyStatus.MAILED)

        await expect(
            page.get_by_text("Handed to the mail server, unless none was due.")
        ).to_be_visible()


async def test_static_files_are_kept_by_browsers(site: Site, browser: Browser) -> None:
    async with a_page(browser) as page:
        await page.goto(site.url)
        address = await page.locator("link[rel=stylesheet]").get_attribute("href")

        answer = await page.request.get(site.url + cast("str", address))

        assert "immutable" in answer.headers["cache-control"]
        unknown = await page.request.get(f"{site.url}/static/nothing.css")
        assert unknown.status == 404
        assert unknown.headers["cache-control"] == "no-store"
