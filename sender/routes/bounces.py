"""``POST /api/bounces``: what mail servers report later, matched to our mails."""

from hashlib import sha256
from uuid import UUID, uuid5

import structlog
from aiohttp import web
from pydantic import TypeAdapter, ValidationError

from common import metrics
from common.contracts.bounces import BounceRecorded, BounceReport, BounceResults
from common.contracts.notifications import Notification
from common.contracts.rules import EmailAddress
from common.database_client.client import DatabaseClient
from common.errors import DatabaseServiceUnavailableError, NotFoundError
from common.http.api import Api, answer
from sender.dsn import MAX_BYTES, NotABounceError, RecipientReport, Report, read_report
from sender.routes.notifications import DATABASE

log = structlog.get_logger()

IDS = UUID("5a0f8f0e-6f0e-5d1b-9a55-0d6b1c6e1a52")
"""Namespace of the ids that follow from a report's bytes."""

MAIL = {
    "message/rfc822": "The report as a mail server sent it, headers and all.",
    "message/global": "The same with UTF-8 in its headers.",
    "multipart/report": "The same, or only its parts.",
    "application/octet-stream": "The same, from a program that does not say what it sends.",
}

_ADDRESS: TypeAdapter[str] = TypeAdapter(EmailAddress)

api = Api()


@api.post(
    "/api/bounces",
    raw=MAIL,
    max_body_bytes=MAX_BYTES,
    returns={200: BounceResults},
    raises=(NotABounceError, DatabaseServiceUnavailableError),
)
async def take_bounce(request: web.Request, *, raw: bytes) -> web.Response:
    """Take a delivery status notification; posting the same again changes nothing."""
    report = read_report(_whole_mail(request, raw))
    database = request.app[DATABASE]
    notification = await _find(database, report)
    results = []
    for number, part in enumerate(report.recipients):
        bounce_id = uuid5(IDS, f"{sha256(raw).hexdigest()} {number}")
        wanted = _about(bounce_id, part, notification, alone=len(report.recipients) == 1)
        result = await database.insert_bounce(wanted) if wanted else _unknown_recipient(part)
        _log_result(result)
        results.append(result)
    return answer(BounceResults(results=results))


def _whole_mail(request: web.Request, raw: bytes) -> bytes:
    """Return the mail; where only its parts were posted, their boundary is in the header."""
    if request.content_type == "multipart/report" and raw.lstrip().startswith(b"--"):
        content_type = request.headers["Content-Type"].encode("utf-8", "surrogateescape")
        return b"Content-Type: " + content_type + b"\n\n" + raw
    return raw


async def _find(database: DatabaseClient, report: Report) -> Notification | None:
    """Return the mail that the report names, if it is known."""
    for message_id in report.message_ids:
        try:
            return await database.select_notification(message_id)
        except NotFoundError:
            continue
    return None


def _about(
    bounce_id: UUID, part: RecipientReport, notification: Notification | None, *, alone: bool
) -> BounceReport | None:
    """Return what is to be recorded; None if it names no address that a mail was sent to.

    Our mails have one recipient. A report that names only another one is about an address that
    the mail was forwarded to.
    """
    recipient = None
    if notification is None:
        recipient = next(filter(None, map(_valid_address, part.recipients)), None)
        if recipient is None:
            return None
    elif not alone and notification.recipient.lower() not in map(str.lower, part.recipients):
        return None
    return BounceReport(
        bounce_id=bounce_id,
        notification_id=notification.notification_id if notification else None,
        recipient=recipient,
        action=part.action,
        status=part.status,
        diagnostic=part.diagnostic,
    )


def _valid_address(address: str) -> str | None:
    try:
        return _ADDRESS.validate_python(address)
    except ValidationError:
        return None


def _unknown_recipient(part: RecipientReport) -> BounceRecorded:
    return BounceRecorded(
        notification_id=None,
        action=part.action,
        status=part.status,
        is_known=False,
        is_new=False,
        suppressed=False,
    )


def _log_result(result: BounceRecorded) -> None:
    """Count and log it; without the address and the server's text, which may name it."""
    if not result.is_known:
        outcome = "unknown"
    else:
        outcome = result.action.value if result.is_new else "repeated"
    metrics.BOUNCES.labels(outcome).inc()
    log.info(
        "bounce.recorded",
        outcome=outcome,
        status=result.status,
        suppressed=result.suppressed,
        notification_id=str(result.notification_id) if result.notification_id else None,
    )
