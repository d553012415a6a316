from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.contracts.notifications import DeliveryAttempt, DeliveryStatus, Notification, Template
from common.contracts.registrations import Journey, JourneyStatus
from common.contracts.reports import Format, ReportRecord, ReportStatus
from common.contracts.topology import EMAIL_NOTIFICATIONS, REPORT_REQUESTS, USER_REGISTRATION
from common.errors import DatabaseServiceUnavailableError, NotFoundError, UserStreamError
from queue_receiver.dead_letters.outcomes import MessageOutcome, OutcomeTracker

NOW = datetime(2026, 1, 31, tzinfo=UTC)


@dataclass
class FakeRecords:
    """Stands for database_service."""

    mail: Notification | None = None
    journey: JourneyStatus = JourneyStatus.PENDING
    report: ReportStatus = ReportStatus.REQUESTED
    error: UserStreamError | None = None
    asked: list[UUID] = field(default_factory=list)

    async def select_journey(self, registration_id: UUID) -> Journey:
        if self.error:
            raise self.error
        return Journey(registration_id=registration_id, status=self.journey)

    async def select_notification(self, notification_id: UUID) -> Notification:
        if self.error or self.mail is None:
            raise self.error or NotFoundError
        self.asked.append(notification_id)
        return self.mail

    async def select_report(self, report_id: UUID) -> ReportRecord:
        if self.error:
            raise self.error
        return ReportRecord(
            report_id=report_id,
            report_name="users",
            format=Format.CSV,
            status=self.report,
            requested_at=NOW,
        )


def a_mail(status: DeliveryStatus, attempts: int) -> Notification:
    attempt = DeliveryAttempt(attempt=1, status=status, reply_code=451, reply_text="", at=NOW)
    return Notification(
        notification_id=uuid4(),
        template=Template.WELCOME,
        status=status,
        recipient="ada@example.org",
        user_id=None,
        registration_id=None,
        attempts=[attempt] * attempts,
        created_at=NOW,
        updated_at=NOW,
        sent_at=None,
    )


async def outcome_of(records: FakeRecords, route: Any) -> MessageOutcome:
    message = (route.name, uuid4())
    return (await OutcomeTracker(records).poll([message]))[message]


@pytest.mark.parametrize("status", JourneyStatus)
async def test_a_registration_is_handled_when_it_is_stored(status: JourneyStatus) -> None:
    expected = MessageOutcome.OPEN if status is JourneyStatus.PENDING else MessageOutcome.HANDLED

    assert await outcome_of(FakeRecords(journey=status), USER_REGISTRATION) is expected


@pytest.mark.parametrize("status", ReportStatus)
async def test_a_report_is_handled_when_it_is_ready(status: ReportStatus) -> None:
    # "failed" may be from the time before.
    expected = MessageOutcome.HANDLED if status is ReportStatus.READY else MessageOutcome.OPEN

    assert await outcome_of(FakeRecords(report=status), REPORT_REQUESTS) is expected


@pytest.mark.parametrize("route", [USER_REGISTRATION, REPORT_REQUESTS, EMAIL_NOTIFICATIONS])
@pytest.mark.parametrize("error", [NotFoundError(), DatabaseServiceUnavailableError()])
async def test_what_cannot_be_told_is_open(route: Any, error: UserStreamError) -> None:
    assert await outcome_of(FakeRecords(error=error), route) is MessageOutcome.OPEN


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (DeliveryStatus.SENT, MessageOutcome.HANDLED),
        (DeliveryStatus.FAILED, MessageOutcome.HANDLED),
        (DeliveryStatus.SUPPRESSED, MessageOutcome.HANDLED),
        (DeliveryStatus.SENDING, MessageOutcome.OPEN),
        (DeliveryStatus.DEFERRED, MessageOutcome.FAILED),
        (DeliveryStatus.UNSURE, MessageOutcome.FAILED),
    ],
)
async def test_a_mail_is_handled_when_a_mail_server_has_answered(
    status: DeliveryStatus, expected: MessageOutcome
) -> None:
    records, message = FakeRecords(), (EMAIL_NOTIFICATIONS.name, uuid4())
    outcomes = OutcomeTracker(records)
    await outcomes.snapshot([message])

    records.mail = a_mail(status, attempts=1)

    assert await outcomes.poll([message]) == {message: expected}


async def test_that_a_mail_was_put_off_before_does_not_count() -> None:
    records, message = FakeRecords(), (EMAIL_NOTIFICATIONS.name, uuid4())
    outcomes = OutcomeTracker(records)
    records.mail = a_mail(DeliveryStatus.DEFERRED, attempts=7)
    await outcomes.snapshot([message])

    before = await outcomes.poll([message])
    records.mail = a_mail(DeliveryStatus.DEFERRED, attempts=8)
    after = await outcomes.poll([message])

    assert (before[message], after[message]) == (MessageOutcome.OPEN, MessageOutcome.FAILED)
