"""Serves what the pages need beside their HTML: style, scripts, pictures."""

from functools import cache
from http import HTTPStatus
from importlib import resources
from pathlib import Path

from aiohttp import hdrs, web

from frontend.pages import asset

FOR_EVER = "public, max-age=31536000, immutable"


async def static_file(request: web.Request) -> web.StreamResponse:
    """The file of that name; ``pages.asset`` changes the address with the content.

    Not aiohttp's static route: that one asks the file system for whatever is in the URL, and
    fails on a name that is too long.
    """
    name = request.match_info["name"]
    if name not in _paths():
        raise web.HTTPNotFound
    return web.FileResponse(_paths()[name])


async def keep_whole_files(request: web.Request, response: web.StreamResponse) -> None:
    """Let browsers keep a file for ever; a refusal under the same address they may not keep."""
    if isinstance(response, web.FileResponse) and response.status == HTTPStatus.OK:
        name = request.match_info["name"]
        if request.raw_path == asset(name):
            response.headers[hdrs.CACHE_CONTROL] = FOR_EVER


@cache
def _paths() -> dict[str, Path]:
    directory = Path(str(resources.files("frontend") / "static"))
    return {path.name: path for path in directory.iterdir() if path.is_file()}
