"""A notification: the request for a mail, the claim on it, and its outcome."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar
from uuid import UUID

from pydantic import AfterValidator, BaseModel, Field, StringConstraints, WithJsonSchema

from common.contracts.base import Answer, Body, Contract
from common.contracts.registrations import MAX_BULK
from common.contracts.rules import EmailAddress, Instant, RowId, Text
from common.contracts.topology import EMAIL_NOTIFICATIONS, Route

Data = Annotated[dict[str, str | int | float | bool | None], Field(max_length=50)]
"""What a template fills in: a flat object."""

Subject = Annotated[Text, StringConstraints(min_length=1, max_length=200)]
"""A subject line; without control characters, so no header can be smuggled in."""


class Template(StrEnum):
    """The mails there are; each has an HTML and a plain text form in ``sender/templates``."""

    WELCOME = "welcome"
    ALREADY_REGISTERED = "already_registered"
    REPORT_READY = "report_ready"


SAME_FOR_EVERYBODY = frozenset({Template.WELCOME, Template.ALREADY_REGISTERED})
"""Templates that need no data: a mail of these can be written again from its name alone."""


class MailRequest(BaseModel):
    """The mail that is asked for."""

    to: EmailAddress
    template: Template
    subject: Subject | None = None
    """Instead of the template's own."""

    data: Data = {}


class EmailRequested(MailRequest, Contract):
    """A mail is to be sent; its ``message_id`` is the identity of that mail."""

    type_name: ClassVar[str] = "email.notification.requested.v1"
    route: ClassVar[Route] = EMAIL_NOTIFICATIONS
    is_default: ClassVar[bool] = True
    sample: ClassVar[Mapping[str, Any]] = {
        "to": "ada@example.org",
        "template": "welcome",
        "userId": 42,
        "registrationId": "0192f7a4-5b7c-7c3e-9f10-2b6d1c3a4e5f",
    }

    user_id: RowId | None = None
    registration_id: UUID | None = None


class NotificationRequest(MailRequest, Body):
    """What ``POST /api/notifications/send`` takes."""

    sample: ClassVar[Mapping[str, Any]] = {
        "to": "ada@example.org",
        "template": "report_ready",
        "data": {
            "reportName": "users",
            "recordCount": 1815,
            "downloadUrl": "http://localhost:8084/api/reports/"
            "0192f7a4-5b7c-7c3e-9f10-2b6d1c3a4e5f/download",
        },
    }


class NotificationAccepted(Answer):
    """The request is safe at the broker; ``status_url`` shows its state."""

    notification_id: UUID
    status_url: str
    unused_data: list[str] = []
    """Fields of ``data`` that the template does not use; they were not kept."""


class DeliveryStatus(StrEnum):
    """How a notification stands."""

    SENDING = "sending"
    """A sender holds the lease."""

    SENT = "sent"
    """The mail server answered 250: it has taken over responsibility."""

    DEFERRED = "deferred"
    """Put off (4yz), or refused for what is not the recipient's fault; it will be tried again."""

    FAILED = "failed"
    """The mail server refused the address or the mail itself; it will not be tried again."""

    UNSURE = "unsure"
    """The connection dropped after the final dot; it is sent again with the same Message-ID."""

    SUPPRESSED = "suppressed"
    """Not sent: the owner of the address was told within a day, or the address takes no mail."""

    BOUNCED = "bounced"
    """The mail server had taken it, and it came back as undeliverable."""


LEASE_SECONDS = 30
"""How long a claim holds without a word, by PostgreSQL's clock; its holder renews it in time."""


class MailContent(Body):
    """What a mail is to say besides what its template says to everybody."""

    subject: Subject | None = None
    data: Data = {}


class SuppressedMail(Body):
    """A mail that is not to be sent, since it was before the database forgot it."""

    sample: ClassVar[Mapping[str, Any]] = {
        "messageId": "0192f7a4-5b7c-7c3e-9f10-2b6d1c3a4e5f",
        "recipient": "ada@example.org",
        "template": "welcome",
        "userId": 1,
        "registrationId": "0192f7a4-6c8d-7d4f-8a21-3c7e2d4b5f60",
    }

    message_id: UUID
    recipient: EmailAddress
    template: Template
    user_id: RowId
    registration_id: UUID


class MailSuppressed(Answer):
    """Whether the mail counts as suppressed now."""

    recorded: bool
    """False: something was known of it, which stays as it is."""


class ClaimRequest(Body):
    """A sender asks for the right to send one mail."""

    message_id: UUID
    lease_id: UUID
    """Made anew for each handling of a delivery. The holder asks again to renew."""

    template: Template
    recipient: EmailAddress
    user_id: RowId | None = None
    registration_id: UUID | None = None
    content: MailContent | None = None
    """Kept, so that the mail can be written again; None where the template's name says it all."""


class ClaimRequests(Body):
    """A bulk request for claims."""

    sample: ClassVar[Mapping[str, Any]] = {
        "claims": [
            {
                "messageId": "0192f7a4-5b7c-7c3e-9f10-2b6d1c3a4e5f",
                "leaseId": "0192f7a4-6c8d-7d4f-8a21-3c7e2d4b5f60",
                "template": "welcome",
                "recipient": "ada@example.org",
            }
        ]
    }

    claims: Annotated[list[ClaimRequest], Field(min_length=1, max_length=MAX_BULK)]


class Claim(StrEnum):
    """The answer to a claim."""

    GRANTED = "granted"
    SENT = "sent"
    """It was sent (or refused for good) before: acknowledge, send nothing."""

    SUPPRESSED = "suppressed"
    """It shall not be sent: acknowledge."""

    BUSY = "busy"
    """Another sender holds the lease: keep the delivery, ask again."""


class ClaimResult(Answer):
    """The answer to one claim."""

    message_id: UUID
    claim: Claim
    retry_after_ms: int = 0
    """With ``busy``: milliseconds until the lease ends, if it is not renewed."""


class ClaimResults(Answer):
    """Answers in the order of the request."""

    results: list[ClaimResult]


_OUTCOMES = (
    *(DeliveryStatus.SENT, DeliveryStatus.DEFERRED),
    *(DeliveryStatus.FAILED, DeliveryStatus.UNSURE),
)


def _is_outcome(status: DeliveryStatus) -> DeliveryStatus:
    if status not in _OUTCOMES:
        raise ValueError("An attempt ends as sent, deferred, failed or unsure.")
    return status


class DeliveryOutcome(Body):
    """How one attempt ended; the word of the lease that holds the mail counts."""

    sample: ClassVar[Mapping[str, Any]] = {
        "leaseId": "0192f7a4-6c8d-7d4f-8a21-3c7e2d4b5f60",
        "status": "sent",
        "replyCode": 250,
        "replyText": "2.0.0 Ok: queued",
    }

    lease_id: UUID
    status: Annotated[
        DeliveryStatus,
        AfterValidator(_is_outcome),
        WithJsonSchema({"type": "string", "enum": ["sent", "deferred", "failed", "unsure"]}),
    ]
    reply_code: Annotated[int, Field(ge=0, le=999)] | None = None
    """SMTP reply code (RFC 5321, 4.2), where the server gave one."""

    reply_text: Annotated[Text, StringConstraints(max_length=1000)] = ""
    """The server's own words, on one line."""


class DeliveryOutcomeOf(DeliveryOutcome):
    """One outcome of a bulk request."""

    message_id: UUID


class DeliveryOutcomes(Body):
    """A bulk request with outcomes."""

    sample: ClassVar[Mapping[str, Any]] = {
        "outcomes": [
            {**DeliveryOutcome.sample, "messageId": "0192f7a4-5b7c-7c3e-9f10-2b6d1c3a4e5f"}
        ]
    }

    outcomes: Annotated[list[DeliveryOutcomeOf], Field(min_length=1, max_length=MAX_BULK)]


class OutcomeResult(Answer):
    """Whether one outcome was recorded."""

    message_id: UUID
    recorded: bool
    """False: the lease had passed to another sender, whose word counts, or was never granted."""


class OutcomeResults(Answer):
    """Answers in the order of the request."""

    results: list[OutcomeResult]


class DeliveryAttempt(Answer):
    """One attempt and what the server said."""

    attempt: int
    status: DeliveryStatus
    reply_code: int | None
    reply_text: str
    at: Instant


class ReportAction(StrEnum):
    """What a mail server did with a mail that it had taken (RFC 3464, 2.3.3)."""

    FAILED = "failed"
    """It gave up: the mail came back."""

    DELAYED = "delayed"
    """It still tries."""

    DELIVERED = "delivered"
    RELAYED = "relayed"
    EXPANDED = "expanded"


class DeliveryReport(Answer):
    """What a mail server reported of a mail later (RFC 3464)."""

    action: ReportAction
    status: str
    """RFC 3463, such as 5.1.1."""

    diagnostic: str
    """The server's own words."""

    reported_at: Instant
    """When it was posted here."""


class Resend(Answer):
    """The mail was sent again by hand."""

    asked_at: Instant
    asked_by: str
    reason: str
    status_before: DeliveryStatus
    forced: bool


class Notification(Answer):
    """How a notification stands, attempt by attempt."""

    notification_id: UUID
    template: Template
    status: DeliveryStatus
    reason: str | None = None
    """Why it stands like that, where it was not sent: the mail server's words, or ours."""

    recipient: str
    user_id: int | None
    registration_id: UUID | None
    content: MailContent | None = None
    attempts: list[DeliveryAttempt]
    resends: list[Resend] = []
    """Oldest first."""

    bounces: list[DeliveryReport] = []
    """What mail servers reported later, oldest first."""

    created_at: Instant
    updated_at: Instant
    sent_at: Instant | None
