"""The report generator's message handler."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from typing import Protocol
from uuid import UUID

import structlog

from common import metrics
from common.amqp.message import Envelope
from common.amqp.publisher import Publisher
from common.contracts.ids import notification_id
from common.contracts.notifications import EmailRequested, Template
from common.contracts.reports import (
    ReportRecord,
    ReportRecordRequest,
    ReportRecordUpdate,
    ReportRequested,
    ReportStatus,
    UserReportQuery,
)
from common.errors import PermanentError, UnavailableError, UserStreamError
from common.failpoints import failpoint
from report_generator.csv_style import CsvStyle
from report_generator.downloads import download_path
from report_generator.files import ReportDirectory

log = structlog.get_logger()


class Database(Protocol):
    """Where users and the records of reports are: ``common.database_client`` in production."""

    async def insert_report(self, report: ReportRecordRequest) -> ReportRecord:
        """Record that a report was requested; the same id again changes nothing."""

    async def update_report(self, report_id: UUID, update: ReportRecordUpdate) -> ReportRecord:
        """Record what became of a report."""

    def stream_users(self, query: UserReportQuery) -> AsyncGenerator[bytes, None]:
        """The rows as CSV, chunk by chunk; ends only when all were read."""


async def generate_report(
    request: Envelope[ReportRequested],
    *,
    database: Database,
    publisher: Publisher,
    directory: ReportDirectory,
    style: CsvStyle,
    links_from: str,
) -> None:
    """Write the report, record it, and ask for the mail that tells of it.

    The unacknowledged delivery is the record of pending work. After a crash while
    writing, a draft is left and the report is written anew; after the file has its name, it
    is measured instead of written; after it is recorded, only the mail is asked for again,
    and its id derives from the report's, so the sender recognises the request.

    Raises:
        StorageError: The file cannot be written; NoSpaceError if the disk is full.
    """
    # A message that did not come through our own endpoint has no record yet.
    record = await database.insert_report(_new_record(request))
    if record.status is not ReportStatus.READY or not directory.has(request.id):
        async with _failure_recorded(request, database):
            record = await _generate(request, database, directory, style)
    failpoint("w34")
    if request.data.recipient is not None:
        await publisher.publish(
            _mail(request.data.recipient, record, links_from),
            message_id=notification_id(request.id, Template.REPORT_READY),
            correlation_id=request.correlation_id,
        )


async def _generate(
    request: Envelope[ReportRequested],
    database: Database,
    directory: ReportDirectory,
    style: CsvStyle,
) -> ReportRecord:
    await database.update_report(request.id, ReportRecordUpdate(status=ReportStatus.GENERATING))
    with metrics.REPORT_SECONDS.time():
        async with aclosing(database.stream_users(_query(request.data, style))) as rows:
            finished = await directory.write(request.id, rows, style)
    failpoint("w33")
    record = await database.update_report(
        request.id,
        ReportRecordUpdate(
            status=ReportStatus.READY,
            record_count=finished.records,
            file_path=finished.name,
            size_bytes=finished.size_bytes,
            sha256=finished.sha256,
        ),
    )
    metrics.REPORTS.labels(ReportStatus.READY).inc()
    metrics.REPORT_RECORDS.inc(finished.records)
    log.info("report.generated", records=finished.records, size_bytes=finished.size_bytes)
    return record


@asynccontextmanager
async def _failure_recorded(
    request: Envelope[ReportRequested], database: Database
) -> AsyncIterator[None]:
    """Put a failure of the block into the record, for the person who waits for the report.

    Not an outage of another service: it counts no attempt and dead-letters nothing.
    The record comes first; if that fails as well, the message is kept and the work repeated.
    """
    try:
        yield
    except UnavailableError:
        raise
    except Exception as error:
        final = request.last_attempt or isinstance(error, PermanentError)
        status = ReportStatus.FAILED if final else ReportStatus.REQUESTED
        what = error.detail if isinstance(error, UserStreamError) else "Internal error."
        advice = "Ask for the report again." if final else "It is retried automatically."
        await database.update_report(
            request.id, ReportRecordUpdate(status=status, error_message=f"{what[:400]} {advice}")
        )
        if final:
            metrics.REPORTS.labels(ReportStatus.FAILED).inc()
        raise


def _new_record(request: Envelope[ReportRequested]) -> ReportRecordRequest:
    return ReportRecordRequest(
        report_id=request.id,
        report_name=request.data.report_name,
        format=request.data.format,
        requested_at=request.published_at or datetime.now(UTC),
    )


def _query(data: ReportRequested, style: CsvStyle) -> UserReportQuery:
    return UserReportQuery(
        start_date=data.start_date,
        end_date=data.end_date,
        columns=",".join(data.columns),
        format=data.format,
        delimiter=style.delimiter,
        quote=style.quote,
        header=style.header,
    )


def _mail(recipient: str, record: ReportRecord, links_from: str) -> EmailRequested:
    return EmailRequested(
        to=recipient,
        template=Template.REPORT_READY,
        data={
            "reportName": record.report_name,
            "recordCount": record.record_count or 0,
            "downloadUrl": f"{links_from}{download_path(record.report_id)}",
        },
    )
