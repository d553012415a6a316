"""Sends a report's file over HTTP, whole or in part; and the paths of a report."""

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import date
from typing import BinaryIO
from urllib.parse import quote
from uuid import UUID

from aiohttp import hdrs, web

from common.errors import RangeNotSatisfiableError, StorageError
from common.http.compression import SMALLEST_BYTES, accepts_gzip, new_compressor
from common.http.problems import problem
from report_generator.files import BLOCK_BYTES


async def send_file(
    request: web.Request, file: BinaryIO, *, sha256: str, filename: str
) -> web.StreamResponse:
    """Answer with the file, one block in memory at a time; closes it.

    Its hash is the ETag, so an interrupted download can be resumed (RFC 9110, 13.1.5 and 14), on
    another instance too.
    """
    with file:
        etag, etag_of_gzip = f'"{sha256}"', f'"{sha256}-gzip"'
        varying = {hdrs.VARY: hdrs.ACCEPT_ENCODING}
        if known := _known(request, etag, etag_of_gzip):
            return web.Response(status=304, headers={hdrs.ETAG: known, **varying})
        size = os.fstat(file.fileno()).st_size
        try:
            start, end = _part(request, size, etag)
        except RangeNotSatisfiableError as error:
            refusal = problem(error)
            refusal.headers[hdrs.CONTENT_RANGE] = f"bytes */{size}"
            return refusal
        response = web.StreamResponse(
            headers={
                hdrs.CONTENT_TYPE: "text/csv; charset=utf-8",
                hdrs.CONTENT_DISPOSITION: content_disposition(filename),
                hdrs.ACCEPT_RANGES: "bytes",
                hdrs.ETAG: etag,
                **varying,
            }
        )
        if size > SMALLEST_BYTES and hdrs.RANGE not in request.headers and accepts_gzip(request):
            # Parts are parts of the file: what is compressed is sent as a whole.
            del response.headers[hdrs.ACCEPT_RANGES]
            response.headers[hdrs.ETAG] = etag_of_gzip
            response.headers[hdrs.CONTENT_ENCODING] = "gzip"
            await response.prepare(request)
            if request.method != hdrs.METH_HEAD:
                await _send_compressed(file, response, size)
            return response
        if end - start < size:
            response.set_status(206)
            response.headers[hdrs.CONTENT_RANGE] = f"bytes {start}-{end - 1}/{size}"
        response.content_length = end - start
        await response.prepare(request)
        if request.method != hdrs.METH_HEAD:
            await _send(file, response, start, end)
        return response


def status_path(report_id: UUID) -> str:
    """The path of a report's status."""
    return f"/api/reports/{report_id}/status"


def download_path(report_id: UUID) -> str:
    """The path of a report's file."""
    return f"/api/reports/{report_id}/download"


def file_name(report_name: str, day: date) -> str:
    """The name a downloaded report gets, such as ``users-2026-11-21.csv``."""
    # Leading dots would hide the file.
    return f"{report_name.strip(' .') or 'report'}-{day.isoformat()}.csv"


def content_disposition(filename: str) -> str:
    """``attachment`` with the name; for one beyond ASCII also in the form of RFC 8187."""
    plain = "".join(c if " " <= c <= "~" and c not in '"\\%' else "_" for c in filename)
    extended = f"; filename*=UTF-8''{quote(filename, safe='')}" if plain != filename else ""
    return f'attachment; filename="{plain}"{extended}'


def _known(request: web.Request, *etags: str) -> str:
    """The tag of a copy that the client has."""
    given = request.headers.get(hdrs.IF_NONE_MATCH, "").split(",")
    tags = [tag.strip().removeprefix("W/") for tag in given]
    return etags[0] if "*" in tags else next((etag for etag in etags if etag in tags), "")


def _part(request: web.Request, size: int, etag: str) -> tuple[int, int]:
    """First byte to send and the one after the last; a range we do not read means all."""
    if request.headers.get(hdrs.IF_RANGE, etag) != etag:
        return 0, size
    try:
        asked = request.http_range
    except ValueError:
        return 0, size
    if asked.start is None and asked.stop is None:
        return 0, size
    start, end, _ = asked.indices(size)
    if start >= end:
        raise RangeNotSatisfiableError(f"The file has {size} bytes.")
    return start, end


async def _send(file: BinaryIO, response: web.StreamResponse, start: int, end: int) -> None:
    async for block in _blocks(file, start, end):
        await response.write(block)
    await response.write_eof()


async def _send_compressed(file: BinaryIO, response: web.StreamResponse, size: int) -> None:
    compressor = new_compressor()
    async for block in _blocks(file, 0, size):
        if compressed := await asyncio.to_thread(compressor.compress, block):
            await response.write(compressed)
    await response.write(compressor.flush())
    await response.write_eof()


async def _blocks(file: BinaryIO, start: int, end: int) -> AsyncIterator[bytes]:
    file.seek(start)
    while start < end:
        block = await asyncio.to_thread(file.read, min(BLOCK_BYTES, end - start))
        if not block:
            raise StorageError("The file became shorter while it was sent.")
        start += len(block)
        yield block
