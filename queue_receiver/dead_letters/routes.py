"""Dead letters as a JSON API: list, inspect, try out, send back, discard."""

from aiohttp import web

from common.contracts.dead_letters import (
    DeadLetterPath,
    DeadLetterQuery,
    DeadLetters,
    DeadLetterView,
    DiscardedDeadLetter,
    DiscardedDeadLetters,
    DiscardedMany,
    DiscardManyRequest,
    DiscardQuery,
    DiscardRequest,
    DryRun,
    DryRunRequest,
    OneDeadLetterQuery,
    Redrive,
    RedrivePath,
    RedriveRequest,
    ResendRequest,
    SentBack,
)
from common.errors import (
    BrokerUnavailableError,
    ConflictError,
    DatabaseServiceUnavailableError,
    NotFoundError,
)
from common.http.api import Api, answer
from queue_receiver.dead_letters.admin import DeadLetterAdmin
from queue_receiver.dead_letters.redrive import Redrives

ADMIN = web.AppKey("admin", DeadLetterAdmin)
REDRIVES = web.AppKey("redrives", Redrives)

MAX_EDITED_BYTES = 128 * 1024
"""A body of 64 KiB inside its JSON."""

QUEUES_AND_RECORDS = (ConflictError, BrokerUnavailableError, DatabaseServiceUnavailableError)
"""Raised by operations that read messages and ask database_service about them."""

api = Api()


@api.get(
    "/api/dead-letters",
    query=DeadLetterQuery,
    returns={200: DeadLetters},
    raises=(BrokerUnavailableError,),
)
async def list_dead_letters(request: web.Request, *, query: DeadLetterQuery) -> web.Response:
    """Dead letters of all routes, with how many there are of which code; moves nothing."""
    found = await request.app[ADMIN].list_messages(query)
    headers = {}
    if found.next_after is not None:
        url = request.rel_url.update_query(after=str(found.next_after))
        headers["Link"] = f'<{url}>; rel="next"'
    return answer(found, headers=headers)


@api.get(
    "/api/dead-letters/discards",
    query=DiscardQuery,
    returns={200: DiscardedDeadLetters},
    raises=(DatabaseServiceUnavailableError,),
)
async def list_discards(request: web.Request, *, query: DiscardQuery) -> web.Response:
    """Messages that were discarded, and why; newest first."""
    return answer(await request.app[ADMIN].list_discards(query))


@api.post(
    "/api/dead-letters/redrive",
    body=RedriveRequest,
    returns={202: Redrive},
    raises=(ConflictError, BrokerUnavailableError),
)
async def redrive(request: web.Request, *, body: RedriveRequest) -> web.Response:
    """Send messages back: 1, 10, 100, 1,000 at a time; stops at the first that fails again."""
    begun = request.app[REDRIVES].start(body)
    location = {"Location": f"/api/dead-letters/redrives/{begun.redrive_id}"}
    return answer(begun, status=202, headers=location)


@api.get(
    "/api/dead-letters/redrives/{redrive_id}",
    path=RedrivePath,
    returns={200: Redrive},
    raises=(NotFoundError,),
)
async def get_redrive(request: web.Request, *, path: RedrivePath) -> web.Response:
    """The progress of a redrive of this instance."""
    return answer(request.app[REDRIVES].get(path.redrive_id))


@api.post(
    "/api/dead-letters/redrives/{redrive_id}/stop",
    path=RedrivePath,
    returns={200: Redrive},
    raises=(NotFoundError, BrokerUnavailableError),
)
async def stop_redrive(request: web.Request, *, path: RedrivePath) -> web.Response:
    """Let a redrive end before its next message."""
    return answer(request.app[REDRIVES].stop(path.redrive_id))


@api.post(
    "/api/dead-letters/dry-run",
    body=DryRunRequest,
    returns={200: DryRun},
    raises=QUEUES_AND_RECORDS,
)
async def dry_run(request: web.Request, *, body: DryRunRequest) -> web.Response:
    """Try messages out: what would become of them now. Stores, sends and moves nothing."""
    return answer(await request.app[ADMIN].dry_run(body))


@api.post(
    "/api/dead-letters/discard",
    body=DiscardManyRequest,
    returns={200: DiscardedMany},
    raises=QUEUES_AND_RECORDS,
)
async def discard_dead_letters(request: web.Request, *, body: DiscardManyRequest) -> web.Response:
    """Remove messages for good; the reason is kept with each."""
    return answer(await request.app[ADMIN].discard_many(body))


@api.get(
    "/api/dead-letters/{id}",
    path=DeadLetterPath,
    query=OneDeadLetterQuery,
    returns={200: DeadLetterView},
    raises=(NotFoundError, ConflictError, BrokerUnavailableError),
)
async def get_dead_letter(
    request: web.Request, *, path: DeadLetterPath, query: OneDeadLetterQuery
) -> web.Response:
    """One dead letter; moves nothing."""
    return answer(await request.app[ADMIN].select_message(path.id, unmask=query.unmask))


@api.post(
    "/api/dead-letters/{id}/resend",
    path=DeadLetterPath,
    body=ResendRequest,
    max_body_bytes=MAX_EDITED_BYTES,
    returns={200: SentBack},
    raises=(NotFoundError, ConflictError, BrokerUnavailableError),
)
async def resend_dead_letter(
    request: web.Request, *, path: DeadLetterPath, body: ResendRequest
) -> web.Response:
    """Send a message back with another body, checked against its contract first."""
    return answer(await request.app[ADMIN].resend(path.id, body.body))


@api.post(
    "/api/dead-letters/{id}/discard",
    path=DeadLetterPath,
    body=DiscardRequest,
    returns={200: DiscardedDeadLetter},
    raises=(NotFoundError, *QUEUES_AND_RECORDS),
)
async def discard_dead_letter(
    request: web.Request, *, path: DeadLetterPath, body: DiscardRequest
) -> web.Response:
    """Remove a message for good; the reason is kept."""
    return answer(await request.app[ADMIN].discard(path.id, body))
