"""Records of reports over HTTP."""

from operator import attrgetter
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
from database_service.routes.paging import select_page

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
    reports, next_after, headers = await select_page(
        request,
        query,
        by_id=request.app[REPORTS].select_reports_after,
        by_offset=request.app[REPORTS].select_reports_from,
        id_of=attrgetter("report_id"),
    )
    return answer(ReportList(reports=reports, next_after=next_after), headers=headers)
