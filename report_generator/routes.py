"""The report generator's routes: requests, states and downloads of reports."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import urlencode
from uuid import UUID, uuid4, uuid5

from aiohttp import hdrs, web
from pydantic import Field

from common.amqp.publisher import Publisher
from common.context import current
from common.contracts.base import Body
from common.contracts.reports import (
    ReportAccepted,
    ReportListQuery,
    ReportPage,
    ReportProgress,
    ReportRecord,
    ReportRecordRequest,
    ReportRecordUpdate,
    ReportRequest,
    ReportRequested,
    ReportStatus,
)
from common.database_client.client import DatabaseClient
from common.errors import (
    BrokerUnavailableError,
    ConflictError,
    DatabaseServiceUnavailableError,
    GoneError,
    NotFoundError,
    RangeNotSatisfiableError,
    UnavailableError,
    UserStreamError,
)
from common.http.api import Api, answer
from common.http.idempotency import IDEMPOTENCY_KEY, idempotency_key
from report_generator.downloads import download_path, file_name, send_file, status_path
from report_generator.files import ReportDirectory

DATABASE = web.AppKey("database", DatabaseClient)
PUBLISHER = web.AppKey("publisher", Publisher)
DIRECTORY = web.AppKey("directory", ReportDirectory)

REPORT_IDS = UUID("5b6f5c0e-0f0c-5c39-9c44-0a3d2b7c9b11")
"""Namespace of the ids that follow from an ``Idempotency-Key``."""

api = Api()


class ReportPath(Body):
    """Which report."""

    # Not UUID: what is none is not invalid, there just is no such report.
    report_id: Annotated[str, Field(json_schema_extra={"format": "uuid"})]

    @property
    def id(self) -> UUID:
        """The report's id.

        Raises:
            NotFoundError: No report can have this id.
        """
        try:
            return UUID(self.report_id)
        except ValueError as error:
            raise NotFoundError("There is no report with this id.") from error


@api.post(
    "/api/reports/generate",
    body=ReportRequest,
    headers={
        IDEMPOTENCY_KEY: "A request that got no answer can be repeated with the same key; "
        "one report is made."
    },
    returns={202: ReportAccepted},
    raises=(BrokerUnavailableError, DatabaseServiceUnavailableError),
)
async def request_report(request: web.Request, *, body: ReportRequest) -> web.StreamResponse:
    """Ask for a report; 202 once the request is safe at the broker.

    First the record, then the message: ``statusUrl`` knows the report as soon as it was accepted.
    The other way round an accepted report could be unknown (404) for as long as the database is
    away. The price: where the broker does not confirm, the record of a report remains that was
    never accepted; it says so.
    """
    report_id = _report_id(request, body)
    database = request.app[DATABASE]
    await _record_request(database, report_id, body)
    try:
        await request.app[PUBLISHER].publish(
            ReportRequested(**body.model_dump(by_alias=False)),
            message_id=report_id,
            correlation_id=current().correlation_id,
        )
    except UnavailableError:
        # If this fails as well, the record stays "requested"; the answer is a 503 either way.
        with suppress(UserStreamError):
            await database.update_report(report_id, _NOT_ACCEPTED)
        raise
    accepted = ReportAccepted(
        report_id=report_id,
        status_url=status_path(report_id),
        download_url=download_path(report_id),
    )
    return answer(accepted, status=202, headers={hdrs.LOCATION: accepted.status_url})


@api.get(
    "/api/reports/{report_id}/status",
    path=ReportPath,
    returns={200: ReportProgress},
    raises=(NotFoundError, DatabaseServiceUnavailableError),
)
async def get_status(request: web.Request, *, path: ReportPath) -> web.StreamResponse:
    """Show the state of a report."""
    return answer(_progress(await request.app[DATABASE].select_report(path.id)))


@api.get(
    "/api/reports/{report_id}/download",
    path=ReportPath,
    returns={200: "text/csv", 206: "text/csv", 304: None},
    raises=(
        NotFoundError,
        ConflictError,
        GoneError,
        RangeNotSatisfiableError,
        DatabaseServiceUnavailableError,
    ),
)
async def download_report(request: web.Request, *, path: ReportPath) -> web.StreamResponse:
    """Send the report's file, whole or in part (``Range``)."""
    record = await request.app[DATABASE].select_report(path.id)
    if record.status is not ReportStatus.READY or not record.file_path or not record.sha256:
        raise ConflictError(_why_not_ready(record))
    file = await asyncio.to_thread(request.app[DIRECTORY].open, record.file_path)
    made_on = (record.generated_at or record.requested_at).date()
    return await send_file(
        request, file, sha256=record.sha256, filename=file_name(record.report_name, made_on)
    )


@api.get(
    "/api/reports",
    query=ReportListQuery,
    returns={200: ReportPage},
    raises=(DatabaseServiceUnavailableError,),
)
async def list_reports(request: web.Request, *, query: ReportListQuery) -> web.StreamResponse:
    """List reports, newest first; the next page is in the ``Link`` header (RFC 8288)."""
    found = await request.app[DATABASE].select_reports(query)
    page = ReportPage(
        reports=[_progress(record) for record in found.reports], next_after=found.next_after
    )
    if page.next_after is None:
        return answer(page)
    parameters = urlencode({"after": page.next_after, "limit": query.limit})
    return answer(page, headers={hdrs.LINK: f'</api/reports?{parameters}>; rel="next"'})


_NOT_ACCEPTED = ReportRecordUpdate(
    status=ReportStatus.FAILED,
    error_message="The message broker did not take the request, so it was answered with 503. "
    "Ask for the report again.",
)


async def _record_request(database: DatabaseClient, report_id: UUID, body: ReportRequest) -> None:
    record = await database.insert_report(
        ReportRecordRequest(
            report_id=report_id,
            report_name=body.report_name,
            format=body.format,
            requested_at=datetime.now(UTC),
        )
    )
    if record.status is ReportStatus.FAILED:  # asked for again with the same key
        await database.update_report(report_id, ReportRecordUpdate(status=ReportStatus.REQUESTED))


def _report_id(request: web.Request, body: ReportRequest) -> UUID:
    """The same for the same key and body, else a new one.

    Raises:
        InvalidError: The key is empty, too long or not printable.
    """
    key = idempotency_key(request)
    if key is None:
        return uuid4()
    return uuid5(REPORT_IDS, f"{key} {body.model_dump_json()}")


def _progress(record: ReportRecord) -> ReportProgress:
    ready = record.status is ReportStatus.READY
    return ReportProgress(
        **record.model_dump(by_alias=False, exclude={"file_path"}),
        download_url=download_path(record.report_id) if ready else None,
    )


def _why_not_ready(record: ReportRecord) -> str:
    if record.status is ReportStatus.FAILED:
        return f"The report could not be made. {record.error_message or ''}".strip()
    return (
        "The report is not ready yet. Retry later; "
        f"{status_path(record.report_id)} shows its state."
    )
