"""Pages of a list: by keyset, or by number where the client asks for one."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from aiohttp import web

from common.contracts.reports import ReportListQuery
from common.contracts.users import UserListQuery

Row = TypeVar("Row")


def links(request: web.Request, relations: Mapping[str, Mapping[str, str | int]]) -> dict[str, str]:
    """The header ``Link`` (RFC 8288) for relation to query parameters; none without relations."""
    values = [
        f'<{request.rel_url.with_query(dict(query))}>; rel="{relation}"'
        for relation, query in relations.items()
    ]
    return {"Link": ", ".join(values)} if values else {}


def numbered(page: int, limit: int, *, has_more: bool) -> dict[str, dict[str, str | int]]:
    """The relations of a page by number; without a last one, which would cost a full count."""
    pages = {"first": 1}
    if page > 1:
        pages["prev"] = page - 1
    if has_more:
        pages["next"] = page + 1
    return {relation: {"page": number, "limit": limit} for relation, number in pages.items()}


def next_page(after: object, limit: int) -> dict[str, dict[str, str | int]]:
    """The relation to the page after an id, if there is one."""
    return {} if after is None else {"next": {"after": str(after), "limit": limit}}


def cut(rows: list[Row], limit: int, id_of: Callable[[Row], Any]) -> tuple[list[Row], Any]:
    """The first ``limit`` rows, and the id of the last one if there are more, else None."""
    return rows[:limit], id_of(rows[limit - 1]) if len(rows) > limit else None


async def select_page(
    request: web.Request,
    query: UserListQuery | ReportListQuery,
    *,
    by_id: Callable[[Any, int], Awaitable[list[Row]]],
    by_offset: Callable[[int, int], Awaitable[list[Row]]],
    id_of: Callable[[Row], Any],
) -> tuple[list[Row], Any, dict[str, str]]:
    """Rows after ``query.after``, else of the page with the number; the next id; the headers."""
    limit, page = query.limit, query.page or 1
    if query.after is not None:
        found = await by_id(query.after, limit + 1)
    else:
        found = await by_offset((page - 1) * limit, limit + 1)
    rows, next_after = cut(found, limit, id_of)
    if query.page is not None and query.after is None:
        relations = numbered(page, limit, has_more=next_after is not None)
    else:
        relations = next_page(next_after, limit)
    return rows, next_after, links(request, relations)
