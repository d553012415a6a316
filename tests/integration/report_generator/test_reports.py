"""Reports from request to download, with the real broker, database_service and database."""

import csv
import hashlib
import io
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import aiohttp
import asyncpg
import pytest

from common.contracts.reports import ReportRequested
from common.contracts.topology import EMAIL_NOTIFICATIONS, REPORT_REQUESTS
from database_service.app import build_app as build_database_service
from database_service.settings import Settings as DatabaseServiceSettings
from report_generator.app import build_app
from report_generator.settings import Settings
from tests.amqp import depth, eventually, publish, take
from tests.backends import TestBroker
from tests.services import listening

NAMES = [
    "Ada",
    "O'Brien",
    "Jean-Luc",
    "Nguyễn",
    "María José",
    "=cmd|' /C calc'!A0",
    'Q"uote',
    "a\nb",
]
"""People, and what somebody may have put into the database by other ways."""


class Stack:
    """The report generator with everything it needs."""

    def __init__(self, broker: TestBroker, dsn: str, directory: Path) -> None:
        self.broker = broker
        self.dsn = dsn
        self.directory = directory
        self.http: aiohttp.ClientSession
        self.database_url = ""

    @asynccontextmanager
    async def database_service(self, port: int = 0) -> AsyncIterator[str]:
        parts = urlsplit(self.dsn)
        settings = DatabaseServiceSettings(
            port=0,
            db_host=parts.hostname or "",
            db_port=parts.port or 5432,
            db_name=parts.path.strip("/"),
            db_user=parts.username or "",
            db_password=parts.password or "",
            db_ssl="disable",
        )
        async with listening(build_database_service(settings), port=port) as self.database_url:
            await self.ready(self.database_url)
            yield self.database_url

    @asynccontextmanager
    async def generator(self, directory: Path | None = None, **changes: Any) -> AsyncIterator[str]:
        values: dict[str, Any] = {
            "port": 0,
            "queue_url": self.broker.url("report_generator"),
            "database_service_url": self.database_url,
            "report_output_dir": directory or self.directory,
            "public_url": "http://reports.example.org",
            "retry_delay_ms": 50,
        }
        async with listening(build_app(Settings(**values | changes))) as url:
            yield url

    async def ready(self, url: str) -> None:
        async def is_ready() -> bool:
            async with self.http.get(f"{url}/health/ready") as response:
                return response.status == 200

        await eventually(is_ready, f"{url} ready")

    async def get(self, url: str) -> dict[str, Any]:
        async with self.http.get(url) as response:
            answer: dict[str, Any] = await response.json()
            return answer

    async def request(self, url: str, **body: object) -> str:
        async with self.http.post(f"{url}/api/reports/generate", json=body) as response:
            answer = await response.json()
            assert response.status == 202, answer
            return str(answer["reportId"])

    async def finished(self, url: str, report_id: str, status: str = "ready") -> dict[str, Any]:
        async def has_come_so_far() -> dict[str, Any] | None:
            report = await self.get(f"{url}/api/reports/{report_id}/status")
            return report if report.get("status") == status else None

        report: dict[str, Any] = await eventually(has_come_so_far, f"report {status}")
        return report

    async def download(self, url: str, report_id: str) -> bytes:
        async with self.http.get(f"{url}/api/reports/{report_id}/download") as response:
            assert response.status == 200
            return await response.read()

    async def add_users(self, count: int) -> list[asyncpg.Record]:
        """Users, straight into the table; the rows that are there then."""
        connection = await asyncpg.connect(self.dsn)
        try:
            await connection.executemany(
                "INSERT INTO users (name, surname, email) VALUES ($1, $2, $3)",
                [
                    (NAMES[number % len(NAMES)], "Ω" * 100, f"user-{uuid4().hex}@example.org")
                    for number in range(count)
                ],
            )
            rows: list[asyncpg.Record] = await connection.fetch(
                "SELECT id, name, surname, email, created_at, updated_at FROM users ORDER BY id"
            )
            return rows
        finally:
            await connection.close()


@pytest.fixture
async def stack(
    empty_broker: TestBroker, database_dsn: str, tmp_path: Path
) -> AsyncIterator[Stack]:
    stack = Stack(empty_broker, database_dsn, tmp_path / "reports")
    async with aiohttp.ClientSession() as stack.http:
        yield stack


async def test_a_report_holds_exactly_what_the_database_holds(stack: Stack) -> None:
    async with stack.database_service():
        rows = await stack.add_users(3_000)
        async with stack.generator() as url:
            await stack.ready(url)
            report_id = await stack.request(url, reportName="everyone")

            report = await stack.finished(url, report_id)
            content = await stack.download(url, report_id)

    heading, *lines = csv.reader(io.StringIO(content.decode(), newline=""))
    assert heading == ["ID", "Name", "Surname", "Email", "Created At", "Updated At"]
    # What a spreadsheet would run is made harmless by an apostrophe, and nothing else changes.
    written = [[line[0], line[1].removeprefix("'"), *line[2:4]] for line in lines]
    assert written == [[str(row["id"]), row["name"], row["surname"], row["email"]] for row in rows]
    assert not any(line[1].startswith("=") for line in lines)
    assert report["recordCount"] == len(rows)
    assert report["sizeBytes"] == len(content)
    assert report["sha256"] == hashlib.sha256(content).hexdigest()
    assert report["reportName"] == "everyone"
    assert os.listdir(stack.directory) == [f"{report_id}.csv"]  # noqa: PTH208 - names


async def test_columns_dates_and_style_are_as_asked(stack: Stack) -> None:
    async with stack.database_service():
        (row,) = await stack.add_users(1)
        today = row["created_at"].date().isoformat()
        async with stack.generator(csv_delimiter=";", include_header=False) as url:
            await stack.ready(url)
            inside = await stack.request(
                url, startDate=today, endDate=today, columns=["email", "id"]
            )
            outside = await stack.request(url, endDate="2001-01-01")

            assert (await stack.finished(url, inside))["recordCount"] == 1
            assert (await stack.finished(url, outside))["recordCount"] == 0
            assert await stack.download(url, inside) == f"{row['email']};{row['id']}\n".encode()
            assert await stack.download(url, outside) == b""


async def test_instances_share_the_work_and_the_files(stack: Stack) -> None:
    async with AsyncExitStack() as running:
        await running.enter_async_context(stack.database_service())
        await stack.add_users(10)
        urls = [await running.enter_async_context(stack.generator(prefetch=1)) for _ in range(2)]
        for url in urls:
            await stack.ready(url)

        ids = [await stack.request(urls[number % 2]) for number in range(10)]

        for report_id in ids:
            first = await stack.finished(urls[0], report_id)
            assert await stack.download(urls[1], report_id) == await stack.download(
                urls[0], report_id
            )
            assert first["recordCount"] == 10
        listed = await stack.get(f"{urls[0]}/api/reports?limit=4")
        rest = await stack.get(f"{urls[1]}/api/reports?after={listed['nextAfter']}&limit=10")
        both = [report["reportId"] for report in listed["reports"] + rest["reports"]]
        assert both == ids[::-1]
        assert rest["nextAfter"] is None


async def test_what_a_crash_left_is_swept_and_the_report_made(stack: Stack) -> None:
    stack.directory.mkdir()
    old, fresh = (stack.directory / f"{uuid4()}.csv.tmp-{age}" for age in ("old", "fresh"))
    for draft in (old, fresh):
        draft.write_bytes(b"half")
    os.utime(old, (0, 0))
    async with stack.database_service():
        await stack.add_users(1)
        # The message of a report whose draft is all there is: its maker died.
        report_id = UUID(fresh.name[:36])
        await publish_request(stack, message_id=str(report_id))
        async with stack.generator() as url:
            await eventually(lambda: not old.exists(), "the sweep")
            await stack.finished(url, str(report_id))

    assert fresh.exists(), "another instance may be writing it"
    assert (stack.directory / f"{report_id}.csv").read_bytes().count(b"\n") == 2


async def test_a_foreign_program_may_ask_too(stack: Stack) -> None:
    async with stack.database_service(), stack.generator() as url:
        await publish_request(stack, b'{"reportName": "from elsewhere"}')

        async def first() -> dict[str, Any] | None:
            (report, *_) = (await stack.get(f"{url}/api/reports"))["reports"] or [None]
            return report if report and report["status"] == "ready" else None

        report = await eventually(first, "the report")
        assert report["reportName"] == "from elsewhere"


async def test_the_recipient_is_told_where_to_find_it(stack: Stack) -> None:
    async with stack.database_service(), stack.generator() as url:
        await stack.ready(url)
        report_id = await stack.request(url, reportName="Q1", recipient="ada@example.org")

        message = await take(stack.broker.admin_url, EMAIL_NOTIFICATIONS.queue)

    mail = json.loads(message.body)
    assert mail["to"] == "ada@example.org"
    assert mail["template"] == "report_ready"
    assert mail["data"]["reportName"] == "Q1"
    assert mail["data"]["downloadUrl"] == (
        f"http://reports.example.org/api/reports/{report_id}/download"
    )
    assert message.message_id != report_id


async def test_what_cannot_be_written_ends_as_failed_and_dead_letter(
    stack: Stack, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    async with (
        stack.database_service(),
        stack.generator(tmp_path / "file" / "reports") as url,
    ):
        report_id = await stack.request(url)

        report = await stack.finished(url, report_id, "failed")
        dead_letter = await take(stack.broker.admin_url, REPORT_REQUESTS.dead_letter_queue)
        health = await stack.get(f"{url}/health/ready")

    assert "Not a directory" in report["errorMessage"]
    assert dead_letter.headers["x-error-code"] == "storage_failed"
    assert dead_letter.headers["x-failed-attempts"] == 4
    assert dead_letter.message_id == report_id
    assert health["dependencies"]["output_directory"]["code"] == "storage_failed"
    assert health["dependencies"]["consumer"]["ready"]


async def test_an_outage_of_database_service_is_waited_out(stack: Stack) -> None:
    async with stack.database_service() as database_url:
        pass  # Gone again, but its tables and its port are known.
    await publish_request(stack, message_id=str(report_id := uuid4()))
    async with stack.generator() as url:

        async def paused() -> bool:
            health = await stack.get(f"{url}/health/ready")
            consumer: dict[str, Any] = health["dependencies"]["consumer"]
            return consumer.get("code") == "database_service_unavailable"

        await eventually(paused, "the pause")
        async with stack.http.post(f"{url}/api/reports/generate", json={}) as refused:
            assert refused.status == 503
            assert "Retry-After" in refused.headers
        async with stack.database_service(port=urlsplit(database_url).port or 0):
            report = await stack.finished(url, str(report_id))

    assert report["recordCount"] == 0
    assert await depth(stack.broker.admin_url, REPORT_REQUESTS.dead_letter_queue) == 0


async def publish_request(stack: Stack, body: bytes = b"{}", **properties: str) -> None:
    await publish(
        stack.broker.admin_url,
        REPORT_REQUESTS.name,
        body,
        routing_key=ReportRequested.type_name,
        **properties,
    )
