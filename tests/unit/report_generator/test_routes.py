"""The report generator's HTTP, with fakes behind it."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote
from uuid import UUID, uuid4

import pytest
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from common.contracts.reports import ReportRecord, ReportRequested, ReportStatus
from common.errors import BrokerUnavailableError, DatabaseServiceUnavailableError
from common.http.app import base_app
from common.readiness import Readiness
from report_generator.files import ReportDirectory
from report_generator.routes import DATABASE, DIRECTORY, PUBLISHER, api
from tests.fakes.publisher import FakePublisher
from tests.fakes.reports import CONTENT, NOW, FakeDatabase

SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Service:
    """The HTTP side of the report generator, with fakes of what it calls."""

    def __init__(self, path: Path) -> None:
        self.directory = ReportDirectory(path)
        self.database = FakeDatabase()
        self.publisher = FakePublisher()
        self.http: TestClient[Any, Any]

    async def ask(self, body: object, **headers: str) -> tuple[int, dict[str, Any]]:
        response = await self.http.post("/api/reports/generate", json=body, headers=headers)
        return response.status, await response.json()

    def add(self, **changes: object) -> UUID:
        """A finished report, as it is unless told otherwise."""
        report_id = uuid4()
        (self.directory.path / f"{report_id}.csv").write_bytes(CONTENT)
        values: dict[str, Any] = {
            "report_id": report_id,
            "report_name": "users",
            "format": "csv",
            "status": ReportStatus.READY,
            "record_count": 2,
            "file_path": f"{report_id}.csv",
            "size_bytes": len(CONTENT),
            "sha256": SHA256,
            "requested_at": NOW,
            "generated_at": NOW,
        }
        self.database.records[report_id] = ReportRecord(**values | changes)
        return report_id


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    service = Service(tmp_path)
    app = base_app("report_generator", api, description="", readiness=Readiness())
    app[DATABASE] = cast("Any", service.database)
    app[PUBLISHER] = cast("Any", service.publisher)
    app[DIRECTORY] = service.directory
    async with TestClient(TestServer(app)) as service.http:
        yield service


async def test_a_request_is_recorded_published_and_accepted(service: Service) -> None:
    body = {"reportName": "Q1", "endDate": "2026-03-31", "columns": ["id"], "recipient": "a@b.org"}

    response = await service.http.post("/api/reports/generate", json=body)

    accepted = await response.json()
    ((message, message_id),) = service.publisher.published
    assert response.status == 202
    assert response.headers["Location"] == accepted["statusUrl"]
    assert accepted["reportId"] == str(message_id)
    assert message == ReportRequested.model_validate(body)
    status = await (await service.http.get(accepted["statusUrl"])).json()
    assert status["status"] == "requested"
    assert status["downloadUrl"] is None
    assert "filePath" not in status


async def test_the_same_key_and_body_mean_the_same_report(service: Service) -> None:
    _, first = await service.ask({}, **{"Idempotency-Key": "k-1"})
    _, again = await service.ask({"reportName": "users"}, **{"Idempotency-Key": "k-1"})
    _, other_body = await service.ask({"reportName": "other"}, **{"Idempotency-Key": "k-1"})
    _, other_key = await service.ask({}, **{"Idempotency-Key": "k-2"})
    _, no_key = await service.ask({})

    assert first == again
    ids = {answer["reportId"] for answer in (first, other_body, other_key, no_key)}
    assert len(ids) == 4


@pytest.mark.parametrize("key", ["", "with space", "x" * 201, "ü"])
async def test_a_key_that_makes_no_sense_is_refused(service: Service, key: str) -> None:
    status, problem = await service.ask({}, **{"Idempotency-Key": key})

    assert status == 422
    assert problem["errors"][0]["pointer"] == "Idempotency-Key"
    assert service.publisher.published == []


async def test_without_a_confirm_nothing_is_promised_and_the_record_says_so(
    service: Service,
) -> None:
    service.publisher.error = BrokerUnavailableError()

    response = await service.http.post(
        "/api/reports/generate", json={}, headers={"Idempotency-Key": "k"}
    )

    (record,) = service.database.records.values()
    assert response.status == 503
    assert int(response.headers["Retry-After"]) > 0
    assert record.status is ReportStatus.FAILED
    assert "Ask for the report again" in (record.error_message or "")

    service.publisher.error = None
    status, accepted = await service.ask({}, **{"Idempotency-Key": "k"})

    assert status == 202
    (record,) = service.database.records.values()
    assert accepted["reportId"] == str(record.report_id)
    assert record.status is ReportStatus.REQUESTED


async def test_the_answer_is_503_also_when_the_record_can_not_be_corrected(
    service: Service,
) -> None:
    service.publisher.error = BrokerUnavailableError()
    service.database.update_errors = {ReportStatus.FAILED: DatabaseServiceUnavailableError()}

    status, problem = await service.ask({})

    assert (status, problem["code"]) == (503, "broker_unavailable")


async def test_a_file_is_downloaded_whole_under_a_good_name(service: Service) -> None:
    report_id = service.add()

    response = await service.http.get(f"/api/reports/{report_id}/download")

    assert response.status == 200
    assert await response.read() == CONTENT
    assert response.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert response.headers["Content-Length"] == str(len(CONTENT))
    assert response.headers["Content-Disposition"] == 'attachment; filename="users-2026-11-21.csv"'
    assert response.headers["ETag"] == f'"{SHA256}"'
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Accept-Ranges"] == "bytes"
    assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_file_larger_than_a_block_arrives_whole(service: Service) -> None:
    report_id = service.add()
    content = bytes(range(256)) * 5000
    (service.directory.path / f"{report_id}.csv").write_bytes(content)

    response = await service.http.get(f"/api/reports/{report_id}/download")

    assert await response.read() == content


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [("bytes=2-5", 2, 6), ("bytes=5-", 5, None), ("bytes=-3", -3, None), ("bytes=1-999", 1, None)],
)
async def test_a_part_is_downloaded(
    service: Service, asked: str, start: int, end: int | None
) -> None:
    report_id = service.add()

    response = await service.http.get(
        f"/api/reports/{report_id}/download", headers={"Range": asked, "If-Range": f'"{SHA256}"'}
    )

    first, stop, _ = slice(start, end).indices(len(CONTENT))
    assert response.status == 206
    assert await response.read() == CONTENT[first:stop]
    assert response.headers["Content-Range"] == f"bytes {first}-{stop - 1}/{len(CONTENT)}"


@pytest.mark.parametrize(
    "headers",
    [
        {"Range": "bytes=0-1", "If-Range": '"another"'},
        {"Range": "bytes=0-1,4-5"},
        {"Range": "lines=1-2"},
        {"Range": "bytes=5-2"},
    ],
)
async def test_a_range_that_does_not_apply_means_the_whole_file(
    service: Service, headers: dict[str, str]
) -> None:
    response = await service.http.get(f"/api/reports/{service.add()}/download", headers=headers)

    assert (response.status, await response.read()) == (200, CONTENT)


async def test_a_part_beyond_the_end_is_refused_with_the_size(service: Service) -> None:
    response = await service.http.get(
        f"/api/reports/{service.add()}/download", headers={"Range": "bytes=999-"}
    )

    assert response.status == 416
    assert response.headers["Content-Range"] == f"bytes */{len(CONTENT)}"
    assert (await response.json())["code"] == "range_not_satisfiable"


async def test_a_known_file_is_not_sent_again(service: Service) -> None:
    response = await service.http.get(
        f"/api/reports/{service.add()}/download", headers={"If-None-Match": f'"x", W/"{SHA256}"'}
    )

    assert (response.status, await response.read()) == (304, b"")


async def test_head_tells_the_size_and_sends_nothing(service: Service) -> None:
    response = await service.http.head(f"/api/reports/{service.add()}/download")

    assert response.status == 200
    assert response.headers["Content-Length"] == str(len(CONTENT))
    assert await response.read() == b""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"status": ReportStatus.REQUESTED, "file_path": None}, "not ready yet"),
        ({"status": ReportStatus.GENERATING, "file_path": None}, "not ready yet"),
        (
            {"status": ReportStatus.FAILED, "error_message": "The disk is full."},
            "could not be made. The disk is full.",
        ),
    ],
)
async def test_a_report_that_is_not_ready_says_why(
    service: Service, changes: dict[str, Any], words: str
) -> None:
    response = await service.http.get(f"/api/reports/{service.add(**changes)}/download")

    assert response.status == 409
    assert words in (await response.json())["detail"]


async def test_a_removed_file_is_gone(service: Service) -> None:
    report_id = service.add()
    (service.directory.path / f"{report_id}.csv").unlink()

    response = await service.http.get(f"/api/reports/{report_id}/download")

    assert response.status == 410


@pytest.mark.parametrize(
    "report_id",
    [
        "0192f7a4-5b7c-4c3e-9f10-2b6d1c3a4e5f",
        "1",
        "../../etc/passwd",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "%252e%252e%252fpasswd",
        "..%5c..%5cpasswd",
        "..",
        "%2fetc%2fpasswd",
        "%00",
        "0192f7a4-5b7c-4c3e-9f10-2b6d1c3a4e5f%00.csv",
        "x" * 300,
        "%ff%fe",
    ],
)
@pytest.mark.parametrize("endpoint", ["download", "status"])
async def test_any_other_id_is_not_found(service: Service, report_id: str, endpoint: str) -> None:
    url = URL(f"{service.http.make_url('/')}api/reports/{report_id}/{endpoint}", encoded=True)

    response = await service.http.session.get(url)

    assert response.status == 404
    assert (await response.json())["code"] == "not_found"


@pytest.mark.parametrize("name", ["../secret.csv", "/etc/passwd", "link.csv", "x" * 300, "a\0b"])
async def test_a_record_that_points_elsewhere_leads_nowhere(
    service: Service, tmp_path: Path, name: str
) -> None:
    (tmp_path / "link.csv").symlink_to("/etc/passwd")
    report_id = service.add(file_path=name)

    response = await service.http.get(f"/api/reports/{report_id}/download")

    assert response.status == 404
    assert quote(name[:20]) not in await response.text()


async def test_the_list_pages_with_a_link(service: Service) -> None:
    second, first = service.add(), service.add()  # newest first

    response = await service.http.get("/api/reports?limit=1")

    page = await response.json()
    assert [report["reportId"] for report in page["reports"]] == [str(first)]
    assert page["reports"][0]["downloadUrl"] == f"/api/reports/{first}/download"
    assert page["nextAfter"] == str(first)
    assert response.headers["Link"] == f'</api/reports?after={first}&limit=1>; rel="next"'
    rest = await service.http.get("/api/reports?limit=2")
    assert "Link" not in rest.headers
    assert second in {UUID(report["reportId"]) for report in (await rest.json())["reports"]}


async def test_a_large_file_is_compressed_for_whoever_reads_gzip(service: Service) -> None:
    content = b"".join(b"%d,ada@example.org\n" % number for number in range(20_000))
    digest = hashlib.sha256(content).hexdigest()
    report_id = service.add(sha256=digest, size_bytes=len(content))
    (service.directory.path / f"{report_id}.csv").write_bytes(content)
    url = f"/api/reports/{report_id}/download"

    gzipped = await service.http.get(url, headers={"Accept-Encoding": "gzip"})
    plain = await service.http.get(url, headers={"Accept-Encoding": "identity"})
    part = await service.http.get(url, headers={"Accept-Encoding": "gzip", "Range": "bytes=5-9"})
    stale = {"Range": "bytes=5-", "If-Range": gzipped.headers["ETag"]}
    not_a_part = await service.http.get(url, headers=stale)
    known = await service.http.get(url, headers={"If-None-Match": gzipped.headers["ETag"]})
    head = await service.http.head(url, headers={"Accept-Encoding": "gzip"})

    assert await gzipped.read() == await plain.read() == content
    assert gzipped.headers["Content-Encoding"] == "gzip"
    assert "Accept-Ranges" not in gzipped.headers
    assert gzipped.headers["ETag"] != plain.headers["ETag"]
    assert "Content-Encoding" not in plain.headers
    assert (part.status, await part.read()) == (206, content[5:10])
    assert "Content-Encoding" not in part.headers
    assert not_a_part.status == 200  # or a reader would join two encodings
    assert (known.status, known.headers["ETag"]) == (304, gzipped.headers["ETag"])
    assert (head.status, await head.read()) == (200, b"")
    for answer in (gzipped, plain, part, known):
        assert answer.headers["Vary"] == "Accept-Encoding"
