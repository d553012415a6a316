import hashlib
from pathlib import Path
from uuid import uuid4

import pytest

from common.amqp.message import Envelope
from common.contracts.notifications import EmailRequested, Template
from common.contracts.reports import ReportRequested, ReportStatus
from common.errors import (
    BrokerUnavailableError,
    DatabaseServiceUnavailableError,
    InvalidError,
    UpstreamError,
)
from report_generator.csv_style import CsvStyle
from report_generator.files import ReportDirectory
from report_generator.handlers import generate_report
from tests.fakes.publisher import FakePublisher
from tests.fakes.reports import CONTENT, NOW, FakeDatabase


class Generator:
    """One instance of the report generator with fakes of what it calls."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = FakeDatabase()
        self.publisher = FakePublisher()
        self.style = CsvStyle(delimiter=";")

    async def handle(self, request: Envelope[ReportRequested]) -> None:
        await generate_report(
            request,
            database=self.database,
            publisher=self.publisher,
            directory=ReportDirectory(self.path),
            style=self.style,
            links_from="http://reports.example.org",
        )

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.path.iterdir()}


@pytest.fixture
def generator(tmp_path: Path) -> Generator:
    return Generator(tmp_path)


def a_request(
    data: ReportRequested | None = None, *, last_attempt: bool = False
) -> Envelope[ReportRequested]:
    return Envelope(
        id=uuid4(),
        correlation_id="c-1",
        data=data or ReportRequested(),
        last_attempt=last_attempt,
        published_at=NOW,
    )


async def test_a_report_is_written_and_recorded(generator: Generator) -> None:
    request = a_request()

    await generator.handle(request)

    record = generator.database.records[request.id]
    assert generator.files() == {f"{request.id}.csv": CONTENT}
    assert record.status is ReportStatus.READY
    assert record.file_path == f"{request.id}.csv"
    assert record.record_count == 2
    assert record.size_bytes == len(CONTENT)
    assert record.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert record.requested_at == NOW
    assert generator.database.history == [ReportStatus.GENERATING, ReportStatus.READY]
    assert generator.publisher.published == []


async def test_the_rows_are_asked_for_as_the_request_and_the_settings_say(
    generator: Generator,
) -> None:
    data = ReportRequested.model_validate(ReportRequested.sample)

    await generator.handle(a_request(data))

    (query,) = generator.database.queries
    assert query.model_dump(mode="json", by_alias=False) == {
        "start_date": "2026-01-01",
        "end_date": "2026-01-31",
        "columns": "id,email",
        "format": "csv",
        "delimiter": ";",
        "quote": '"',
        "header": True,
    }


async def test_the_recipient_is_told_under_an_id_that_stays_the_same(generator: Generator) -> None:
    request = a_request(ReportRequested(report_name="Q1", recipient="ada@example.org"))

    await generator.handle(request)
    await generator.handle(request)

    first, second = generator.publisher.published
    assert first == second
    mail, message_id = first
    assert isinstance(mail, EmailRequested)
    assert mail.to == "ada@example.org"
    assert mail.template is Template.REPORT_READY
    assert mail.data == {
        "reportName": "Q1",
        "recordCount": 2,
        "downloadUrl": f"http://reports.example.org/api/reports/{request.id}/download",
    }
    assert message_id != request.id


async def test_a_finished_and_recorded_report_is_not_made_again(generator: Generator) -> None:
    request = a_request()
    await generator.handle(request)
    generator.database.content = b"other"

    await generator.handle(request)

    assert generator.files() == {f"{request.id}.csv": CONTENT}
    assert len(generator.database.queries) == 1
    assert generator.database.history == [ReportStatus.GENERATING, ReportStatus.READY]


async def test_a_crash_after_the_file_and_before_its_record_loses_nothing(
    generator: Generator,
) -> None:
    request = a_request()
    (generator.path / f"{request.id}.csv").write_bytes(CONTENT)
    generator.database.stream_error = ConnectionError("the rows must not be needed")

    await generator.handle(request)

    record = generator.database.records[request.id]
    assert record.status is ReportStatus.READY
    assert record.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert generator.files() == {f"{request.id}.csv": CONTENT}


async def test_a_report_whose_file_was_removed_is_made_again(generator: Generator) -> None:
    request = a_request()
    await generator.handle(request)
    (generator.path / f"{request.id}.csv").unlink()

    await generator.handle(request)

    assert generator.files() == {f"{request.id}.csv": CONTENT}


async def test_an_outage_is_no_failure_and_leaves_no_file(generator: Generator) -> None:
    request = a_request(last_attempt=True)
    generator.database.stream_error = DatabaseServiceUnavailableError()

    with pytest.raises(DatabaseServiceUnavailableError):
        await generator.handle(request)

    assert generator.files() == {}
    assert generator.database.records[request.id].status is ReportStatus.GENERATING


async def test_an_unconfirmed_mail_leaves_the_report_ready(generator: Generator) -> None:
    request = a_request(ReportRequested(recipient="ada@example.org"), last_attempt=True)
    generator.publisher.error = BrokerUnavailableError()

    with pytest.raises(BrokerUnavailableError):
        await generator.handle(request)

    assert generator.database.records[request.id].status is ReportStatus.READY


@pytest.mark.parametrize(
    ("error", "last_attempt", "status", "message"),
    [
        (UpstreamError("Odd."), False, ReportStatus.REQUESTED, "Odd. It is retried"),
        (UpstreamError("Odd."), True, ReportStatus.FAILED, "Odd. Ask for the report again."),
        (InvalidError("No."), False, ReportStatus.FAILED, "No. Ask for the report again."),
        (KeyError("secret"), True, ReportStatus.FAILED, "Internal error. Ask"),
    ],
)
async def test_the_record_says_what_failed_and_whether_it_goes_on(
    generator: Generator,
    *,
    error: Exception,
    last_attempt: bool,
    status: ReportStatus,
    message: str,
) -> None:
    request = a_request(last_attempt=last_attempt)
    generator.database.stream_error = error

    with pytest.raises(type(error)):
        await generator.handle(request)

    record = generator.database.records[request.id]
    assert record.status is status
    assert (record.error_message or "").startswith(message)
    assert generator.files() == {}


async def test_a_failure_that_can_not_be_recorded_is_an_outage_not_a_dead_letter(
    generator: Generator,
) -> None:
    request = a_request(last_attempt=True)
    generator.database.stream_error = UpstreamError()
    generator.database.update_errors = {ReportStatus.FAILED: DatabaseServiceUnavailableError()}

    with pytest.raises(DatabaseServiceUnavailableError):
        await generator.handle(request)
