"""The pages of dead letters in a real browser; what stands behind them is a fake."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
from aiohttp.test_utils import TestServer
from playwright.async_api import Browser, Page, expect

from common.contracts.dead_letters import (
    DeadLetterGroup,
    DeadLetterQuery,
    DeadLetterQueueReading,
    DeadLetters,
    DeadLetterView,
    DiscardedDeadLetter,
    DiscardedDeadLetters,
    DiscardedMany,
    DiscardManyRequest,
    DiscardQuery,
    DiscardRequest,
    DryRun,
    DryRunMessage,
    DryRunRequest,
    Redrive,
    RedriveRequest,
    RedriveState,
)
from common.errors import BrokerUnavailableError, FieldError, InvalidError, NotFoundError
from queue_receiver.dead_letters.routes import ADMIN, REDRIVES
from tests.browser import assert_accessible, open_browser
from tests.services import build

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one browser for all

HOSTILE = "<img src=x onerror=document.title='hacked'>" + "w" * 150
ROUTE = "user.registration"
MOMENT = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


def a_message(code: str = "malformed", *, unmask: bool = False) -> DeadLetterView:
    return DeadLetterView(
        id=uuid4(),
        route=ROUTE,
        code=code,
        detail=HOSTILE,
        attempts=4,
        first_seen="2026-01-31T09:30:00.000+00:00",
        failed_service="queue_receiver",
        routing_key=HOSTILE,
        type="user.registration.submitted.v1",
        size_bytes=42,
        headers={"x-error-code": code, HOSTILE: HOSTILE},
        body='{\n  "name": "••• (3 characters)"\n}',
        unmasked=unmask,
    )


@dataclass
class FakeAdmin:
    messages: list[DeadLetterView] = field(default_factory=list)
    error: Exception | None = None
    elsewhere: bool = False
    discarded: dict[UUID, str] = field(default_factory=dict)
    resent: list[object] = field(default_factory=list)

    async def list_messages(self, query: DeadLetterQuery) -> DeadLetters:
        if self.error:
            raise self.error
        chosen = [message for message in self.messages if query.code in (None, message.code)]
        codes = dict.fromkeys(message.code for message in self.messages)
        reading = DeadLetterQueueReading(
            route=ROUTE,
            messages=len(self.messages),
            read=len(self.messages),
            complete=not self.elsewhere,
            locked_by_another_reader=self.elsewhere,
        )
        return DeadLetters(
            queues=[reading],
            groups=[
                DeadLetterGroup(
                    route=ROUTE, code=code, count=sum(x.code == code for x in self.messages)
                )
                for code in codes
            ],
            messages=chosen,
            next_after=None,
        )

    async def select_message(self, message_id: UUID, *, unmask: bool) -> DeadLetterView:
        for message in self.messages:
            if message.id == message_id:
                body = '{"name": "</textarea><script>document.title=\'hacked\'</script>"}'
                changes = {"unmasked": True, "body": body} if unmask else {}
                return message.model_copy(update=changes)
        raise NotFoundError("There is no such dead letter any more.")

    async def resend(self, _message_id: UUID, body: dict[str, object]) -> None:
        if body.get("name") != "Ada":
            wrong = (FieldError("/body/name", "Use other characters."),)
            raise InvalidError("Please correct.", errors=wrong)
        self.resent.append(body)

    async def discard(self, message_id: UUID, request: DiscardRequest) -> None:
        self.discarded[message_id] = f"{request.discarded_by}: {request.reason}"
        self.messages = [message for message in self.messages if message.id != message_id]

    async def discard_many(self, request: DiscardManyRequest) -> DiscardedMany:
        meant = [x for x in self.messages if request.matches(x.id, x.route, x.code)]
        assert request.expected == len(meant)
        for message in meant:
            await self.discard(message.id, request)
        return DiscardedMany(discarded=len(meant))

    async def list_discards(self, _query: DiscardQuery) -> DiscardedDeadLetters:
        discards = [
            DiscardedDeadLetter(
                message_id=message_id,
                route=ROUTE,
                error_code="malformed",
                reason=reason,
                discarded_at=MOMENT,
            )
            for message_id, reason in self.discarded.items()
        ]
        return DiscardedDeadLetters(discards=discards, next_before=None)

    async def dry_run(self, request: DryRunRequest) -> DryRun:
        tried = [
            DryRunMessage(
                id=message.id,
                route=ROUTE,
                code=message.code,
                would_succeed=message.code != "malformed",
                outcome="stored",
                detail=HOSTILE,
            )
            for message in self.messages
            if request.matches(message.id, message.route, message.code)
        ]
        return DryRun(messages=tried, left_out=0)


@dataclass
class FakeRedrives:
    requests: list[RedriveRequest] = field(default_factory=list)
    latest: Redrive | None = None

    def start(self, request: RedriveRequest) -> Redrive:
        self.requests.append(request)
        self.latest = Redrive(
            redrive_id=uuid4(),
            state=RedriveState.RUNNING,
            total=30,
            sent=11,
            handled=11,
            failed=0,
            step=10,
            detail="Waiting for 3 of 10 messages to be handled.",
            started_at=MOMENT,
        )
        return self.latest

    def get(self, _redrive_id: UUID) -> Redrive:
        assert self.latest is not None
        return self.latest

    def stop(self, _redrive_id: UUID) -> Redrive:
        self.end(RedriveState.STOPPED, "Stopped. The rest was left here.")
        return self.get(_redrive_id)

    def end(self, state: RedriveState, detail: str, **changes: Any) -> None:
        changes |= {"state": state, "detail": detail, "ended_at": MOMENT}
        self.latest = self.get(uuid4()).model_copy(update=changes)


@dataclass
class Site:
    url: str
    admin: FakeAdmin
    redrives: FakeRedrives


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with open_browser() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def site() -> AsyncIterator[Site]:
    app = build("queue_receiver")
    admin, redrives = FakeAdmin(), FakeRedrives()
    app[ADMIN], app[REDRIVES] = cast("Any", admin), cast("Any", redrives)
    async with TestServer(app) as server:
        yield Site(str(server.make_url("/dead-letters")), admin, redrives)


@pytest_asyncio.fixture(loop_scope="module", params=[True, False], ids=["scripts", "no scripts"])
async def page(browser: Browser, request: pytest.FixtureRequest) -> AsyncIterator[Page]:
    """A page in a context of its own; fails where the browser complains about our policy."""
    context = await browser.new_context(java_script_enabled=request.param)
    page = await context.new_page()
    complaints: list[str] = []
    page.on("console", lambda m: complaints.append(m.text) if "Content Sec" in m.text else None)
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    yield page
    assert complaints == []
    await context.close()


@pytest_asyncio.fixture(loop_scope="module")
async def scripted(browser: Browser) -> AsyncIterator[Page]:
    context = await browser.new_context()
    yield await context.new_page()
    await context.close()


async def test_every_page_can_be_used_by_everyone(scripted: Page, site: Site) -> None:
    message, other = a_message(), a_message("upstream_error")
    states = (RedriveState.RUNNING, RedriveState.FAILED)

    await scripted.goto(site.url)
    await expect(scripted.get_by_text("Nothing is here")).to_be_visible()
    await assert_accessible(scripted)
    site.admin.messages = [message, other]
    site.admin.elsewhere = True
    site.admin.discarded[uuid4()] = HOSTILE
    site.redrives.start(RedriveRequest(all=True))
    paths = [
        *("", "?code=malformed&done=discarded", f"/{message.id}", f"/{message.id}?unmask=true"),
        *("/redrive?all=true", f"/discard?code=malformed&route={ROUTE}", f"/{other.id}"),
    ]
    for path in (*paths, "/discards", f"/{uuid4()}"):
        await scripted.goto(site.url + path)
        await assert_accessible(scripted)
    for state in states:
        site.redrives.end(state, HOSTILE, first_failed=message.id)
        await scripted.goto(f"{site.url}/redrives/{uuid4()}")
        await assert_accessible(scripted)
    await scripted.goto(site.url)
    await scripted.get_by_role("button", name="Dry run all messages").click()
    await expect(scripted.get_by_role("heading", name="Dry run")).to_be_visible()
    await assert_accessible(scripted)


async def test_what_stands_in_a_message_does_nothing(page: Page, site: Site) -> None:
    message = a_message()
    site.admin.messages = [message]

    for path in ("", f"/{message.id}", f"/{message.id}?unmask=true"):
        await page.goto(site.url + path)
        assert "hacked" not in await page.title()
        assert await page.locator("main img, main script").count() == 0


async def test_a_kind_is_sent_back_by_one_button(page: Page, site: Site) -> None:
    site.admin.messages = [a_message(), a_message("upstream_error")]
    await page.goto(site.url)

    await page.get_by_role("button", name=f"Send back all upstream_error of {ROUTE}").click()

    await expect(page.get_by_text("11 of 30 sent back")).to_be_visible()
    assert [(r.code, r.route, r.all) for r in site.redrives.requests] == [
        ("upstream_error", ROUTE, False)
    ]


async def test_a_redrive_is_followed_to_its_end(page: Page, site: Site) -> None:
    site.admin.messages = [a_message(), a_message("other")]
    await page.goto(site.url)
    await page.get_by_role("button", name="Send all back").click()
    await expect(page.get_by_role("heading", name="Send back 2 messages?")).to_be_visible()
    await expect(page.get_by_text("1 of them fail again")).to_be_visible()
    assert site.redrives.requests == []  # it asks first
    await page.get_by_role("button", name="Send 2 messages back").click()
    await expect(page.get_by_role("heading", name="Sending back")).to_be_visible()

    site.redrives.end(RedriveState.DONE, "Handled: 30 messages.", handled=30, sent=30)

    await expect(page.get_by_role("heading", name="All were handled")).to_be_visible()
    await expect(page.get_by_text("30 of 30 sent back")).to_be_visible()
    await expect(page.get_by_role("button", name="Stop")).to_have_count(0)
    assert site.redrives.requests[0].all


async def test_a_redrive_can_be_stopped(page: Page, site: Site) -> None:
    await page.goto(
        f"{site.url}/redrives/{site.redrives.start(RedriveRequest(all=True)).redrive_id}"
    )

    await page.get_by_role("button", name="Stop").click()

    await expect(page.get_by_role("heading", name="Stopped")).to_be_visible()


async def test_a_body_is_corrected_without_losing_what_was_typed(page: Page, site: Site) -> None:
    site.admin.messages = [a_message()]
    await page.goto(f"{site.url}/{site.admin.messages[0].id}")
    await page.get_by_role("link", name="Show them, and edit").click()
    body = page.get_by_label("Correct it, and send it back.")
    assert "</textarea><script>" in await body.input_value()

    await body.fill('{"name": "  <b>4da"}')
    await page.get_by_role("button", name="Check and send back").click()
    await expect(page.get_by_text("Use other characters.")).to_be_visible()
    assert await body.input_value() == '{"name": "  <b>4da"}'
    await body.fill("{not JSON")
    await page.get_by_role("button", name="Check and send back").click()
    await expect(page.get_by_text("not valid JSON")).to_be_visible()
    await body.fill('{"name": "Ada"}')
    await page.get_by_role("button", name="Check and send back").click()

    await expect(page.get_by_text("Sent back with the new body")).to_be_visible()
    assert site.admin.resent == [{"name": "Ada"}]


async def test_a_message_is_discarded_with_a_reason_only(page: Page, site: Site) -> None:
    message = a_message()
    site.admin.messages = [message]
    await page.goto(f"{site.url}/{message.id}")

    await page.get_by_role("button", name="Discard for good").click()  # the browser asks for it
    assert site.admin.discarded == {}
    await page.get_by_label("Reason").fill("nonsense")
    await page.get_by_label("Decided by").fill("ada")
    await page.get_by_role("button", name="Discard for good").click()

    await expect(page.get_by_text("The reason is kept")).to_be_visible()
    assert site.admin.discarded == {message.id: "ada: nonsense"}
    await page.get_by_role("link", name="Discarded").click()
    await expect(page.get_by_text("ada: nonsense")).to_be_visible()


async def test_a_kind_that_cannot_succeed_is_discarded_after_a_question(
    page: Page, site: Site
) -> None:
    site.admin.messages = [a_message(), a_message(), a_message("upstream_error")]
    await page.goto(site.url)

    await page.get_by_role("button", name=f"Discard all malformed of {ROUTE}").click()
    await expect(page.get_by_role("heading", name="Discard 2 messages?")).to_be_visible()
    assert len(site.admin.messages) == 3
    await page.get_by_label("Reason").fill("nonsense")
    await page.get_by_role("button", name="Discard 2 messages for good").click()

    await expect(page.get_by_text("The reason is kept with each")).to_be_visible()
    assert [message.code for message in site.admin.messages] == ["upstream_error"]
    assert set(site.admin.discarded.values()) == {": nonsense"}


async def test_what_cannot_succeed_as_it_is_is_corrected_first(page: Page, site: Site) -> None:
    site.admin.messages = [a_message()]
    await page.goto(f"{site.url}/{site.admin.messages[0].id}")

    await page.get_by_role("link", name="Correct this message").click()

    await expect(page.get_by_label("Correct it, and send it back.")).to_be_visible()


async def test_an_outage_is_said_in_words(page: Page, site: Site) -> None:
    site.admin.error = BrokerUnavailableError("RabbitMQ is away. Nothing has changed.")

    await page.goto(site.url)

    await expect(page.get_by_text("Nothing has changed")).to_be_visible()
    await assert_no_json(page)


async def assert_no_json(page: Page) -> None:
    assert "{" not in await page.locator("body").inner_text()
