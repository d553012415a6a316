"""Stands in for database_service; ``tests/integration/fakes/test_reports.py`` compares the two."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from common.contracts.reports import (
    ReportList,
    ReportListQuery,
    ReportRecord,
    ReportRecordRequest,
    ReportRecordUpdate,
    ReportStatus,
    UserReportQuery,
)
from common.errors import NotFoundError, UserStreamError

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
CONTENT = b'ID,Name\r\n1,"A\nda"\r\n2,Grace\r\n'


@dataclass
class FakeDatabase:
    """Records of reports in memory, and always the same users."""

    records: dict[UUID, ReportRecord] = field(default_factory=dict)
    content: bytes = CONTENT
    history: list[ReportStatus] = field(default_factory=list)
    queries: list[UserReportQuery] = field(default_factory=list)
    stream_error: Exception | None = None
    """Raised in the middle of the stream."""
    update_errors: dict[ReportStatus, UserStreamError] = field(default_factory=dict)

    async def insert_report(self, report: ReportRecordRequest) -> ReportRecord:
        new = ReportRecord(**report.model_dump(by_alias=False), status=ReportStatus.REQUESTED)
        return self.records.setdefault(report.report_id, new)

    async def update_report(self, report_id: UUID, update: ReportRecordUpdate) -> ReportRecord:
        if error := self.update_errors.get(update.status):
            raise error
        before = await self.select_report(report_id)
        if before.status is ReportStatus.READY and update.status is not ReportStatus.READY:
            return before  # as the real one: ready stays ready
        changes = update.model_dump(by_alias=False)
        if update.status is ReportStatus.READY:
            changes["generated_at"] = NOW
        self.records[report_id] = before.model_copy(update=changes)
        self.history.append(update.status)
        return self.records[report_id]

    async def select_report(self, report_id: UUID) -> ReportRecord:
        try:
            return self.records[report_id]
        except KeyError:
            raise NotFoundError from None

    async def select_reports(self, query: ReportListQuery) -> ReportList:
        newest_first = list(reversed(self.records.values()))
        if query.after:
            newest_first = newest_first[
                [each.report_id for each in newest_first].index(query.after) + 1 :
            ]
        found = newest_first[: query.limit]
        more = len(found) < len(newest_first)
        return ReportList(reports=found, next_after=found[-1].report_id if more else None)

    async def stream_users(self, query: UserReportQuery) -> AsyncGenerator[bytes, None]:
        self.queries.append(query)
        yield self.content[:7]
        if self.stream_error is not None:
            raise self.stream_error
        yield self.content[7:]
