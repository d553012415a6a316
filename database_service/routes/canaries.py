"""Canaries over HTTP: how the frontend removes what it sent."""

from typing import Annotated
from uuid import UUID

from aiohttp import web
from pydantic import AfterValidator

from common.contracts.base import Body
from common.contracts.canary import is_canary
from common.contracts.registrations import CanariesRemoved
from common.errors import DatabaseUnavailableError, RowLockedError
from common.http.api import Api, answer
from database_service.repositories.canaries import CanaryRepository

CANARIES = web.AppKey("canaries", CanaryRepository)

api = Api()


def _check(canary_id: UUID) -> UUID:
    if not is_canary(canary_id):
        raise ValueError("This is not the id of a canary; nothing else can be removed here.")
    return canary_id


class CanaryPath(Body):
    """Names a canary."""

    canary_id: Annotated[UUID, AfterValidator(_check)]


@api.delete(
    "/api/canaries/{canary_id}",
    path=CanaryPath,
    returns={200: CanariesRemoved},
    raises=(DatabaseUnavailableError, RowLockedError),
)
async def delete_canary(request: web.Request, *, path: CanaryPath) -> web.StreamResponse:
    """Remove a canary, and those older than an hour; can remove nothing else."""
    removed = await request.app[CANARIES].delete_canaries(path.canary_id)
    return answer(CanariesRemoved(removed=removed))
