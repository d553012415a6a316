"""The ledger over HTTP: what became of all registrations, and bringing back what is lost."""

from aiohttp import web

from common.contracts.ledger import Ledger, Repair
from common.errors import (
    BrokerUnavailableError,
    DatabaseServiceUnavailableError,
    TopologyMissingError,
    UnroutableError,
)
from common.http.api import Api, answer
from queue_receiver.ledger import Auditor
from queue_receiver.ledger_repair import Repairs

AUDITOR = web.AppKey("auditor", Auditor)
REPAIRS = web.AppKey("repairs", Repairs)

_AWAY = (BrokerUnavailableError, DatabaseServiceUnavailableError, TopologyMissingError)

api = Api()


@api.get("/api/ledger", returns={200: Ledger}, raises=_AWAY)
async def get_ledger(request: web.Request) -> web.StreamResponse:
    """What became of every registration that was accepted, reconciled by id now."""
    return answer(await request.app[AUDITOR].reconcile())


@api.post("/api/ledger/repairs", returns={200: Repair}, raises=(*_AWAY, UnroutableError))
async def repair_ledger(request: web.Request) -> web.StreamResponse:
    """Send lost registrations from the stream to the work queue; safe to repeat."""
    return answer(await request.app[REPAIRS].repair())
