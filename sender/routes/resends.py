"""Sending mails again by hand: one, or those of a day.

The same notification is sent again, with the same ``Message-ID``: a recipient who got it the first
time sees one mail. First database_service opens it for one more claim, then it is published as
any mail request is. A crash in between leaves it as it was, so that it is found and requested
again; requested twice, it is claimed and sent once.
"""

import asyncio
from collections.abc import Sequence

import structlog
from aiohttp import web

from common import metrics
from common.amqp.publisher import Publisher
from common.context import current
from common.contracts.notifications import EmailRequested
from common.contracts.registrations import MAX_BULK
from common.contracts.resends import (
    NotificationQuery,
    NotificationSummary,
    ResendAccepted,
    ResendDecision,
    ResendManyRequest,
    ResendManyResult,
    ResendMark,
    ResendMarked,
    ResendRequest,
)
from common.database_client.client import DatabaseClient
from common.errors import (
    BrokerUnavailableError,
    ConflictError,
    DatabaseServiceUnavailableError,
    NotFoundError,
)
from common.http.api import Api, answer
from sender.routes.notifications import DATABASE, PUBLISHER, NotificationPath

log = structlog.get_logger()

api = Api()

REFUSALS = {
    ResendDecision.SENDING: "A sender is sending this mail. Retry when it is done.",
    ResendDecision.NOT_FAILED: "This mail has not failed: it was sent, is still being retried, or "
    "was suppressed. Set force to send it again all the same; it has the same "
    "Message-ID, so most mailboxes show it once.",
    ResendDecision.SUPPRESSED: "Its address is on the suppression list, since mails to it came "
    "back. Remove it there first if it is good again: DELETE /api/suppressions/{address} of "
    "database_service.",
    ResendDecision.UNWRITABLE: "The content of this mail was not kept, so it cannot be written "
    "again. Request a new one: POST /api/notifications/send.",
}
"""Why a mail is not sent again; nothing was changed."""


@api.post(
    "/api/notifications/{notification_id}/resend",
    path=NotificationPath,
    body=ResendRequest,
    returns={202: ResendAccepted},
    raises=(
        NotFoundError,
        ConflictError,
        BrokerUnavailableError,
        DatabaseServiceUnavailableError,
    ),
)
async def resend(
    request: web.Request, *, path: NotificationPath, body: ResendRequest
) -> web.Response:
    """Send one mail again, with the same Message-ID; 202 means that the broker confirmed it."""
    mark = ResendMark(
        notification_ids=[path.notification_id],
        asked_by=body.asked_by,
        reason=body.reason,
        force=body.force,
    )
    (marked,) = await request.app[DATABASE].mark_resends(mark)
    if marked.decision is ResendDecision.UNKNOWN or marked.status is None:
        raise NotFoundError("No sender has ever taken up a mail with this id.")
    if marked.decision is not ResendDecision.OPENED:
        raise ConflictError(f"{REFUSALS[marked.decision]} It stands as {marked.status}.")
    await _publish(request.app[PUBLISHER], marked)
    status_url = f"/api/notifications/{path.notification_id}"
    return answer(
        ResendAccepted(
            notification_id=path.notification_id,
            status_before=marked.status,
            status_url=status_url,
        ),
        status=202,
        headers={"Location": status_url},
    )


@api.post(
    "/api/notifications/resend",
    body=ResendManyRequest,
    returns={200: ResendManyResult},
    raises=(BrokerUnavailableError, DatabaseServiceUnavailableError),
)
async def resend_many(request: web.Request, *, body: ResendManyRequest) -> web.Response:
    """Send the mails of one day again that failed, or that may not have arrived.

    After a 503 some were requested: repeat the call, none of them is sent twice for it.
    """
    database, publisher = request.app[DATABASE], request.app[PUBLISHER]
    result = ResendManyResult(
        dry_run=body.dry_run,
        found=0,
        resent=0,
        suppressed=0,
        unwritable=0,
        changed=0,
        next_after=body.after,
    )
    while (size := min(MAX_BULK, body.limit - result.found)) > 0:
        page = await database.select_notifications(
            NotificationQuery(
                day=body.day,
                status=body.status.value,
                template=body.template,
                after=result.next_after,
                limit=size,
            )
        )
        decisions = _dry_run(page.notifications)
        if not body.dry_run:
            decisions = await _resend(database, publisher, page.notifications, body)
        result = _added(result, decisions, page.next_after)
        if page.next_after is None:
            break
    if not body.dry_run:
        log.info("email.resends_requested", found=result.found, resent=result.resent)
    return answer(result)


def _dry_run(mails: Sequence[NotificationSummary]) -> list[ResendDecision]:
    """Return what would be decided about them now."""
    writable = {True: ResendDecision.OPENED, False: ResendDecision.UNWRITABLE}
    return [
        ResendDecision.SUPPRESSED if mail.is_suppressed else writable[mail.is_writable]
        for mail in mails
    ]


async def _resend(
    database: DatabaseClient,
    publisher: Publisher,
    mails: Sequence[NotificationSummary],
    body: ResendManyRequest,
) -> list[ResendDecision]:
    if not mails:
        return []
    marked = await database.mark_resends(
        ResendMark(
            notification_ids=[mail.notification_id for mail in mails],
            asked_by=body.asked_by,
            reason=body.reason,
        )
    )
    opened = [mail for mail in marked if mail.decision is ResendDecision.OPENED]
    await asyncio.gather(*(_publish(publisher, mail) for mail in opened))
    return [mail.decision for mail in marked]


def _added(
    result: ResendManyResult, decisions: Sequence[ResendDecision], next_after: int | None
) -> ResendManyResult:
    opened, suppressed, unwritable = map(
        decisions.count,
        (ResendDecision.OPENED, ResendDecision.SUPPRESSED, ResendDecision.UNWRITABLE),
    )
    return result.model_copy(
        update={
            "found": result.found + len(decisions),
            "resent": result.resent + opened,
            "suppressed": result.suppressed + suppressed,
            "unwritable": result.unwritable + unwritable,
            "changed": result.changed + len(decisions) - opened - suppressed - unwritable,
            "next_after": next_after,
        }
    )


async def _publish(publisher: Publisher, mail: ResendMarked) -> None:
    """Request a mail again as it was requested the first time."""
    content = mail.content
    await publisher.publish(
        EmailRequested.model_validate(
            {
                "to": mail.recipient,
                "template": mail.template,
                "subject": content.subject if content else None,
                "data": content.data if content else {},
                "user_id": mail.user_id,
                "registration_id": mail.registration_id,
            }
        ),
        message_id=mail.notification_id,
        correlation_id=current().correlation_id,
    )
    metrics.RESENDS.labels(str(mail.status)).inc()
    log.info(
        "email.resend_requested",
        notification_id=str(mail.notification_id),
        status_before=mail.status,
    )
