"""``/api-docs``: Swagger UI from files of an installed package, so it works offline."""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from aiohttp import web

_FILES = {
    "swagger_bundle.js": "text/javascript",
    "swagger_preset.js": "text/javascript",
    "swagger_style.css": "text/css",
}

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="stylesheet" href="/api-docs/swagger_style.css">
<link rel="stylesheet" href="/api-docs/page.css">
<script src="/api-docs/scheme.js"></script>
</head>
<body>
<div id="swagger-ui"></div>
<noscript>This page needs JavaScript; <a href="/openapi.json">the document itself</a> does not.
</noscript>
<script src="/api-docs/swagger_bundle.js"></script>
<script src="/api-docs/swagger_preset.js"></script>
<script src="/api-docs/start.js"></script>
</body>
</html>
"""

_START = """SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIStandalonePreset],
  layout: "BaseLayout",
  validatorUrl: null,
});
"""

_SCHEME = """const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();
"""
"""Swagger UI has dark colours under a class that it never sets; in the head, so nothing flashes."""

_STYLE = """.swagger-ui .wrapper { padding: 0 clamp(8px, 2vw, 20px); }
.swagger-ui .info { margin: 24px 0; }
.swagger-ui .info .title small { vertical-align: middle; top: 0; }
@media (max-width: 640px) {
  .swagger-ui, .swagger-ui .opblock .opblock-summary-path { overflow-wrap: anywhere; }
  .swagger-ui .opblock-summary-control { flex-wrap: wrap; gap: 4px; }
  .swagger-ui .opblock .opblock-summary-method { min-width: 64px; padding: 6px 0; }
  .swagger-ui .opblock .opblock-summary-path { max-width: 100%; padding: 0 4px; }
  .swagger-ui .opblock-section-header, .swagger-ui .opblock-section-header > label,
  .swagger-ui .execute-wrapper, .swagger-ui .btn-group { flex-wrap: wrap; height: auto; }
  .swagger-ui .opblock .opblock-section-header .tab-header { flex: 1 0 100%; }
  .swagger-ui .opblock .tab-header .tab-item.active h4 span::after { bottom: -4px; }
  .swagger-ui .try-out, .swagger-ui .try-out.btn-group { gap: 8px; padding: 8px 0 0; }
  .swagger-ui .try-out .try-out__btn { margin: 0; padding: 5px 16px; white-space: nowrap; }
  .swagger-ui .opblock-body { overflow-x: auto; }
  .swagger-ui select, .swagger-ui input, .swagger-ui textarea { max-width: 100%; min-width: 0; }
  .swagger-ui table, .swagger-ui tbody, .swagger-ui tr, .swagger-ui td { display: block; }
  .swagger-ui table thead { display: none; }
  .swagger-ui .parameters-col_name, .swagger-ui .parameters-col_description,
  .swagger-ui .response-col_status, .swagger-ui .response-col_description { width: auto; }
}
"""

_OWN = {
    "start.js": (_START, "text/javascript"),
    "scheme.js": (_SCHEME, "text/javascript"),
    "page.css": (_STYLE, "text/css"),
}

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
            text=_PAGE.format(title=title),
            content_type="text/html",
            headers={"Content-Security-Policy": _POLICY},
        )

    async def file(request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name in _OWN:
            text, content_type = _OWN[name]
            return web.Response(text=text, content_type=content_type)
        if name not in _FILES:
            raise web.HTTPNotFound
        # From the file, in chunks: a slow client takes no memory for all of it.
        return web.FileResponse(
            _folder() / name,
            headers={"Content-Type": _FILES[name], "Cache-Control": "public, max-age=86400"},
        )

    app.router.add_get("/openapi.json", openapi_json)
    app.router.add_get("/api-docs", page)
    app.router.add_get("/api-docs/{name}", file)


@cache
def _folder() -> Path:
    """Where the package's files are; it is not imported, which would take 38 MB."""
    spec = find_spec("offapi")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("offapi")
    return Path(spec.submodule_search_locations[0])
