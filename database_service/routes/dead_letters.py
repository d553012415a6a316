"""Dead letters over HTTP: what storing one would come to, and those that were discarded."""

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
from database_service.routes.paging import links

DEAD_LETTERS = web.AppKey("dead_letters", DeadLetterRepository)
DRY_RUNS = web.AppKey("dry_runs", Database)

MAX_BULK_BYTES = 8 * 1024 * 1024
"""As for the bulk store that is tried."""

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
    """Say what storing registrations would come to; everything is rolled back."""
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
    """Keep why a dead letter was discarded; of the same letter again, the new reason."""
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
    page, has_more = found[:limit], len(found) > limit
    next_before = page[-1][0] if has_more else None
    relations = {"next": {"before": next_before, "limit": limit}} if next_before else {}
    return answer(
        DiscardedDeadLetters(discards=[discard for _, discard in page], next_before=next_before),
        headers=links(request, relations),
    )
