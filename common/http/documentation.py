"""``/api-docs``: Swagger UI from files of an installed package, so it works offline."""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from aiohttp import web

_FILES = Path(__file__).parent / "files" / "api-docs"

_TYPES = {".js": "text/javascript", ".css": "text/css"}

# Swagger UI writes style attributes and embeds its icons as data URLs.
_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
)


def add_documentation(app: web.Application, title: str, document: Callable[[], bytes]) -> None:
    """Serve the OpenAPI document and the page that shows it.

    ``document`` is called with the first request: it takes all models' schemas, a megabyte or
    two that a service does not need otherwise.
    """
    made = cache(document)

    async def openapi_json(_request: web.Request) -> web.Response:
        return web.Response(body=made(), content_type="application/json")

    async def page(_request: web.Request) -> web.Response:
        return web.Response(
            text=(_FILES / "page.html").read_text("utf-8").format(title=title),
            content_type="text/html",
            headers={"Content-Security-Policy": _POLICY},
        )

    async def file(request: web.Request) -> web.StreamResponse:
        path = _files().get(request.match_info["name"])
        if path is None:
            raise web.HTTPNotFound
        # From the file, in chunks: a slow client takes no memory for all of it.
        return web.FileResponse(
            path,
            headers={
                "Content-Type": _TYPES[path.suffix],
                "Cache-Control": "public, max-age=86400",
            },
        )

    app.router.add_get("/openapi.json", openapi_json)
    app.router.add_get("/api-docs", page)
    app.router.add_get("/api-docs/{name}", file)


@cache
def _files() -> dict[str, Path]:
    """The scripts and style sheets of the page, by name."""
    spec = find_spec("offapi")  # not imported, which would take 38 MB
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("offapi")
    swagger = Path(spec.submodule_search_locations[0])
    return {
        path.name: path
        for path in (*_FILES.iterdir(), *swagger.glob("swagger_*"))
        if path.suffix in _TYPES
    }
