"""Records of reports over HTTP."""

from uuid import UUID

from aiohttp import web

from common.contracts.base import Body
from common.contracts.reports import (
    ReportList,
    ReportListQuery,
    ReportRecord,
    ReportRecordRequest,
    ReportRecordUpdate,
)
from common.errors import DatabaseUnavailableError, NotFoundError, RowLockedError
from common.http.api import Api, answer
from database_service.repositories.reports import ReportRepository
from database_service.routes.paging import following, links, numbered

REPORTS = web.AppKey("reports", ReportRepository)

api = Api()


class ReportPath(Body):
    """Names a report."""

    report_id: UUID


@api.post(
    "/api/reports",
    body=ReportRecordRequest,
    returns={201: ReportRecord, 200: ReportRecord},
    raises=(DatabaseUnavailableError, RowLockedError),
)
async def create_report(request: web.Request, *, body: ReportRecordRequest) -> web.StreamResponse:
    """Record that a report was requested; the same id again changes nothing (200)."""
    record, is_new = await request.app[REPORTS].insert_report(body)
    location = {"Location": f"/api/reports/{record.report_id}"}
    return answer(record, status=201 if is_new else 200, headers=location)


@api.put(
    "/api/reports/{report_id}",
    path=ReportPath,
    body=ReportRecordUpdate,
    returns={200: ReportRecord},
    raises=(DatabaseUnavailableError, RowLockedError, NotFoundError),
)
async def update_report(
    request: web.Request, *, path: ReportPath, body: ReportRecordUpdate
) -> web.StreamResponse:
    """Record what became of a report; one that is ready stays so."""
    return answer(await request.app[REPORTS].update_report(path.report_id, body))


@api.get(
    "/api/reports/{report_id}",
    path=ReportPath,
    returns={200: ReportRecord},
    raises=(DatabaseUnavailableError, NotFoundError),
)
async def get_report(request: web.Request, *, path: ReportPath) -> web.StreamResponse:
    """The record of one report."""
    return answer(await request.app[REPORTS].select_report(path.report_id))


@api.get(
    "/api/reports",
    query=ReportListQuery,
    returns={200: ReportList},
    raises=(DatabaseUnavailableError,),
)
async def list_reports(request: web.Request, *, query: ReportListQuery) -> web.StreamResponse:
    """A page of reports, newest first; ``after`` wins over ``page``."""
    repository, limit, page = request.app[REPORTS], query.limit, query.page or 1
    if query.after is not None:
        records = await repository.select_reports_after(query.after, limit + 1)
    else:
        records = await repository.select_reports_from((page - 1) * limit, limit + 1)
    records, has_more = records[:limit], len(records) > limit
    next_after = records[-1].report_id if has_more else None
    by_number = query.page is not None and query.after is None
    relations = (
        numbered(page, limit, has_more=has_more) if by_number else following(next_after, limit)
    )
    return answer(
        ReportList(reports=records, next_after=next_after), headers=links(request, relations)
    )
