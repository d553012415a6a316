import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from structlog.testing import capture_logs

from common import readiness
from common.database_client.circuit import Circuit
from common.errors import DatabaseUnavailableError
from common.http.api import Api
from common.http.app import base_app
from common.readiness import HealthNote, Readiness
from tests.services import serving


class Dependency:
    """Something that is there, or away, or silent."""

    error: Exception | None = None
    silent = False

    async def check(self) -> None:
        if self.silent:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error


@pytest.fixture
def postgres() -> Dependency:
    return Dependency()


@pytest.fixture
async def client(postgres: Dependency) -> AsyncIterator[TestClient[Any, Any]]:
    readiness = Readiness()
    readiness.add("postgres", postgres.check)
    readiness.add("broker", Dependency().check)
    async with serving(base_app("test", Api(), description="", readiness=readiness)) as client:
        yield client


async def get(client: TestClient[Any, Any], path: str) -> tuple[int, Any]:
    async with client.get(path) as answer:
        return answer.status, await answer.json()


async def test_a_service_is_ready_when_all_its_dependencies_are(
    client: TestClient[Any, Any],
) -> None:
    status, report = await get(client, "/health/ready")

    assert (status, report["ready"]) == (200, True)
    assert list(report["dependencies"]) == ["postgres", "broker"]
    assert report["dependencies"]["postgres"]["latencyMs"] >= 0


async def test_a_service_is_not_ready_while_a_dependency_is_away_and_says_which(
    client: TestClient[Any, Any], postgres: Dependency
) -> None:
    postgres.error = DatabaseUnavailableError("PostgreSQL did not answer.")

    status, report = await get(client, "/health/ready")

    assert (status, report["ready"]) == (503, False)
    assert report["dependencies"]["broker"]["ready"]
    assert not report["dependencies"]["postgres"]["ready"]
    assert report["dependencies"]["postgres"]["code"] == "database_unavailable"
    assert report["dependencies"]["postgres"]["detail"] == "PostgreSQL did not answer."

    postgres.error = None
    assert (await get(client, "/health/ready"))[0] == 200


async def test_a_check_that_never_ends_counts_as_away(
    client: TestClient[Any, Any], postgres: Dependency, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "CHECK_SECONDS", 0.01)
    postgres.silent = True

    status, report = await get(client, "/health/ready")

    assert status == 503
    assert report["dependencies"]["postgres"]["code"] == "timeout"


async def test_a_service_lives_and_sums_up_even_while_dependencies_are_away(
    client: TestClient[Any, Any], postgres: Dependency
) -> None:
    postgres.error = DatabaseUnavailableError("away")

    assert await get(client, "/health/live") == (200, {"status": "live"})
    status, summary = await get(client, "/health")
    assert (status, summary["service"], summary["status"]) == (200, "test", "waiting")


async def test_a_circuit_is_shown_and_keeps_nobody_from_being_ready() -> None:
    readiness = Readiness()

    async def never() -> bool:
        return False

    circuit = Circuit("test", is_ready=never)
    readiness.show("database_service", circuit)
    async with serving(base_app("test", Api(), description="", readiness=readiness)) as client:
        assert (await get(client, "/health/ready"))[1]["circuits"] == {"database_service": "closed"}
        circuit.open()
        status, report = await get(client, "/health/ready")
        _, summary = await get(client, "/health")
        await circuit.aclose()

    assert (status, report["circuits"]) == (200, {"database_service": "open"})
    assert summary["circuits"] == report["circuits"]


async def test_a_note_is_shown_and_keeps_nobody_from_being_ready() -> None:
    readiness = Readiness()
    readiness.note(
        "canary", lambda: HealthNote(detail="overdue", warning=True, facts={"secondsAgo": 90})
    )

    async with serving(base_app("test", Api(), description="", readiness=readiness)) as client:
        ready = await get(client, "/health/ready")
        _, summary = await get(client, "/health")

    assert ready == (200, {"ready": True, "dependencies": {}})
    assert summary["status"] == "ready"
    assert summary["notes"] == {
        "canary": {"warning": True, "detail": "overdue", "secondsAgo": 90},
    }


async def test_a_check_that_breaks_in_an_unforeseen_way_counts_as_away(
    client: TestClient[Any, Any], postgres: Dependency
) -> None:
    postgres.error = LookupError("password=hunter2")

    with capture_logs() as lines:
        status, report = await get(client, "/health/ready")

    assert "health.check_failed" in [line["event"] for line in lines]
    assert status == 503
    assert report["dependencies"]["postgres"]["code"] == "internal_error"
    assert "hunter2" not in str(report)


async def test_files_of_the_documentation_come_in_chunks_and_are_kept_by_browsers(
    client: TestClient[Any, Any],
) -> None:
    """Whole, for each slow reader, they would take 1.6 MB of memory."""
    url = "/api-docs/swagger_bundle.js"

    async with client.get(url, headers={"Range": "bytes=0-9"}) as part:
        assert part.status == 206
    async with client.get(url, headers={"If-None-Match": part.headers["ETag"]}) as known:
        assert known.status == 304
    assert "offapi" not in sys.modules  # which would take 38 MB, for its files alone


async def test_the_documentation_and_the_metrics_need_nothing_else(
    client: TestClient[Any, Any], postgres: Dependency
) -> None:
    postgres.error = DatabaseUnavailableError("away")

    async with client.get("/api-docs") as answer:
        page = await answer.text()
    for path in ("swagger_bundle.js", "swagger_preset.js", "swagger_style.css", "start.js"):
        assert path in page
        async with client.get(f"/api-docs/{path}") as answer:
            assert answer.status == 200
    assert "://" not in page  # nothing comes from elsewhere
    async with client.get("/metrics") as answer:
        assert "userstream_http_requests_total" in await answer.text()


async def test_a_change_of_readiness_is_logged_once(
    client: TestClient[Any, Any], postgres: Dependency
) -> None:
    async def ask(error: Exception | None) -> list[tuple[str, str]]:
        postgres.error = error
        with capture_logs() as lines:
            await get(client, "/health/ready")
            await get(client, "/health")
        return [
            (line["event"], line["log_level"])
            for line in lines
            if line["event"].startswith("service.")
        ]

    away = DatabaseUnavailableError("PostgreSQL is away.")

    assert await ask(away) == [("service.waiting", "info")]
    assert await ask(None) == [("service.ready", "info")]
    assert await ask(None) == []
    assert await ask(away) == [("service.not_ready", "warning")]
    assert await ask(None) == [("service.ready", "info")]
