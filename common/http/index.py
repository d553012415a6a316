"""``/``: where a service tells a person, or a program, what can be looked at."""

import base64
import hashlib
import html

from aiohttp import hdrs, web

from common.http.api import Api

_EVERYWHERE = {
    "/health": "Whether it can do its work, and what it waits for",
    "/api-docs": "What can be asked, to be tried in the browser",
    "/openapi.json": "The same for programs",
    "/metrics": "Figures for Prometheus",
}

_STYLE = (
    "body{font:1rem/1.5 system-ui,sans-serif;max-width:40rem;margin:2rem auto;padding:0 1rem}"
    "h1{font-size:clamp(1.4rem,8vw,2rem)}li{margin:.4rem 0}"
)

_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; "
    "frame-ancestors 'none'; form-action 'none'"
)

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{name}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{name}</h1>
<p>{description}</p>
<ul>
{links}
</ul>
</main>
</body>
</html>
"""


def add_index(app: web.Application, name: str, description: str, version: str, api: Api) -> None:
    """Serve ``/`` as a page or as JSON, by ``Accept``, unless the service has a page there."""
    if any(operation.url == "/" for operation in api.operations):
        return
    links = {**_pages(api), **_EVERYWHERE}
    items = "\n".join(
        f'<li><a href="{url}">{url}</a>: {html.escape(text)}</li>' for url, text in links.items()
    )
    page = _PAGE.format(name=name, style=_STYLE, description=html.escape(description), links=items)
    document = {"service": name, "version": version, "description": description, "links": links}

    async def index(request: web.Request) -> web.Response:
        headers = {"Vary": "Accept"}
        if "text/html" in request.headers.get(hdrs.ACCEPT, ""):
            headers["Content-Security-Policy"] = _POLICY
            return web.Response(text=page, content_type="text/html", headers=headers)
        return web.json_response(document, headers=headers)

    app.router.add_get("/", index)


def _pages(api: Api) -> dict[str, str]:
    """The service's own pages: what it answers to GET with HTML under a fixed address.

    Those below another page are left out: that one links them, and with what they ask for.
    """
    found = {
        operation.url: operation.summary
        for operation in api.operations
        if operation.method == "GET"
        and "{" not in operation.url
        and operation.returns.get(200) == "text/html"
    }
    return {
        url: summary
        for url, summary in found.items()
        if not any(url.startswith(f"{above}/") for above in found)
    }
