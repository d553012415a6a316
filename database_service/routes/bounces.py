"""Bounces over HTTP, and the addresses that get no more mails."""

from operator import attrgetter

import structlog
from aiohttp import web

from common.contracts.base import Body
from common.contracts.bounces import (
    BounceRecorded,
    BounceReport,
    SuppressedAddress,
    SuppressedAddresses,
    SuppressionQuery,
)
from common.contracts.rules import EmailAddress
from common.errors import DatabaseUnavailableError, NotFoundError, RowLockedError
from common.http.api import Api, answer
from database_service.repositories.bounces import BounceRepository
from database_service.routes.paging import cut, links, next_page

log = structlog.get_logger()

BOUNCES = web.AppKey("bounces", BounceRepository)

api = Api()


class SuppressionPath(Body):
    """Names an address."""

    address: EmailAddress


@api.post(
    "/api/bounces",
    body=BounceReport,
    returns={200: BounceRecorded},
    raises=(DatabaseUnavailableError, RowLockedError),
)
async def record_bounce(request: web.Request, *, body: BounceReport) -> web.StreamResponse:
    """Record what a mail server reported later; the same report again changes nothing."""
    return answer(await request.app[BOUNCES].insert_bounce(body))


@api.get(
    "/api/suppressions",
    query=SuppressionQuery,
    returns={200: SuppressedAddresses},
    raises=(DatabaseUnavailableError,),
)
async def list_suppressions(request: web.Request, *, query: SuppressionQuery) -> web.StreamResponse:
    """Addresses that get no more mails, in their own order."""
    limit = query.limit
    found = await request.app[BOUNCES].select_suppressions_after(query.after, limit + 1)
    addresses, next_after = cut(found, limit, attrgetter("address"))
    return answer(
        SuppressedAddresses(addresses=addresses, next_after=next_after),
        headers=links(request, next_page(next_after, limit)),
    )


@api.get(
    "/api/suppressions/{address}",
    path=SuppressionPath,
    returns={200: SuppressedAddress},
    raises=(DatabaseUnavailableError, NotFoundError),
)
async def get_suppression(request: web.Request, *, path: SuppressionPath) -> web.StreamResponse:
    """Why an address gets no more mails."""
    return answer(await request.app[BOUNCES].select_suppression(path.address))


@api.delete(
    "/api/suppressions/{address}",
    path=SuppressionPath,
    returns={204: None},
    raises=(DatabaseUnavailableError, RowLockedError, NotFoundError),
)
async def remove_suppression(request: web.Request, *, path: SuppressionPath) -> web.StreamResponse:
    """Let an address get mails again, from the next one on."""
    await request.app[BOUNCES].delete_suppression(path.address)
    log.info("suppression.removed")
    return web.Response(status=204)
