"""Mails of a day over HTTP, and opening them for one more claim."""

from aiohttp import web

from common.contracts.resends import (
    NotificationList,
    NotificationQuery,
    ResendMark,
    ResendMarks,
)
from common.errors import DatabaseUnavailableError, RowLockedError
from common.http.api import Api, answer
from database_service.repositories.resends import ResendRepository
from database_service.routes.paging import links

RESENDS = web.AppKey("resends", ResendRepository)

api = Api()


@api.get(
    "/api/notifications",
    query=NotificationQuery,
    returns={200: NotificationList},
    raises=(DatabaseUnavailableError,),
)
async def list_notifications(
    request: web.Request, *, query: NotificationQuery
) -> web.StreamResponse:
    """Mails that got their status on one day, oldest first."""
    found, next_after = await request.app[RESENDS].select_notifications(query)
    chosen = query.model_dump(
        mode="json", exclude_none=True, include={"day", "status", "template", "limit"}
    )
    relations = {} if next_after is None else {"next": {"after": next_after, **chosen}}
    return answer(
        NotificationList(notifications=found, next_after=next_after),
        headers=links(request, relations),
    )


@api.post(
    "/api/notifications/resends",
    body=ResendMark,
    returns={200: ResendMarks},
    raises=(DatabaseUnavailableError, RowLockedError),
)
async def mark_resends(request: web.Request, *, body: ResendMark) -> web.StreamResponse:
    """Open mails for one more claim each; the client must then request them again."""
    return answer(ResendMarks(results=await request.app[RESENDS].mark_resends(body)))
