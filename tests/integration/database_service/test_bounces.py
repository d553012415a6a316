"""A mail that came back is bounced, and its address gets no more mails until somebody says so."""

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from aiohttp import ClientSession

from common.contracts.bounces import BounceRecorded, BounceReport
from common.contracts.ledger import LedgerBatch, LedgerEntry, ReconciliationRequest
from common.contracts.notifications import (
    Claim,
    ClaimRequest,
    DeliveryStatus,
    ReportAction,
    Template,
)
from common.contracts.registrations import JourneyStatus
from common.contracts.resends import ResendDecision, ResendMark
from common.contracts.users import UserRequest
from common.errors import NotFoundError
from database_service.pool import Database
from database_service.repositories.bounces import BounceRepository
from database_service.repositories.ledger import LedgerRepository
from database_service.repositories.notifications import NotificationRepository
from database_service.repositories.registrations import RegistrationRepository
from database_service.repositories.resends import ResendRepository
from database_service.repositories.users import UserRepository
from tests.integration.database_service.builders import (
    a_claim,
    a_registration,
    an_address,
    an_outcome,
    claimed,
    recorded,
)


@pytest.fixture
def bounces(database: Database) -> BounceRepository:
    return BounceRepository(database)


def a_report(notification_id: UUID | None = None, **changes: Any) -> BounceReport:
    values = {
        "bounce_id": uuid4(),
        "notification_id": notification_id,
        "action": "failed",
        "status": "5.1.1",
        "diagnostic": "550 5.1.1 no such user",
    }
    return BounceReport.model_validate(values | changes)


async def a_sent_mail(notifications: NotificationRepository, **changes: Any) -> ClaimRequest:
    claim = a_claim(**{"recipient": an_address(), **changes})
    await claimed(notifications, claim)
    await recorded(notifications, claim, DeliveryStatus.SENT)
    return claim


async def test_a_mail_that_came_back_is_bounced_and_its_address_gets_no_more(
    notifications: NotificationRepository, bounces: BounceRepository
) -> None:
    claim = await a_sent_mail(notifications)

    recorded_ = await bounces.insert_bounce(a_report(claim.message_id))

    assert recorded_ == BounceRecorded(
        notification_id=claim.message_id,
        action=ReportAction.FAILED,
        status="5.1.1",
        is_known=True,
        is_new=True,
        suppressed=True,
    )
    mail = await notifications.select_notification(claim.message_id)
    assert mail.status is DeliveryStatus.BOUNCED
    assert mail.reason == "5.1.1 550 5.1.1 no such user"
    assert mail.sent_at is not None  # the mail server had taken it
    assert [(report.action, report.status) for report in mail.bounces] == [("failed", "5.1.1")]
    later = a_claim(recipient=claim.recipient.upper())
    other = a_claim(recipient=an_address())
    assert await claimed(notifications, later, other) == [Claim.SUPPRESSED, Claim.GRANTED]
    held_back = await notifications.select_notification(later.message_id)
    assert (held_back.status, held_back.attempts) == (DeliveryStatus.SUPPRESSED, [])
    assert held_back.reason == "The address is on the suppression list."


async def test_a_mail_in_progress_to_that_address_is_suppressed_too(
    notifications: NotificationRepository, bounces: BounceRepository
) -> None:
    sent = await a_sent_mail(notifications)
    deferred = a_claim(recipient=sent.recipient)
    await claimed(notifications, deferred)
    await recorded(notifications, deferred, DeliveryStatus.DEFERRED)
    await bounces.insert_bounce(a_report(sent.message_id))

    assert await claimed(notifications, a_claim(deferred.message_id)) == [Claim.SUPPRESSED]


async def test_a_sender_at_work_may_finish(
    notifications: NotificationRepository, bounces: BounceRepository
) -> None:
    sent, working = await a_sent_mail(notifications), a_claim()
    working = a_claim(recipient=sent.recipient)
    await claimed(notifications, working)
    await bounces.insert_bounce(a_report(sent.message_id))

    assert await claimed(notifications, working) == [Claim.GRANTED]
    assert await recorded(notifications, working, DeliveryStatus.SENT)


@pytest.mark.parametrize("action", ["delayed", "delivered", "relayed", "expanded"])
async def test_a_mail_that_has_not_come_back_stays_as_it_is(
    notifications: NotificationRepository, bounces: BounceRepository, action: str
) -> None:
    claim = await a_sent_mail(notifications)

    result = await bounces.insert_bounce(a_report(claim.message_id, action=action, status="4.4.1"))

    assert (result.is_new, result.suppressed) == (True, False)
    mail = await notifications.select_notification(claim.message_id)
    assert mail.status is DeliveryStatus.SENT
    assert [report.action for report in mail.bounces] == [action]


async def test_a_mail_given_up_for_a_passing_reason_came_back_but_its_address_is_good(
    notifications: NotificationRepository, bounces: BounceRepository
) -> None:
    claim = await a_sent_mail(notifications)

    result = await bounces.insert_bounce(a_report(claim.message_id, status="4.4.7"))

    assert not result.suppressed
    mail = await notifications.select_notification(claim.message_id)
    assert mail.status is DeliveryStatus.BOUNCED


async def test_the_same_report_again_changes_nothing(
    notifications: NotificationRepository, bounces: BounceRepository, resends: ResendRepository
) -> None:
    claim = await a_sent_mail(notifications)
    report = a_report(claim.message_id)
    await bounces.insert_bounce(report)
    await bounces.delete_suppression(claim.recipient)
    await resends.mark_resends(ResendMark(notification_ids=[claim.message_id], force=True))
    again = a_claim(claim.message_id, recipient=claim.recipient)
    assert await claimed(notifications, again) == [Claim.GRANTED]
    await recorded(notifications, again, DeliveryStatus.SENT)

    result = await bounces.insert_bounce(report)

    assert (result.is_known, result.is_new, result.suppressed) == (True, False, False)
    mail = await notifications.select_notification(claim.message_id)
    assert mail.status is DeliveryStatus.SENT


@pytest.fixture
def resends(database: Database) -> ResendRepository:
    return ResendRepository(database)


async def test_a_mail_to_a_suppressed_address_is_not_sent_again(
    notifications: NotificationRepository, bounces: BounceRepository, resends: ResendRepository
) -> None:
    claim = await a_sent_mail(notifications)
    await bounces.insert_bounce(a_report(claim.message_id))

    mark = ResendMark(notification_ids=[claim.message_id], force=True)
    (marked,) = await resends.mark_resends(mark)

    assert marked.decision is ResendDecision.SUPPRESSED


async def test_a_mail_opened_before_its_address_was_suppressed_stays_what_it_was(
    notifications: NotificationRepository, bounces: BounceRepository, resends: ResendRepository
) -> None:
    other = await a_sent_mail(notifications)
    failed = a_claim(recipient=other.recipient)
    await claimed(notifications, failed)
    await recorded(notifications, failed, DeliveryStatus.FAILED)
    await resends.mark_resends(ResendMark(notification_ids=[failed.message_id]))
    await bounces.insert_bounce(a_report(other.message_id))

    assert await claimed(notifications, a_claim(failed.message_id)) == [Claim.SENT]
    mail = await notifications.select_notification(failed.message_id)
    assert mail.status is DeliveryStatus.FAILED


async def test_a_late_word_that_it_was_sent_does_not_undo_a_bounce(
    notifications: NotificationRepository, bounces: BounceRepository
) -> None:
    claim = a_claim(recipient=an_address())
    await claimed(notifications, claim)
    await recorded(notifications, claim, DeliveryStatus.UNSURE)
    await bounces.insert_bounce(a_report(claim.message_id))

    (result,) = await notifications.update_outcomes([an_outcome(claim, DeliveryStatus.SENT)])

    assert result.recorded
    mail = await notifications.select_notification(claim.message_id)
    assert mail.status is DeliveryStatus.BOUNCED
    assert await claimed(notifications, a_claim(claim.message_id)) == [Claim.SENT]


async def test_without_a_mail_a_user_is_suppressed_and_a_stranger_is_not(
    bounces: BounceRepository, users: UserRepository, sql: asyncpg.Connection
) -> None:
    user = (await users.insert_user(UserRequest(name="A", surname="B", email=an_address()))).user

    of_user = await bounces.insert_bounce(a_report(recipient=user.email.upper()))
    of_unknown = await bounces.insert_bounce(a_report(recipient=an_address()))
    of_unknown_mail = await bounces.insert_bounce(a_report(uuid4()))

    assert (of_user.is_known, of_user.suppressed) == (True, True)
    assert (of_unknown.is_known, of_unknown.suppressed) == (False, False)
    assert (of_unknown_mail.is_known, of_unknown_mail.suppressed) == (False, False)
    assert await sql.fetchval("SELECT count(*) FROM notification_bounces") == 1
    assert await sql.fetchval("SELECT array_agg(address) FROM suppressed_addresses") == [user.email]


@pytest.mark.parametrize(("days", "status"), [(13, "bounced"), (15, "sent")])
async def test_a_report_without_an_id_is_about_a_mail_of_the_last_two_weeks(
    users: UserRepository,
    notifications: NotificationRepository,
    bounces: BounceRepository,
    sql: asyncpg.Connection,
    *,
    days: int,
    status: str,
) -> None:
    user = (await users.insert_user(UserRequest(name="A", surname="B", email=an_address()))).user
    claim = await a_sent_mail(notifications, recipient=user.email, user_id=user.id)
    await sql.execute(
        "UPDATE notification_logs SET updated_at = now() - make_interval(days => $1)", days
    )

    await bounces.insert_bounce(a_report(recipient=user.email))

    assert (await notifications.select_notification(claim.message_id)).status == status


WEEK, MONTH = timedelta(days=7), timedelta(days=30)


@pytest.mark.parametrize(
    ("status", "diagnostic", "expected"),
    [
        ("5.1.1", "550 5.1.1 no such user", ("no_such_address", None)),
        ("5.1.10", "550 5.1.10 RESOLVER.ADR.RecipientNotFound", ("no_such_address", None)),
        ("5.2.1", "550 5.2.1 disabled", ("no_such_address", None)),
        ("5.0.0", "550 Unknown user", ("no_such_address", None)),
        ("5.1.2", "", ("no_such_domain", MONTH)),
        ("5.4.4", "Host or domain name not found", ("no_such_domain", MONTH)),
        ("5.2.2", "552 5.2.2 mailbox full", ("mailbox_full", WEEK)),
        ("4.2.2", "452 4.2.2 mailbox full", ("mailbox_full", WEEK)),
        ("5.7.1", "554 5.7.1 blocked using dnsbl.example", None),
        ("5.4.316", "550 5.4.316 Message expired", None),
        ("5.1.8", "550 5.1.8 bad outbound sender", None),
        ("5.3.4", "552 5.3.4 too big", None),
        ("5.0.0", "550 Sender verify failed", None),
        ("5.0.0", "", None),
    ],
)
async def test_only_what_lies_with_the_address_suppresses_it_and_a_full_mailbox_for_a_week(
    notifications: NotificationRepository,
    bounces: BounceRepository,
    status: str,
    diagnostic: str,
    expected: tuple[str, timedelta | None] | None,
) -> None:
    claim = await a_sent_mail(notifications)

    result = await bounces.insert_bounce(
        a_report(claim.message_id, status=status, diagnostic=diagnostic)
    )

    assert result.suppressed is (expected is not None)
    mail = await notifications.select_notification(claim.message_id)
    assert mail.status is DeliveryStatus.BOUNCED
    if expected is not None:
        entry = await bounces.select_suppression(claim.recipient)
        ends_after = entry.expires_at - entry.suppressed_at if entry.expires_at else None
        assert (entry.reason, ends_after) == expected


async def test_what_has_run_out_suppresses_no_more(
    notifications: NotificationRepository,
    bounces: BounceRepository,
    resends: ResendRepository,
    sql: asyncpg.Connection,
) -> None:
    claim = await a_sent_mail(notifications)
    waiting = a_claim(recipient=claim.recipient)
    assert await claimed(notifications, waiting) == [Claim.GRANTED]
    assert await recorded(notifications, waiting, DeliveryStatus.DEFERRED)
    full = {"status": "5.2.2", "diagnostic": "mailbox full"}
    await bounces.insert_bounce(a_report(claim.message_id, **full))
    later, last = a_claim(recipient=claim.recipient), a_claim(recipient=claim.recipient)

    assert await claimed(notifications, later) == [Claim.SUPPRESSED]
    await sql.execute("UPDATE suppressed_addresses SET expires_at = now()")

    assert await claimed(notifications, last, waiting) == [Claim.GRANTED, Claim.GRANTED]
    mark = ResendMark(notification_ids=[claim.message_id], force=True)
    assert (await resends.mark_resends(mark))[0].decision is ResendDecision.OPENED
    assert await bounces.select_suppressions_after("", 10) == []
    with pytest.raises(NotFoundError):
        await bounces.select_suppression(claim.recipient)
    again = await bounces.insert_bounce(a_report(claim.message_id, **full))
    assert again.suppressed


async def test_what_never_ends_is_not_replaced_by_what_does(
    notifications: NotificationRepository, bounces: BounceRepository
) -> None:
    claim = await a_sent_mail(notifications)
    for status in ("5.2.2", "5.1.1", "5.2.2"):
        await bounces.insert_bounce(a_report(claim.message_id, status=status, diagnostic=""))

    entry = await bounces.select_suppression(claim.recipient)
    assert (entry.status, entry.expires_at) == ("5.1.1", None)


async def test_a_report_under_another_id_is_about_the_last_mail_to_that_user(
    notifications: NotificationRepository, bounces: BounceRepository, users: UserRepository
) -> None:
    user = (await users.insert_user(UserRequest(name="A", surname="B", email=an_address()))).user
    first, last, unsent = (a_claim(recipient=user.email, user_id=user.id) for _ in range(3))
    for claim in (first, last):
        await claimed(notifications, claim)
        await recorded(notifications, claim, DeliveryStatus.SENT)
    await claimed(notifications, unsent)

    result = await bounces.insert_bounce(a_report(recipient=user.email.upper(), status="5.7.1"))

    assert result.notification_id == last.message_id
    statuses = [
        (await notifications.select_notification(claim.message_id)).status
        for claim in (first, last, unsent)
    ]
    assert statuses == [DeliveryStatus.SENT, DeliveryStatus.BOUNCED, DeliveryStatus.SENDING]


async def test_a_journey_does_not_tell_that_the_mail_came_back(
    registrations: RegistrationRepository,
    notifications: NotificationRepository,
    bounces: BounceRepository,
) -> None:
    """Whoever typed an address would learn whether it exists."""
    item = a_registration()
    await registrations.insert_registrations([item])
    claim = await a_sent_mail(
        notifications,
        recipient=item.email,
        registration_id=item.registration_id,
        template=Template.WELCOME,
    )
    before = await registrations.select_journey(item.registration_id)
    await bounces.insert_bounce(a_report(claim.message_id))

    assert before.status is JourneyStatus.MAILED
    assert await registrations.select_journey(item.registration_id) == before


async def test_the_list_is_read_page_by_page_and_an_address_taken_off_it(
    client: ClientSession, notifications: NotificationRepository, bounces: BounceRepository
) -> None:
    addresses = sorted([an_address() for _ in range(3)])
    for address in addresses:
        claim = await a_sent_mail(notifications, recipient=address)
        await bounces.insert_bounce(a_report(claim.message_id))

    url, listed = "/api/suppressions?limit=2", []
    while url:
        async with client.get(url) as answer:
            listed += [entry["address"] for entry in (await answer.json())["addresses"]]
            url = str(answer.links["next"]["url"]) if "next" in answer.links else ""
    async with client.get(f"/api/suppressions/{addresses[0].upper()}") as answer:
        entry = await answer.json()
    async with client.delete(f"/api/suppressions/{addresses[0].upper()}") as answer:
        assert answer.status == 204
    async with client.delete(f"/api/suppressions/{addresses[0]}") as answer:
        assert answer.status == 404

    assert listed == addresses
    assert entry["status"] == "5.1.1"
    with pytest.raises(NotFoundError):
        await bounces.select_suppression(addresses[0])
    claims = [a_claim(recipient=address) for address in addresses[:2]]
    assert await claimed(notifications, *claims) == [Claim.GRANTED, Claim.SUPPRESSED]


async def test_the_ledger_counts_a_mail_that_came_back(
    database: Database,
    registrations: RegistrationRepository,
    notifications: NotificationRepository,
    bounces: BounceRepository,
) -> None:
    item, ledger = a_registration(), LedgerRepository(database)
    await registrations.insert_registrations([item])
    claim = await a_sent_mail(
        notifications, recipient=item.email, registration_id=item.registration_id
    )
    await bounces.insert_bounce(a_report(claim.message_id))
    entry = LedgerEntry(
        registration_id=item.registration_id, accepted_at=item.received_at, stream_offset=0
    )
    await ledger.insert_entries(
        LedgerBatch(
            stream="user.registration.log",
            from_offset=0,
            next_offset=1,
            last_id=item.registration_id,
            entries=[entry],
        )
    )

    request = ReconciliationRequest(stream="user.registration.log", missing_for_seconds=0)
    totals = (await ledger.reconcile_entries(request)).totals

    assert (totals.accepted, totals.stored, totals.mails.bounced) == (1, 1, 1)
