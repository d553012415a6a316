"""Compresses answers with gzip, for clients that accept it."""

import asyncio
import zlib

from aiohttp import hdrs, web

from common.http.access import SAFE_METHODS, vary

SMALLEST_BYTES = 1024
"""Smaller bodies take one packet either way."""

LARGE_BYTES = 64 * 1024
"""Larger bodies are compressed in a thread, so that other requests do not wait."""

LEVEL = 5
"""A tenth larger than at zlib's own 6, in two thirds of the time."""

GZIP_WINDOW = 31
"""Largest window, with gzip's frame around it (zlib's ``wbits``)."""

_CONDITIONS = {hdrs.IF_NONE_MATCH, hdrs.IF_MODIFIED_SINCE}

_KINDS = ("text/", "application/json", "application/problem+json", "image/svg+xml")


async def compress(request: web.Request, response: web.StreamResponse) -> None:
    """Compress a whole answer, if it is worth it and the client reads gzip.

    Not streams, which compress themselves: events must not wait for a full buffer. Not pages that
    answer a form: they show what was typed, and a secret in an answer must not be compressed
    together with what an attacker chose (BREACH).
    """
    if not _is_worth_it(request, response):
        return
    vary(response, hdrs.ACCEPT_ENCODING)
    if not accepts_gzip(request) or request.headers.get(hdrs.RANGE):
        return
    if isinstance(response, web.FileResponse):
        # aiohttp would write the end of a gzip stream behind a 304.
        if not request.headers.keys() & _CONDITIONS:
            response.enable_compression(web.ContentCoding.gzip)
    elif isinstance(response, web.Response) and isinstance(response.body, bytes):
        body = response.body
        large = len(body) > LARGE_BYTES
        response.body = await asyncio.to_thread(_gzip, body) if large else _gzip(body)
        response.headers[hdrs.CONTENT_ENCODING] = "gzip"


def weaken_etag(response: web.StreamResponse) -> None:
    """Let the tag of a compressed file stand for its content, no longer for its bytes.

    Those of other answers name versions already, which ``If-Match`` compares as they are.
    """
    if not isinstance(response, web.FileResponse):
        return
    etag = response.headers.get(hdrs.ETAG, "")
    if hdrs.CONTENT_ENCODING in response.headers and etag.startswith('"'):
        response.headers[hdrs.ETAG] = f"W/{etag}"


def accepts_gzip(request: web.Request) -> bool:
    """Whether the client accepts gzip, and prefers it to no compression."""
    weights: dict[str, float] = {}
    for item in ",".join(request.headers.getall(hdrs.ACCEPT_ENCODING, ())).split(","):
        name, _, parameter = item.partition(";")
        weights[name.strip().lower()] = _weight(parameter)
    gzip = max(weights.get("gzip", -1.0), weights.get("x-gzip", -1.0))
    wanted = weights.get("*", 0.0) if gzip < 0 else gzip
    return wanted > 0 and wanted >= weights.get("identity", 0.0)


def new_compressor() -> "zlib._Compress":
    """A compressor of a stream."""
    return zlib.compressobj(LEVEL, zlib.DEFLATED, GZIP_WINDOW)


def _is_worth_it(request: web.Request, response: web.StreamResponse) -> bool:
    if response.prepared or hdrs.CONTENT_ENCODING in response.headers:
        return False
    if isinstance(response, web.FileResponse):
        return True
    if not isinstance(response, web.Response) or not isinstance(response.body, bytes):
        return False
    if len(response.body) <= SMALLEST_BYTES or not response.content_type.startswith(_KINDS):
        return False
    return request.method in SAFE_METHODS or response.content_type != "text/html"


def _gzip(body: bytes) -> bytes:
    compressor = new_compressor()
    return compressor.compress(body) + compressor.flush()


def _weight(parameter: str) -> float:
    """The value of ``q``; what is no number asks for nothing."""
    name, _, value = parameter.partition("=")
    if name.strip().lower() != "q":
        return 1.0
    try:
        return float(value.strip())
    except ValueError:
        return 0.0
