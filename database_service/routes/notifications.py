"""Notifications over HTTP: claims, outcomes, and the state of a mail."""

from uuid import UUID

from aiohttp import web

from common.contracts.base import Body
from common.contracts.notifications import (
    ClaimRequests,
    ClaimResults,
    DeliveryOutcome,
    DeliveryOutcomeOf,
    DeliveryOutcomes,
    MailSuppressed,
    Notification,
    OutcomeResult,
    OutcomeResults,
    SuppressedMail,
)
from common.errors import DatabaseUnavailableError, NotFoundError, RowLockedError
from common.http.api import Api, answer
from database_service.repositories.notifications import NotificationRepository
from database_service.routes.registrations import MAX_BULK_BYTES

NOTIFICATIONS = web.AppKey("notifications", NotificationRepository)

api = Api()


class NotificationPath(Body):
    """Names a notification by the id of its message."""

    notification_id: UUID


@api.post(
    "/api/notifications/claims",
    body=ClaimRequests,
    max_body_bytes=MAX_BULK_BYTES,
    returns={200: ClaimResults},
    raises=(DatabaseUnavailableError, RowLockedError),
)
async def claim_notifications(request: web.Request, *, body: ClaimRequests) -> web.StreamResponse:
    """Ask for the right to send mails, or renew it; a lease is 30 s."""
    results = await request.app[NOTIFICATIONS].insert_claims(body.claims)
    return answer(ClaimResults(results=results))


@api.post(
    "/api/notifications/suppressed",
    body=SuppressedMail,
    returns={200: MailSuppressed},
    raises=(DatabaseUnavailableError, RowLockedError),
)
async def suppress_mail(request: web.Request, *, body: SuppressedMail) -> web.StreamResponse:
    """Record that a mail is not to be sent: it was, before the database was restored."""
    recorded = await request.app[NOTIFICATIONS].insert_suppressed(body)
    return answer(MailSuppressed(recorded=recorded))


@api.post(
    "/api/notifications/outcomes",
    body=DeliveryOutcomes,
    max_body_bytes=MAX_BULK_BYTES,
    returns={200: OutcomeResults},
    raises=(DatabaseUnavailableError, RowLockedError),
)
async def record_outcomes(request: web.Request, *, body: DeliveryOutcomes) -> web.StreamResponse:
    """Record how attempts to send ended."""
    results = await request.app[NOTIFICATIONS].update_outcomes(body.outcomes)
    return answer(OutcomeResults(results=results))


@api.put(
    "/api/notifications/{notification_id}",
    path=NotificationPath,
    body=DeliveryOutcome,
    returns={200: OutcomeResult},
    raises=(DatabaseUnavailableError, RowLockedError, NotFoundError),
)
async def record_outcome(
    request: web.Request, *, path: NotificationPath, body: DeliveryOutcome
) -> web.StreamResponse:
    """Record how one attempt to send ended."""
    outcome = DeliveryOutcomeOf(message_id=path.notification_id, **body.model_dump(by_alias=False))
    repository = request.app[NOTIFICATIONS]
    (result,) = await repository.update_outcomes([outcome])
    if not result.recorded:
        await repository.select_notification(path.notification_id)  # or it does not exist
    return answer(result)


@api.get(
    "/api/notifications/{notification_id}",
    path=NotificationPath,
    returns={200: Notification},
    raises=(DatabaseUnavailableError, NotFoundError),
)
async def get_notification(request: web.Request, *, path: NotificationPath) -> web.StreamResponse:
    """The state of a mail, attempt by attempt."""
    return answer(await request.app[NOTIFICATIONS].select_notification(path.notification_id))
