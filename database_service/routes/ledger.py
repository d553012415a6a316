"""The ledger over HTTP: how far the stream was read, its entries, and what is missing."""

from aiohttp import web

from common.contracts.ledger import (
    Acknowledged,
    AcknowledgeIncidents,
    LedgerBatch,
    LedgerPosition,
    PositionQuery,
    Reconciliation,
    ReconciliationRequest,
    UnpromisedPublications,
    UnpromisedRecorded,
)
from common.errors import DatabaseUnavailableError, RowLockedError
from common.http.api import Api, answer
from database_service.repositories.ledger import LedgerRepository

LEDGER = web.AppKey("ledger", LedgerRepository)

MAX_BATCH_BYTES = 1024 * 1024
"""Room for 1,000 entries of some 150 bytes, several times over."""

api = Api()


@api.get(
    "/api/ledger/position",
    query=PositionQuery,
    returns={200: LedgerPosition},
    raises=(DatabaseUnavailableError,),
)
async def get_position(request: web.Request, *, query: PositionQuery) -> web.StreamResponse:
    """How far a stream was read."""
    return answer(await request.app[LEDGER].select_position(query.stream))


@api.post(
    "/api/ledger/entries",
    body=LedgerBatch,
    max_body_bytes=MAX_BATCH_BYTES,
    returns={200: LedgerPosition},
    raises=(DatabaseUnavailableError, RowLockedError),
)
async def add_entries(request: web.Request, *, body: LedgerBatch) -> web.StreamResponse:
    """Write what was read of a stream, unless another reader was first.

    Written whole or not at all. Without an answer it is unknown which: get the position.
    """
    return answer(await request.app[LEDGER].insert_entries(body))


@api.post(
    "/api/ledger/reconciliations",
    body=ReconciliationRequest,
    returns={200: Reconciliation},
    raises=(DatabaseUnavailableError, RowLockedError),
)
async def reconcile_entries(
    request: web.Request, *, body: ReconciliationRequest
) -> web.StreamResponse:
    """Compare again what is not final; answers the totals, and what is missing for long."""
    return answer(await request.app[LEDGER].reconcile_entries(body))


@api.post(
    "/api/ledger/unpromised",
    body=UnpromisedPublications,
    max_body_bytes=MAX_BATCH_BYTES,
    returns={200: UnpromisedRecorded},
    raises=(DatabaseUnavailableError, RowLockedError),
)
async def add_unpromised(
    request: web.Request, *, body: UnpromisedPublications
) -> web.StreamResponse:
    """Record what was published and answered with 503; the same again changes nothing."""
    recorded = await request.app[LEDGER].insert_unpromised(body)
    return answer(UnpromisedRecorded(recorded=recorded))


@api.post(
    "/api/ledger/acknowledgements",
    body=AcknowledgeIncidents,
    returns={200: Acknowledged},
    raises=(DatabaseUnavailableError,),
)
async def acknowledge(request: web.Request, *, body: AcknowledgeIncidents) -> web.StreamResponse:
    """Acknowledge all open incidents, with a name and a reason."""
    closed = await request.app[LEDGER].acknowledge_incidents(body)
    return answer(Acknowledged(acknowledged=closed))
