"""``/``: where a service tells a person, or a program, what can be looked at."""

import base64
import hashlib
import html
from pathlib import Path

from aiohttp import hdrs, web

from common.http.api import Api

_FILES = Path(__file__).parent / "files"

_EVERYWHERE = {
    "/health": "Whether it can do its work, and what it waits for",
    "/api-docs": "What can be asked, to be tried in the browser",
    "/openapi.json": "The same for programs",
    "/metrics": "Figures for Prometheus",
}


def add_index(app: web.Application, name: str, description: str, version: str, api: Api) -> None:
    """Serve ``/`` as a page or as JSON, by ``Accept``, unless the service has a page there."""
    if any(operation.url == "/" for operation in api.operations):
        return
    links = {**_pages(api), **_EVERYWHERE}
    items = "\n".join(
        f'<li><a href="{url}">{url}</a>: {html.escape(text)}</li>' for url, text in links.items()
    )
    style = (_FILES / "index.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; "
        "frame-ancestors 'none'; form-action 'none'"
    )
    page = (
        (_FILES / "index.html")
        .read_text("utf-8")
        .format(name=name, style=style, description=html.escape(description), links=items)
    )
    document = {"service": name, "version": version, "description": description, "links": links}

    async def index(request: web.Request) -> web.Response:
        headers = {"Vary": "Accept"}
        if "text/html" in request.headers.get(hdrs.ACCEPT, ""):
            headers["Content-Security-Policy"] = policy
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
