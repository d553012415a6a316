"""What became of a message that was sent back, by what database_service knows of it."""

import asyncio
from collections.abc import Collection
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from common.contracts.notifications import DeliveryStatus, Notification
from common.contracts.registrations import Journey, JourneyStatus
from common.contracts.reports import ReportRecord, ReportStatus
from common.contracts.topology import EMAIL_NOTIFICATIONS, REPORT_REQUESTS
from common.errors import UserStreamError

MAX_REQUESTS = 20
"""Requests to database_service at the same time; registrations and mails go first."""

_TRIED_AGAIN = (DeliveryStatus.DEFERRED, DeliveryStatus.UNSURE)
_OPEN = (DeliveryStatus.SENDING, *_TRIED_AGAIN)


class MessageOutcome(StrEnum):
    """What became of a message."""

    OPEN = "open"
    """Not handled yet, or not known at the moment."""

    HANDLED = "handled"
    """Stored, sent, made; or refused for good by a mail server, which is an answer."""

    FAILED = "failed"
    """Tried once more without success, and waiting for the next try."""


class Records(Protocol):
    """What is known: ``common.database_client.client`` in production."""

    async def select_journey(self, registration_id: UUID) -> Journey:
        """How far a registration has come."""
        ...

    async def select_notification(self, notification_id: UUID) -> Notification:
        """How a mail stands."""
        ...

    async def select_report(self, report_id: UUID) -> ReportRecord:
        """How a report stands."""
        ...


class OutcomeTracker:
    """Polls many messages, each named by its route and id."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._slots = asyncio.Semaphore(MAX_REQUESTS)
        self._attempts: dict[UUID, int] = {}

    async def snapshot(self, messages: Collection[tuple[str, UUID]]) -> None:
        """Record how often each mail was tried before it is sent back."""
        mails = [message_id for route, message_id in messages if route == EMAIL_NOTIFICATIONS.name]
        found = await asyncio.gather(*(self._mail(message_id) for message_id in mails))
        self._attempts = {
            message_id: len(mail.attempts) if mail else 0
            for message_id, mail in zip(mails, found, strict=True)
        }

    async def poll(
        self, messages: Collection[tuple[str, UUID]]
    ) -> dict[tuple[str, UUID], MessageOutcome]:
        """What has become of each message by now."""
        polled = list(messages)
        outcomes = await asyncio.gather(*(self._outcome(*message) for message in polled))
        return dict(zip(polled, outcomes, strict=True))

    async def _outcome(self, route: str, message_id: UUID) -> MessageOutcome:
        if route == EMAIL_NOTIFICATIONS.name:
            return self._mail_outcome(message_id, await self._mail(message_id))
        try:
            async with self._slots:
                if route == REPORT_REQUESTS.name:
                    report = await self._records.select_report(message_id)
                    is_done = report.status is ReportStatus.READY
                else:
                    journey = await self._records.select_journey(message_id)
                    is_done = journey.status is not JourneyStatus.PENDING
        except UserStreamError:  # away, or not known yet: poll again
            return MessageOutcome.OPEN
        return MessageOutcome.HANDLED if is_done else MessageOutcome.OPEN

    async def _mail(self, message_id: UUID) -> Notification | None:
        try:
            async with self._slots:
                return await self._records.select_notification(message_id)
        except UserStreamError:  # away, or not known yet
            return None

    def _mail_outcome(self, message_id: UUID, mail: Notification | None) -> MessageOutcome:
        if mail is None:
            return MessageOutcome.OPEN
        if mail.status not in _OPEN:
            return MessageOutcome.HANDLED
        was_tried = len(mail.attempts) > self._attempts.get(message_id, 0)
        if was_tried and mail.status in _TRIED_AGAIN:
            return MessageOutcome.FAILED
        return MessageOutcome.OPEN
