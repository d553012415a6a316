"""Users over HTTP: one by one, page by page, and all of them as CSV."""

import asyncio
import re
from operator import attrgetter

import structlog
from aiohttp import ETag, hdrs, web

from common.contracts.base import Body
from common.contracts.reports import UserReportQuery
from common.contracts.rules import EmailAddress, RowId
from common.contracts.users import User, UserList, UserListQuery, UserRequest, UserUpdate
from common.errors import (
    DatabaseUnavailableError,
    DuplicateEmailError,
    NotFoundError,
    RowLockedError,
    StaleError,
)
from common.http.api import Api, answer
from database_service.repositories.users import ReaderGoneError, UserRepository, VersionedUser
from database_service.routes.paging import select_page

log = structlog.get_logger()

USERS = web.AppKey("users", UserRepository)

SLOW_READER_SECONDS = 60.0
"""Longest time that a reader of a report may take for one chunk of it."""

IF_MATCH = {"If-Match": "Change only this version: the ETag of an earlier answer."}

api = Api()


class UserPath(Body):
    """Names a user."""

    user_id: RowId


class EmailPath(Body):
    """Names a user by the address."""

    email: EmailAddress


@api.post(
    "/api/users",
    body=UserRequest,
    returns={201: User},
    raises=(DatabaseUnavailableError, RowLockedError, DuplicateEmailError),
)
async def create_user(request: web.Request, *, body: UserRequest) -> web.StreamResponse:
    """Create a user."""
    created = await request.app[USERS].insert_user(body)
    return _answer(created, status=201, location=f"/api/users/{created.user.id}")


@api.get(
    "/api/users",
    query=UserListQuery,
    returns={200: UserList},
    raises=(DatabaseUnavailableError,),
)
async def list_users(request: web.Request, *, query: UserListQuery) -> web.StreamResponse:
    """A page of users by id; ``after`` wins over ``page``."""
    users, next_after, headers = await select_page(
        request,
        query,
        by_id=request.app[USERS].select_users_after,
        by_offset=request.app[USERS].select_users_from,
        id_of=attrgetter("id"),
    )
    return answer(UserList(users=users, next_after=next_after), headers=headers)


@api.get(
    "/api/users/report",
    query=UserReportQuery,
    returns={200: "text/csv"},
    raises=(DatabaseUnavailableError,),
)
async def stream_report(request: web.Request, *, query: UserReportQuery) -> web.StreamResponse:
    """Users as CSV, by id, from one moment; whole only if the body ends properly."""
    header = "present" if query.header else "absent"
    response = web.StreamResponse(
        headers={
            hdrs.CONTENT_TYPE: f"text/csv; charset=utf-8; header={header}",
            hdrs.CONTENT_DISPOSITION: 'attachment; filename="users.csv"',
        }
    )
    if request.method == hdrs.METH_HEAD:
        return response

    async def start() -> None:
        await response.prepare(request)
        if query.header:
            headings = query.delimiter.join(column.heading for column in query.column_list)
            await response.write(headings.encode() + b"\n")

    async def write(chunk: bytes) -> None:
        async with asyncio.timeout(SLOW_READER_SECONDS):
            if not response.prepared:  # only now: an error before is a problem document
                await start()
            await response.write(chunk)

    try:
        await request.app[USERS].copy_users(query, write)
    except ReaderGoneError:
        log.info("report.reader_gone")
        if request.transport is not None:
            request.transport.abort()  # one that is only slow must not take this for the end
        return response
    if not response.prepared:
        await start()
    await response.write_eof()
    return response


@api.get(
    "/api/users/email/{email}",
    path=EmailPath,
    returns={200: User},
    raises=(DatabaseUnavailableError, NotFoundError),
)
async def get_user_by_email(request: web.Request, *, path: EmailPath) -> web.StreamResponse:
    """The user with an address, in whatever case it is written."""
    return _answer(await request.app[USERS].select_user_by_email(path.email))


@api.get(
    "/api/users/{user_id}",
    path=UserPath,
    returns={200: User},
    raises=(DatabaseUnavailableError, NotFoundError),
)
async def get_user(request: web.Request, *, path: UserPath) -> web.StreamResponse:
    """One user."""
    return _answer(await request.app[USERS].select_user(path.user_id))


@api.put(
    "/api/users/{user_id}",
    path=UserPath,
    body=UserUpdate,
    headers=IF_MATCH,
    returns={200: User},
    raises=(
        DatabaseUnavailableError,
        RowLockedError,
        DuplicateEmailError,
        NotFoundError,
        StaleError,
    ),
)
async def update_user(
    request: web.Request, *, path: UserPath, body: UserUpdate
) -> web.StreamResponse:
    """Replace a user's values; without ``email``, the address stays as it is."""
    versions = wanted_versions(request)
    return _answer(await request.app[USERS].update_user(path.user_id, body, versions=versions))


@api.delete(
    "/api/users/{user_id}",
    path=UserPath,
    headers=IF_MATCH,
    returns={204: None},
    raises=(DatabaseUnavailableError, RowLockedError, NotFoundError, StaleError),
)
async def delete_user(request: web.Request, *, path: UserPath) -> web.StreamResponse:
    """Delete a user; records of registrations and mails stay, without the name."""
    await request.app[USERS].delete_user(path.user_id, versions=wanted_versions(request))
    return web.Response(status=204)


def wanted_versions(request: web.Request) -> list[int] | None:
    """The versions that ``If-Match`` names (RFC 9110, 13.1.1); None without it and with ``*``.

    What is weak or not of our making matches nothing.
    """
    if hdrs.IF_MATCH not in request.headers:
        return None
    tags = request.if_match or ()
    if ETag("*") in tags:
        return None
    return [
        int(tag.value)
        for tag in tags
        if not tag.is_weak and re.fullmatch(r"[0-9]{1,18}", tag.value)
    ]


def _answer(found: VersionedUser, *, status: int = 200, location: str = "") -> web.StreamResponse:
    headers = {"ETag": f'"{found.version}"'} | ({"Location": location} if location else {})
    return answer(found.user, status=status, headers=headers)
