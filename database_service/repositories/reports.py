"""Records of reports: what was asked for, and what became of it."""

from uuid import UUID

import asyncpg

from common.contracts.reports import (
    ReportRecord,
    ReportRecordRequest,
    ReportRecordUpdate,
    ReportStatus,
)
from common.errors import FieldError, InvalidError, NotFoundError
from database_service.pool import Database


class ReportRepository:
    """The table ``report_logs``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    INSERT_REPORT = """
           INSERT INTO report_logs (report_id, report_name, format, status, requested_at)
                VALUES ($1, $2, $3, $4, $5)
           ON CONFLICT (report_id) DO NOTHING
             RETURNING report_id, report_name, format, status, record_count, file_path, size_bytes,
                       sha256, error_message, requested_at, generated_at
    """

    async def insert_report(self, report: ReportRecordRequest) -> tuple[ReportRecord, bool]:
        """Record a request; the same id again changes nothing.

        Returns:
            The record as it stands, and whether it is new.
        """
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                self.INSERT_REPORT,
                report.report_id,
                report.report_name,
                report.format,
                ReportStatus.REQUESTED,
                report.requested_at,
            )
        if row is None:
            return await self.select_report(report.report_id), False
        return _record(row), True

    # A report that is ready stays so: a request delivered again must not take it back.
    UPDATE_REPORT = """
           UPDATE report_logs
              SET status = $2,
                  record_count = $3,
                  file_path = $4,
                  size_bytes = $5,
                  sha256 = $6,
                  error_message = $7,
                  generated_at = CASE WHEN $2 = 'ready' THEN now() END
            WHERE report_id = $1
              AND (status <> 'ready' OR $2 = 'ready')
        RETURNING report_id, report_name, format, status, record_count, file_path, size_bytes,
                  sha256, error_message, requested_at, generated_at
    """

    async def update_report(self, report_id: UUID, update: ReportRecordUpdate) -> ReportRecord:
        """Record what became of a report; the record as it stands then.

        Only ``ready`` is written over ``ready``: anything else leaves the record as it is.

        Raises:
            NotFoundError: There is no record with this id.
        """
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                self.UPDATE_REPORT,
                report_id,
                update.status,
                update.record_count,
                update.file_path,
                update.size_bytes,
                update.sha256,
                update.error_message,
            )
        return _record(row) if row is not None else await self.select_report(report_id)

    SELECT_REPORT = """
        SELECT report_id, report_name, format, status, record_count, file_path, size_bytes,
               sha256, error_message, requested_at, generated_at
          FROM report_logs
         WHERE report_id = $1
    """

    async def select_report(self, report_id: UUID) -> ReportRecord:
        """The record of one report.

        Raises:
            NotFoundError: There is no record with this id.
        """
        async with self._database.connection() as connection:
            row = await connection.fetchrow(self.SELECT_REPORT, report_id)
        if row is None:
            raise NotFoundError("No report has this id.")
        return _record(row)

    SELECT_REPORTS_AFTER = """
          SELECT report_id, report_name, format, status, record_count, file_path, size_bytes,
                 sha256, error_message, requested_at, generated_at
            FROM report_logs
           WHERE (requested_at, id) < ($1, $2)
        ORDER BY requested_at DESC, id DESC
           LIMIT $3
    """

    SELECT_PLACE = """
        SELECT requested_at, id
          FROM report_logs
         WHERE report_id = $1
    """

    async def select_reports_after(self, after: UUID, limit: int) -> list[ReportRecord]:
        """Up to ``limit`` reports requested before the report ``after``, newest first.

        Raises:
            InvalidError: There is no report ``after``.
        """
        async with self._database.connection() as connection:
            place = await connection.fetchrow(self.SELECT_PLACE, after)
            if place is None:
                wrong = FieldError("after", "There is no report with this id.")
                raise InvalidError("The page cannot be found: after.", errors=(wrong,))
            rows = await connection.fetch(
                self.SELECT_REPORTS_AFTER, place["requested_at"], place["id"], limit
            )
        return [_record(row) for row in rows]

    SELECT_REPORTS_FROM = """
          SELECT report_id, report_name, format, status, record_count, file_path, size_bytes,
                 sha256, error_message, requested_at, generated_at
            FROM report_logs
        ORDER BY requested_at DESC, id DESC
          OFFSET $1
           LIMIT $2
    """

    async def select_reports_from(self, offset: int, limit: int) -> list[ReportRecord]:
        """Up to ``limit`` reports, newest first, without the first ``offset``."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(self.SELECT_REPORTS_FROM, offset, limit)
        return [_record(row) for row in rows]


def _record(row: asyncpg.Record) -> ReportRecord:
    return ReportRecord.model_validate(dict(row))
