"""The ledger over HTTP: what became of all registrations, and bringing back what is lost."""

from aiohttp import web

from common.contracts.ledger import (
    Acknowledged,
    AcknowledgeRequest,
    Ledger,
    Repair,
    RepairRequest,
)
from common.errors import (
    BrokerUnavailableError,
    DatabaseServiceUnavailableError,
    TopologyMissingError,
    UnroutableError,
)
from common.http.api import Api, answer
from queue_receiver.ledger.auditor import Auditor
from queue_receiver.ledger.repair import Repairs

AUDITOR = web.AppKey("auditor", Auditor)
REPAIRS = web.AppKey("repairs", Repairs)

_AWAY = (BrokerUnavailableError, DatabaseServiceUnavailableError, TopologyMissingError)

api = Api()


@api.get("/api/ledger", returns={200: Ledger}, raises=_AWAY)
async def get_ledger(request: web.Request) -> web.StreamResponse:
    """What became of every accepted registration, reconciled by id now."""
    return answer(await request.app[AUDITOR].reconcile())


@api.post(
    "/api/ledger/repairs",
    query=RepairRequest,
    returns={200: Repair},
    raises=(*_AWAY, UnroutableError),
)
async def repair_ledger(request: web.Request, *, query: RepairRequest) -> web.StreamResponse:
    """Send lost registrations from the stream to the work queue; safe to repeat.

    `mail` chooses who is mailed: `auto` leaves out those that had been read before the database was
    restored from a backup, since they were mailed then.
    """
    auditor = request.app[AUDITOR]
    await auditor.reconcile()
    return answer(await request.app[REPAIRS].repair(auditor.lost, query.mail))


@api.post(
    "/api/ledger/acknowledgements",
    body=AcknowledgeRequest,
    returns={200: Acknowledged},
    raises=(DatabaseServiceUnavailableError,),
)
async def acknowledge(request: web.Request, *, body: AcknowledgeRequest) -> web.StreamResponse:
    """Acknowledge everything that cannot be accounted for; who and why is kept."""
    return answer(await request.app[AUDITOR].acknowledge_incidents(body))
