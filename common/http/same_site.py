"""Refuses what a page of another site makes somebody's browser send."""

from aiohttp import hdrs, web
from yarl import URL

from common.errors import CrossSiteError

_OURS = ("same-origin", "none")


def refuse_cross_site(request: web.Request) -> None:
    """Let through our own pages, and programs.

    Browsers say where a request comes from, and no page can change what they say: all that are
    in use send ``Sec-Fetch-Site``, older ones ``Origin``. Programs send neither.

    Raises:
        CrossSiteError: It comes from elsewhere; nothing was done.
    """
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get(hdrs.ORIGIN)
    if (site in _OURS) if site is not None else (origin is None or _host(origin) == request.host):
        return
    raise CrossSiteError(
        "Another site's page sent this, and nothing was done. If it was you, do it on a page of "
        "ours, or with a program."
    )


def _host(origin: str) -> str:
    try:
        return URL(origin).authority
    except ValueError:
        return ""
