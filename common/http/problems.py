"""Every failure of a request as ``application/problem+json`` (RFC 9457), or as a page."""

import json
from collections.abc import Callable

import structlog
from aiohttp import web

from common.context import current
from common.errors import (
    InvalidError,
    MalformedError,
    MethodNotAllowedError,
    NotFoundError,
    RowLockedError,
    TooLargeError,
    UnavailableError,
    UnsupportedMediaTypeError,
    UserStreamError,
)

log = structlog.get_logger()

ProblemPage = Callable[[UserStreamError], str]

RESPONSE_STARTED = web.RequestKey("response_started", bool)
"""Set once the head of the answer is out."""

_BY_STATUS: dict[int, type[UserStreamError]] = {
    400: MalformedError,
    404: NotFoundError,
    405: MethodNotAllowedError,
    413: TooLargeError,
    415: UnsupportedMediaTypeError,
    422: InvalidError,
}


def problem(error: UserStreamError) -> web.Response:
    """The problem document of an error."""
    body: dict[str, object] = {
        "type": f"urn:userstream:problem:{error.code}",
        "title": error.title,
        "status": error.http_status,
        "detail": error.detail,
        "code": error.code,
        "requestId": current().request_id,
    }
    if error.errors:
        body["errors"] = [{"pointer": e.pointer, "detail": e.detail} for e in error.errors]
    return web.Response(
        status=error.http_status,
        text=json.dumps(body),
        content_type="application/problem+json",
        headers=_headers(error),
    )


def answer_failure(
    request: web.Request, error: Exception, page: ProblemPage | None
) -> web.Response:
    """Answer an error with its problem; a browser gets ``page`` where the service has one.

    Raises:
        Exception: ``error`` itself, where it is a redirect or the client has gone.
        ConnectionResetError: Half an answer is out already.
    """
    if isinstance(error, ConnectionError):
        raise error  # the client is gone
    if isinstance(error, UserStreamError):
        return _answer(request, error, page)
    if isinstance(error, web.HTTPException):
        if error.status < 400:  # noqa: PLR2004 - a redirect is an answer
            raise error
        return _answer(request, _from_http(error), page)
    log.error("http.failed", error=type(error).__name__, exc_info=error)
    failure = UserStreamError("Nothing is known to be lost. Please try again later.")
    return _answer(request, failure, page)


def _answer(request: web.Request, error: UserStreamError, page: ProblemPage | None) -> web.Response:
    if request.get(RESPONSE_STARTED):
        # Half an answer is out: only a broken connection tells the reader that it is half.
        log.warning("http.stream_broken", code=error.code)
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError(error.detail)
    if page is not None and "text/html" in request.headers.get("Accept", ""):
        return web.Response(
            status=error.http_status,
            text=page(error),
            content_type="text/html",
            headers=_headers(error),
        )
    return problem(error)


def _from_http(error: web.HTTPException) -> UserStreamError:
    """Say aiohttp's own refusals in our words."""
    other = MalformedError if error.status < 500 else UserStreamError  # noqa: PLR2004
    kind = _BY_STATUS.get(error.status, other)
    failure = kind()
    if isinstance(error, web.HTTPMethodNotAllowed):
        failure = MethodNotAllowedError(
            f"Allowed here: {', '.join(sorted(error.allowed_methods))}."
        )
        failure.allowed_methods = tuple(sorted(error.allowed_methods))
    return failure


def _headers(error: UserStreamError) -> dict[str, str]:
    if isinstance(error, UnavailableError | RowLockedError):
        return {"Retry-After": str(error.retry_after_seconds)}
    if isinstance(error, MethodNotAllowedError):
        return {"Allow": ", ".join(error.allowed_methods)}
    return {}
