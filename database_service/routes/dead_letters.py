"""Dead letters over HTTP: dry runs of storing them, and those that were discarded."""

from operator import itemgetter

from aiohttp import web

from common.contracts.dead_letters import (
    DeadLetterDiscard,
    DiscardedDeadLetter,
    DiscardedDeadLetters,
    DiscardQuery,
    DryRunRegistration,
    DryRunRegistrations,
)
from common.contracts.registrations import RegistrationsToStore
from common.contracts.rules import MAX_BIGINT
from common.errors import DatabaseUnavailableError, IdReusedError, RowLockedError
from common.http.api import Api, answer
from database_service.pool import Database
from database_service.repositories.dead_letters import DeadLetterRepository
from database_service.repositories.dry_runs import dry_run_registrations
from database_service.routes.paging import cut, links
from database_service.routes.registrations import MAX_BULK_BYTES

DEAD_LETTERS = web.AppKey("dead_letters", DeadLetterRepository)
DRY_RUNS = web.AppKey("dry_runs", Database)

api = Api()


@api.post(
    "/api/registrations/dry-run",
    body=RegistrationsToStore,
    max_body_bytes=MAX_BULK_BYTES,
    returns={200: DryRunRegistrations},
    raises=(DatabaseUnavailableError, IdReusedError, RowLockedError),
)
async def dry_run_storing(
    request: web.Request, *, body: RegistrationsToStore
) -> web.StreamResponse:
    """Answer what storing registrations would result in; everything is rolled back."""
    tried = await dry_run_registrations(request.app[DRY_RUNS], body.registrations)
    return answer(
        DryRunRegistrations(
            results=[
                DryRunRegistration(registration_id=item.registration_id, outcome=item.outcome)
                for item in tried
            ]
        )
    )


@api.post(
    "/api/dead-letters/discards",
    body=DeadLetterDiscard,
    returns={200: DiscardedDeadLetter},
    raises=(DatabaseUnavailableError, RowLockedError),
)
async def record_discard(request: web.Request, *, body: DeadLetterDiscard) -> web.StreamResponse:
    """Record why a dead letter was discarded; for the same message again, the new reason."""
    return answer(await request.app[DEAD_LETTERS].insert_discard(body))


@api.get(
    "/api/dead-letters/discards",
    query=DiscardQuery,
    returns={200: DiscardedDeadLetters},
    raises=(DatabaseUnavailableError,),
)
async def list_discards(request: web.Request, *, query: DiscardQuery) -> web.StreamResponse:
    """A page of discarded dead letters, newest first."""
    before, limit = query.before or MAX_BIGINT, query.limit
    found = await request.app[DEAD_LETTERS].select_discards(before, limit + 1)
    page, next_before = cut(found, limit, itemgetter(0))
    relations = {"next": {"before": next_before, "limit": limit}} if next_before else {}
    return answer(
        DiscardedDeadLetters(discards=[discard for _, discard in page], next_before=next_before),
        headers=links(request, relations),
    )
