"""A mail opened by hand is claimed once more, and only once, under the same id."""

import asyncio
from datetime import UTC, date, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest
from aiohttp import ClientSession

from common.contracts.canary import FIRST_CANARY, LAST_CANARY
from common.contracts.notifications import (
    Claim,
    ClaimRequest,
    DeliveryStatus,
    MailContent,
    Template,
)
from common.contracts.resends import NotificationQuery, ResendDecision, ResendMark
from common.contracts.users import UserRequest
from database_service.pool import Database
from database_service.repositories.notifications import NotificationRepository
from database_service.repositories.resends import ResendRepository
from database_service.repositories.users import UserRepository
from tests.integration.database_service.builders import a_claim, an_address, claimed, recorded

TODAY = datetime.now(UTC).date()


@pytest.fixture
def resends(database: Database) -> ResendRepository:
    return ResendRepository(database)


async def a_mail(
    notifications: NotificationRepository, status: DeliveryStatus, claim: ClaimRequest | None = None
) -> UUID:
    """A mail that stands like that."""
    claim = claim or a_claim()
    await claimed(notifications, claim)
    if status is not DeliveryStatus.SENDING:
        await recorded(notifications, claim, status)
    return claim.message_id


async def opened(
    resends: ResendRepository, *ids: UUID, force: bool = False, reason: str = ""
) -> list[ResendDecision]:
    mark = ResendMark(notification_ids=list(ids), asked_by="ops", reason=reason, force=force)
    return [result.decision for result in await resends.mark_resends(mark)]


@pytest.mark.parametrize("status", [DeliveryStatus.FAILED, DeliveryStatus.UNSURE])
async def test_an_undelivered_mail_is_opened_for_one_claim(
    notifications: NotificationRepository, resends: ResendRepository, status: DeliveryStatus
) -> None:
    message_id = await a_mail(notifications, status)

    assert await opened(resends, message_id, reason="DNS was wrong") == [ResendDecision.OPENED]
    before = await notifications.select_notification(message_id)
    again = a_claim(message_id)
    assert await claimed(notifications, again) == [Claim.GRANTED]
    assert await claimed(notifications, a_claim(message_id)) == [Claim.BUSY]
    await recorded(notifications, again, DeliveryStatus.SENT)
    assert await claimed(notifications, a_claim(message_id)) == [Claim.SENT]

    assert before.status is status  # until a sender takes it up
    after = await notifications.select_notification(message_id)
    assert [attempt.status for attempt in after.attempts] == [status, DeliveryStatus.SENT]
    (note,) = after.resends
    assert (note.asked_by, note.reason, note.status_before, note.forced) == (
        "ops",
        "DNS was wrong",
        status,
        False,
    )


async def test_a_mail_that_fails_once_more_is_not_sent_a_third_time(
    notifications: NotificationRepository, resends: ResendRepository
) -> None:
    message_id = await a_mail(notifications, DeliveryStatus.FAILED)
    await opened(resends, message_id)
    await opened(resends, message_id)  # twice before anybody took it up
    await a_mail(notifications, DeliveryStatus.FAILED, a_claim(message_id))

    assert await claimed(notifications, a_claim(message_id)) == [Claim.SENT]


@pytest.mark.parametrize("status", [DeliveryStatus.SENT, DeliveryStatus.DEFERRED])
async def test_what_may_have_arrived_is_opened_by_force_only(
    notifications: NotificationRepository, resends: ResendRepository, status: DeliveryStatus
) -> None:
    message_id = await a_mail(notifications, status)

    assert await opened(resends, message_id) == [ResendDecision.NOT_FAILED]
    assert await opened(resends, message_id, force=True) == [ResendDecision.OPENED]
    assert await claimed(notifications, a_claim(message_id)) == [Claim.GRANTED]


async def test_what_a_sender_has_in_hand_is_not_opened_even_by_force(
    notifications: NotificationRepository, resends: ResendRepository, sql: asyncpg.Connection
) -> None:
    message_id = await a_mail(notifications, DeliveryStatus.SENDING)

    assert await opened(resends, message_id, force=True) == [ResendDecision.SENDING]
    await sql.execute("UPDATE notification_logs SET lease_until = now()")
    assert await opened(resends, message_id) == [ResendDecision.SENDING]
    assert await opened(resends, message_id, force=True) == [ResendDecision.OPENED]


async def test_each_of_many_is_decided_by_itself(
    notifications: NotificationRepository, resends: ResendRepository
) -> None:
    failed = await a_mail(notifications, DeliveryStatus.FAILED)
    sent = await a_mail(notifications, DeliveryStatus.SENT)

    assert await opened(resends, failed, uuid4(), sent, failed) == [
        ResendDecision.OPENED,
        ResendDecision.UNKNOWN,
        ResendDecision.NOT_FAILED,
        ResendDecision.OPENED,
    ]


async def test_a_mail_is_written_again_from_what_was_kept_or_not_at_all(
    notifications: NotificationRepository, resends: ResendRepository
) -> None:
    content = MailContent(subject="Ready", data={"reportName": "users", "recordCount": 3})
    claim = a_claim(template=Template.REPORT_READY)
    kept = await a_mail(
        notifications, DeliveryStatus.FAILED, claim.model_copy(update={"content": content})
    )
    lost = await a_mail(
        notifications, DeliveryStatus.FAILED, a_claim(template=Template.REPORT_READY)
    )

    (first, second) = await resends.mark_resends(ResendMark(notification_ids=[kept, lost]))

    assert (first.decision, first.content) == (ResendDecision.OPENED, content)
    assert first.recipient == claim.recipient
    assert (await notifications.select_notification(kept)).content == content
    assert second.decision is ResendDecision.UNWRITABLE


async def test_the_owner_who_was_to_be_told_can_be_told_again(
    notifications: NotificationRepository, resends: ResendRepository, users: UserRepository
) -> None:
    user = (await users.insert_user(UserRequest(name="A", surname="B", email=an_address()))).user
    claim = a_claim(template=Template.ALREADY_REGISTERED, user_id=user.id, recipient=user.email)
    message_id = await a_mail(notifications, DeliveryStatus.FAILED, claim)
    await opened(resends, message_id)

    again = claim.model_copy(update={"lease_id": uuid4()})
    assert await claimed(notifications, again) == [Claim.GRANTED]


async def test_force_does_not_tell_an_owner_twice_a_day(
    notifications: NotificationRepository, resends: ResendRepository, users: UserRepository
) -> None:
    user = (await users.insert_user(UserRequest(name="A", surname="B", email=an_address()))).user
    claims = [
        a_claim(template=Template.ALREADY_REGISTERED, user_id=user.id, recipient=user.email)
        for _ in range(2)
    ]
    assert await claimed(notifications, *claims) == [Claim.GRANTED, Claim.SUPPRESSED]
    await recorded(notifications, claims[0], DeliveryStatus.SENT)
    await opened(resends, claims[1].message_id, force=True)

    assert await claimed(notifications, claims[1]) == [Claim.SUPPRESSED]


async def test_two_who_ask_at_the_same_time_open_it_for_one_claim(
    notifications: NotificationRepository, resends: ResendRepository
) -> None:
    message_id = await a_mail(notifications, DeliveryStatus.FAILED)
    await asyncio.gather(*(opened(resends, message_id) for _ in range(5)))

    answers = await claimed(notifications, *(a_claim(message_id) for _ in range(5)))
    assert sorted(answers) == [*[Claim.BUSY] * 4, Claim.GRANTED]


async def test_the_mails_of_a_day_come_page_by_page(
    notifications: NotificationRepository, resends: ResendRepository, sql: asyncpg.Connection
) -> None:
    failed = [await a_mail(notifications, DeliveryStatus.FAILED) for _ in range(5)]
    await a_mail(notifications, DeliveryStatus.SENT)
    older = await a_mail(notifications, DeliveryStatus.FAILED)
    await sql.execute(
        """
        UPDATE notification_logs
           SET created_at = now() - interval '26 hours', updated_at = now() - interval '1 day'
         WHERE message_id = $1
        """,
        older,
    )

    query = NotificationQuery(day=TODAY, status=DeliveryStatus.FAILED, limit=3)
    first, after = await resends.select_notifications(query)
    second, end = await resends.select_notifications(query.model_copy(update={"after": after}))

    assert [mail.notification_id for mail in (*first, *second)] == failed
    assert len(first) == 3
    assert end is None
    assert first[0].reason == "250 ok"
    yesterday = query.model_copy(update={"day": TODAY - timedelta(days=1)})
    assert [
        mail.notification_id for mail in (await resends.select_notifications(yesterday))[0]
    ] == [older]


async def test_a_list_can_be_narrowed_to_a_template(
    notifications: NotificationRepository, resends: ResendRepository
) -> None:
    await a_mail(notifications, DeliveryStatus.FAILED)
    report = await a_mail(
        notifications, DeliveryStatus.FAILED, a_claim(template=Template.REPORT_READY)
    )

    query = NotificationQuery(day=TODAY, template=Template.REPORT_READY)
    (found,) = (await resends.select_notifications(query))[0]

    assert found.notification_id == report
    assert not found.is_writable


async def test_the_mails_of_a_day_are_found_by_their_blocks(
    database: Database, resends: ResendRepository
) -> None:
    async with database.connection() as connection:
        lines = await connection.fetch(
            f"EXPLAIN {resends.SELECT_NOTIFICATIONS}",
            *(TODAY, 7, "failed", None, 0, 51),
            *(FIRST_CANARY, LAST_CANARY),
        )
    plan = "\n".join(line[0] for line in lines)

    assert "Bitmap Index Scan on notification_logs_created_at_idx" in plan
    assert "Seq Scan" not in plan


@pytest.mark.parametrize("day", [date.min, date.max])
async def test_a_day_beyond_all_mails_has_none(resends: ResendRepository, day: date) -> None:
    assert await resends.select_notifications(NotificationQuery(day=day)) == ([], None)


async def test_the_list_links_its_next_page(
    client: ClientSession, notifications: NotificationRepository
) -> None:
    for _ in range(3):
        await a_mail(notifications, DeliveryStatus.FAILED)

    url, seen = f"/api/notifications?day={TODAY}&status=failed&limit=2", []
    while url:
        async with client.get(url) as answer:
            assert answer.status == 200
            seen += (await answer.json())["notifications"]
            url = str(answer.links["next"]["url"]) if "next" in answer.links else ""

    assert len({mail["notificationId"] for mail in seen}) == len(seen) == 3
