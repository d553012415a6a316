"""The aiohttp application that every service starts from."""

import asyncio
import json
import time
from functools import cache, partial

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from common import metrics
from common.context import REQUEST_ID, enter_request
from common.http.access import Access
from common.http.address import OwnAddress
from common.http.api import Api
from common.http.compression import compress, weaken_etag
from common.http.documentation import add_documentation
from common.http.health import add_health
from common.http.index import add_index
from common.http.openapi import openapi
from common.http.problems import (
    RESPONSE_STARTED,
    ProblemPage,
    answer_failure,
)
from common.http.validation import MAX_BODY_BYTES
from common.http.version import version
from common.readiness import Readiness

log = structlog.get_logger()

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; "
    "form-action 'self'"
)

OWN_ADDRESS = web.AppKey("own_address", OwnAddress)
"""Set once the application listens."""

_REQUEST_ID = web.RequestKey("request_id", str)

ACCESS_LOG_DELAY_SECONDS = 0.005
"""After an answer until it is counted and logged.

Its client is woken up on the same core, and would wait for that as well.
"""

_QUIET = ("/health", "/metrics", "/static")
"""Paths that are requested every few seconds, and not logged."""

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    hdrs.CACHE_CONTROL: "no-store",
}
"""Sent with every answer that does not set them itself."""


def base_app(
    name: str,
    api: Api,
    *,
    description: str,
    readiness: Readiness,
    access: Access | None = None,
    problem_page: ProblemPage | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> web.Application:
    """An application with the service's operations and what all services have.

    Args:
        name: The service's name.
        api: Its operations.
        description: What it does, for the documentation.
        readiness: Its dependencies.
        access: Which hosts and origins it serves; by default localhost, and no other site's page.
        problem_page: Renders an error for a browser; without it, all get a problem document.
        max_body_bytes: Largest request body.
    """
    access = access or Access()
    app = web.Application(
        middlewares=[
            _middleware(access, problem_page),
        ],
        client_max_size=max_body_bytes,
    )
    app[OWN_ADDRESS] = OwnAddress()
    app.on_response_prepare.append(partial(_prepare, access))
    app.on_cleanup.append(_flush_access_log)
    api.add_to(app)
    add_health(app, name, version(), readiness)
    add_documentation(
        app,
        f"{name} API",
        lambda: json.dumps(openapi(name, description, version(), api)).encode(),
    )
    app.router.add_get("/metrics", _metrics)
    add_index(app, name, description, version(), api)
    return app


async def _metrics(_request: web.Request) -> web.Response:
    return web.Response(body=generate_latest(), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE_LATEST})


LOGGED = web.RequestKey("logged", bool)
"""Set by a handler that logs its work itself: one line for each."""

# Looked up once: a lookup costs as much as counting.
_requests = cache(metrics.HTTP_REQUESTS.labels)
_seconds = cache(metrics.HTTP_SECONDS.labels)


def _middleware(access: Access, page: ProblemPage | None) -> Middleware:
    """Everything around a handler, in one function: each one more costs every request."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Give the request its ids; refuse it, or answer it; count, time and log the answer."""
        started = time.perf_counter()
        request[_REQUEST_ID] = enter_request(request.headers).request_id
        try:
            access.check(request)
            response = await handler(request)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is answered
            allowed = access.preflight(request, error)
            response = answer_failure(request, error, page) if allowed is None else allowed
        await compress(request, response)
        seconds = time.perf_counter() - started
        asyncio.get_running_loop().call_later(
            ACCESS_LOG_DELAY_SECONDS, _log_request, request, response, seconds
        )
        return response

    return middleware


def _log_request(request: web.Request, response: web.StreamResponse, seconds: float) -> None:
    resource = request.match_info.route.resource
    route = resource.canonical if resource is not None else "unknown"
    # A client may invent methods; they must not become labels without end.
    method = request.method if request.method in hdrs.METH_ALL else "other"
    _requests(method, route, response.status).inc()
    _seconds(method, route).observe(seconds)
    if not route.startswith(_QUIET) and LOGGED not in request:
        log.info(
            "http.answered",
            method=request.method,
            route=route,
            status=response.status,
            milliseconds=round(seconds * 1000, 1),
        )


async def _flush_access_log(_app: web.Application) -> None:
    await asyncio.sleep(ACCESS_LOG_DELAY_SECONDS)


async def _prepare(access: Access, request: web.Request, response: web.StreamResponse) -> None:
    request[RESPONSE_STARTED] = True
    headers = response.headers
    for name, value in _HEADERS.items():
        headers.setdefault(name, value)
    weaken_etag(response)
    headers[hdrs.SERVER] = "UserStream"  # without versions
    headers[REQUEST_ID] = request.get(_REQUEST_ID, "")
    access.share(request, response)
