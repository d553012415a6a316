"""Registrations over HTTP: the bulk store, and how far one has come."""

from uuid import UUID

from aiohttp import web

from common.contracts.base import Body
from common.contracts.registrations import (
    Journey,
    Journeys,
    JourneysWanted,
    RegistrationsToStore,
    StoredRegistrations,
)
from common.errors import DatabaseUnavailableError, IdReusedError, RowLockedError
from common.http.api import Api, answer
from database_service.repositories.registrations import RegistrationRepository

REGISTRATIONS = web.AppKey("registrations", RegistrationRepository)

MAX_BULK_BYTES = 8 * 1024 * 1024
"""Room for 500 items with the longest texts, each character written as two escapes."""

api = Api()


class RegistrationPath(Body):
    """Names a registration."""

    registration_id: UUID


@api.post(
    "/api/registrations/bulk",
    body=RegistrationsToStore,
    max_body_bytes=MAX_BULK_BYTES,
    returns={200: StoredRegistrations},
    raises=(DatabaseUnavailableError, IdReusedError, RowLockedError),
)
async def store_registrations(
    request: web.Request, *, body: RegistrationsToStore
) -> web.StreamResponse:
    """Store registrations, each id once; the same id again gets the same answer.

    Stored whole or not at all. Without an answer it is unknown which: retry. With `id_reused` an
    id of the request was stored with another name or address; send each alone to see which.
    """
    results = await request.app[REGISTRATIONS].insert_registrations(body.registrations)
    return answer(StoredRegistrations(results=results))


@api.post(
    "/api/registrations/journeys",
    body=JourneysWanted,
    returns={200: Journeys},
    raises=(DatabaseUnavailableError,),
)
async def get_journeys(request: web.Request, *, body: JourneysWanted) -> web.StreamResponse:
    """How far each of some registrations has come; one that is not stored is pending."""
    found = await request.app[REGISTRATIONS].select_journeys(body.registration_ids)
    return answer(Journeys(journeys=found))


@api.get(
    "/api/registrations/{registration_id}",
    path=RegistrationPath,
    returns={200: Journey},
    raises=(DatabaseUnavailableError,),
)
async def get_journey(request: web.Request, *, path: RegistrationPath) -> web.StreamResponse:
    """How far a registration has come; an unknown id is pending."""
    return answer(await request.app[REGISTRATIONS].select_journey(path.registration_id))
