"""FakeDatabase of reports and the real database_service are asked the same questions."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from common.contracts.reports import (
    ReportListQuery,
    ReportRecordRequest,
    ReportRecordUpdate,
    ReportStatus,
)
from common.database_client.client import DatabaseClient
from common.errors import NotFoundError
from tests.fakes.reports import FakeDatabase

BEGIN = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)

Database = FakeDatabase | DatabaseClient


@pytest.fixture(params=[pytest.param(True, id="fake"), pytest.param(False, id="real")])
def database(request: pytest.FixtureRequest) -> Database:
    either: Database = (
        FakeDatabase() if request.param else request.getfixturevalue("database_client")
    )
    return either


def a_report(report_id: UUID | None = None, *, minute: int = 0) -> ReportRecordRequest:
    return ReportRecordRequest(
        report_id=report_id or uuid4(),
        report_name="users",
        format="csv",
        requested_at=BEGIN + timedelta(minutes=minute),
    )


async def test_the_same_report_again_changes_nothing(database: Database) -> None:
    first = await database.insert_report(a_report())
    ready = ReportRecordUpdate(status=ReportStatus.READY, record_count=2)
    await database.update_report(first.report_id, ready)

    again = await database.insert_report(a_report(first.report_id))

    assert first.status is ReportStatus.REQUESTED
    assert (again.status, again.record_count) == (ReportStatus.READY, 2)
    assert await database.select_report(first.report_id) == again


async def test_a_report_that_is_ready_stays_ready(database: Database) -> None:
    report = await database.insert_report(a_report())
    ready = ReportRecordUpdate(status=ReportStatus.READY, record_count=2)
    done = await database.update_report(report.report_id, ready)

    failed = ReportRecordUpdate(status=ReportStatus.FAILED, error_message="too late")
    after = await database.update_report(report.report_id, failed)

    assert done.generated_at is not None
    assert after == done


async def test_a_report_that_does_not_exist_is_not_found(database: Database) -> None:
    with pytest.raises(NotFoundError):
        await database.select_report(uuid4())
    with pytest.raises(NotFoundError):
        await database.update_report(uuid4(), ReportRecordUpdate(status=ReportStatus.FAILED))


async def test_pages_hold_each_report_once_newest_first(database: Database) -> None:
    ids = [(await database.insert_report(a_report(minute=n))).report_id for n in range(3)]

    found, after = [], None
    for _ in range(2):
        page = await database.select_reports(ReportListQuery(limit=2, after=after))
        found += [report.report_id for report in page.reports]
        after = page.next_after

    assert found == ids[::-1]
    assert after is None
