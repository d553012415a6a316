"""Pages of a list: by keyset, or by number where somebody insists."""

from collections.abc import Mapping

from aiohttp import web


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


def following(after: object, limit: int) -> dict[str, dict[str, str | int]]:
    """The relation to the page after an id, if there is one."""
    return {} if after is None else {"next": {"after": str(after), "limit": limit}}
