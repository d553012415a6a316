"""Sending mails again by request: which there are, who asks, and what becomes of it."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar
from uuid import UUID

from pydantic import Field, StringConstraints

from common.contracts.base import Answer, Body
from common.contracts.notifications import (
    SAME_FOR_EVERYBODY,
    DeliveryStatus,
    MailContent,
    Template,
)
from common.contracts.registrations import MAX_BULK
from common.contracts.reports import Day
from common.contracts.rules import Instant, RowId, Text

MAX_RESENDS = 5000
"""Mails that one request sends again; about ten seconds of work."""

Person = Annotated[Text, StringConstraints(strip_whitespace=True, max_length=100)]
Reason = Annotated[Text, StringConstraints(strip_whitespace=True, max_length=500)]


class ResendRequest(Body):
    """Asks for one mail to be sent again."""

    sample: ClassVar[Mapping[str, Any]] = {
        "askedBy": "ada",
        "reason": "The mailbox was full.",
        "force": False,
    }

    asked_by: Person = ""
    """Who asks for it; kept with the mail."""

    reason: Reason = ""
    """Why; kept with the mail."""

    force: bool = False
    """Also where it may have arrived already, or is still being tried."""


class ResendAccepted(Answer):
    """The mail was queued again; ``status_url`` shows how it went."""

    notification_id: UUID
    status_before: DeliveryStatus
    status_url: str


class UndeliveredStatus(StrEnum):
    """States of mails that can be sent again in bulk: they are not known to have arrived."""

    FAILED = "failed"
    UNSURE = "unsure"


class ResendManyRequest(Body):
    """Asks for the mails of one day to be sent again."""

    sample: ClassVar[Mapping[str, Any]] = {
        "day": "2026-01-31",
        "status": "failed",
        "askedBy": "ada",
        "reason": "The mail server was set up wrongly.",
        "dryRun": True,
    }

    day: Day
    """Day, in UTC, of their last change of status."""

    status: UndeliveredStatus = UndeliveredStatus.FAILED
    template: Template | None = None
    """This template only."""

    asked_by: Person = ""
    reason: Reason = ""
    after: RowId | None = None
    """``nextAfter`` of the answer before."""

    limit: Annotated[int, Field(ge=1, le=MAX_RESENDS)] = 1000
    """Mails to look at, at most."""

    dry_run: bool = False
    """Count only; nothing is sent."""


class ResendManyResult(Answer):
    """What became of the mails that were found: each is in one of the four counts."""

    dry_run: bool
    found: int
    resent: int
    """Queued again; in a dry run, that would be."""

    suppressed: int
    """Left alone: their address is on the suppression list."""

    unwritable: int
    """Left alone: their content was not kept, so they cannot be written again."""

    changed: int
    """Left alone: their status changed meanwhile."""

    next_after: int | None
    """Pass it as ``after`` for the rest; None if that was all."""


class NotificationQuery(Body):
    """Which mails to list."""

    day: Day
    """Day, in UTC, of their last change of status."""

    status: DeliveryStatus | None = None
    template: Template | None = None
    after: RowId | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_BULK)] = 50


class NotificationSummary(Answer):
    """One mail of a list."""

    notification_id: UUID
    template: Template
    status: DeliveryStatus
    reason: str | None
    recipient: str
    user_id: int | None
    registration_id: UUID | None
    content: MailContent | None
    is_suppressed: bool
    """Whether its address is on the suppression list."""

    created_at: Instant
    updated_at: Instant

    @property
    def is_writable(self) -> bool:
        """Whether the content of the mail is known."""
        return self.content is not None or self.template in SAME_FOR_EVERYBODY


class NotificationList(Answer):
    """Some mails of a day, oldest first."""

    notifications: list[NotificationSummary]
    next_after: int | None
    """Pass it as ``after`` for the next page; also as ``Link: rel="next"``."""


class ResendMark(Body):
    """Opens mails for one more claim each, whatever became of them."""

    sample: ClassVar[Mapping[str, Any]] = {
        "notificationIds": ["0192f7a4-5b7c-7c3e-9f10-2b6d1c3a4e5f"],
        "askedBy": "ada",
    }

    notification_ids: Annotated[list[UUID], Field(min_length=1, max_length=MAX_BULK)]
    asked_by: Person = ""
    reason: Reason = ""
    force: bool = False


class ResendDecision(StrEnum):
    """Whether a mail was opened for one more claim."""

    OPENED = "opened"
    SENDING = "sending"
    """A sender is sending it."""

    NOT_FAILED = "not_failed"
    """It was sent, or is still being tried: only with ``force``."""

    SUPPRESSED = "suppressed"
    """Its address is on the suppression list."""

    UNWRITABLE = "unwritable"
    """Its content was not kept."""

    UNKNOWN = "unknown"
    """There is no such mail."""


class ResendMarked(Answer):
    """What became of one mail, and all that is needed to ask for it again."""

    notification_id: UUID
    decision: ResendDecision
    status: DeliveryStatus | None = None
    template: Template | None = None
    recipient: str | None = None
    user_id: int | None = None
    registration_id: UUID | None = None
    content: MailContent | None = None


class ResendMarks(Answer):
    """Answers in the order of the request."""

    results: list[ResendMarked]
