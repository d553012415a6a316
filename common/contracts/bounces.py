"""Bounces: what mail servers report of mails later, and addresses that get no more mails."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar
from uuid import UUID

from pydantic import Field, StringConstraints

from common.contracts.base import Answer, Body
from common.contracts.mail_status import Refusal
from common.contracts.notifications import ReportAction
from common.contracts.rules import EmailAddress, Instant, Text

STATUS_PATTERN = r"^[245]\.[0-9]{1,3}\.[0-9]{1,3}$"
"""An enhanced status code (RFC 3463)."""

DIAGNOSTIC_LENGTH = 500
"""Characters of a server's text that are kept."""


class BounceReport(Body):
    """What a mail server reported of one recipient."""

    sample: ClassVar[Mapping[str, Any]] = {
        "bounceId": "0192f7a4-6c8d-7d4f-8a21-3c7e2d4b5f60",
        "notificationId": "0192f7a4-5b7c-7c3e-9f10-2b6d1c3a4e5f",
        "action": "failed",
        "status": "5.1.1",
        "diagnostic": "550 5.1.1 no such mailbox",
    }

    bounce_id: UUID
    """Follows from the report: the same report again is recorded once."""

    notification_id: UUID | None = None
    """The mail, where the report names one of ours."""

    recipient: EmailAddress | None = None
    """The recipient, where the report names no mail of ours."""

    action: ReportAction
    status: Annotated[str, StringConstraints(pattern=STATUS_PATTERN)]
    diagnostic: Annotated[Text, StringConstraints(max_length=DIAGNOSTIC_LENGTH)] = ""


class BounceRecorded(Answer):
    """What a report led to."""

    notification_id: UUID | None
    """The mail it is about; None where it names none that is known here."""

    action: ReportAction
    status: str
    is_known: bool
    """Whether it is about a mail or a user of ours; if not, nothing was recorded."""

    is_new: bool
    """False: the same report came before, and changed nothing now."""

    suppressed: bool
    """Whether the address is on the suppression list now."""


class BounceResults(Answer):
    """What each part of a report led to; a report may be about several recipients."""

    results: list[BounceRecorded]


class SuppressedAddress(Answer):
    """An address that gets no mails."""

    address: str
    """In lower case."""

    status: str
    diagnostic: str
    reason: Refusal
    """What kept a mail from it."""

    suppressed_at: Instant
    expires_at: Instant | None
    """When it gets mails again by itself; None if only a person can say so."""


class SuppressedAddresses(Answer):
    """Some addresses in their own order."""

    addresses: list[SuppressedAddress]
    next_after: str | None
    """Pass it as ``after`` for the next page; also as ``Link: rel="next"``."""


class SuppressionQuery(Body):
    """Which page of addresses."""

    after: Annotated[Text, StringConstraints(max_length=320)] = ""
    limit: Annotated[int, Field(ge=1, le=500)] = 50
