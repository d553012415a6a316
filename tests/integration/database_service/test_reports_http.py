"""Records of reports over HTTP."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from aiohttp import ClientSession


def a_record(minute: int = 0) -> dict[str, str]:
    moment = datetime(2026, 1, 31, 9, 30, tzinfo=UTC) + timedelta(minutes=minute)
    return {
        "reportId": str(uuid4()),
        "reportName": "users",
        "format": "csv",
        "requestedAt": moment.isoformat(),
    }


READY = {
    "status": "ready",
    "recordCount": 3,
    "filePath": "users.csv",
    "sizeBytes": 2**40,
    "sha256": "0" * 64,
}


async def put(
    client: ClientSession, record: dict[str, str], update: dict[str, Any]
) -> dict[str, Any]:
    async with client.put(f"/api/reports/{record['reportId']}", json=update) as response:
        assert response.status == 200
        answer: dict[str, Any] = await response.json()
    return answer


async def test_the_same_record_twice_is_one(client: ClientSession) -> None:
    record = a_record()

    async with client.post("/api/reports", json=record) as response:
        assert response.status == 201
        first, location = await response.json(), response.headers["Location"]
    await put(client, record, READY)
    async with client.post("/api/reports", json=record | {"reportName": "other"}) as response:
        assert response.status == 200
        again = await response.json()

    assert first["status"] == "requested"
    assert again["status"] == "ready"
    assert again["reportName"] == "users"
    async with client.get(location) as response:
        assert await response.json() == again


async def test_a_ready_report_stays_ready(client: ClientSession) -> None:
    record = a_record()
    async with client.post("/api/reports", json=record) as response:
        assert response.status == 201
    generating = await put(client, record, {"status": "generating"})
    ready = await put(client, record, READY)

    for late in ({"status": "generating"}, {"status": "failed", "errorMessage": "disk full"}):
        assert await put(client, record, late) == ready

    assert generating["generatedAt"] is None
    assert ready["generatedAt"] is not None
    assert {key: ready[key] for key in READY} == READY


async def test_a_failed_report_says_why_and_can_be_made_again(client: ClientSession) -> None:
    record = a_record()
    async with client.post("/api/reports", json=record) as response:
        assert response.status == 201

    failed = await put(client, record, {"status": "failed", "errorMessage": "The disk is full."})
    ready = await put(client, record, READY)

    assert failed["errorMessage"] == "The disk is full."
    assert ready["status"] == "ready"
    assert ready["errorMessage"] is None


async def test_an_unknown_report_is_not_found(client: ClientSession) -> None:
    url = f"/api/reports/{uuid4()}"

    async with client.get(url) as response:
        assert response.status == 404
    async with client.put(url, json=READY) as response:
        assert response.status == 404


async def test_reports_are_listed_newest_first(client: ClientSession) -> None:
    records = [a_record(minute) for minute in (3, 1, 4, 1, 5)]
    for record in records:
        async with client.post("/api/reports", json=record) as response:
            assert response.status == 201
    newest_first = [
        record["reportId"]
        for _, record in sorted(
            enumerate(records), key=lambda pair: (pair[1]["requestedAt"], pair[0]), reverse=True
        )
    ]

    url, seen = "/api/reports?limit=2", []
    while url:
        async with client.get(url) as response:
            page = await response.json()
            seen += [report["reportId"] for report in page["reports"]]
            url = response.headers.get("Link", "").partition(">")[0].removeprefix("<")
    async with client.get("/api/reports?page=2&limit=2") as response:
        second = [report["reportId"] for report in (await response.json())["reports"]]

    assert seen == newest_first
    assert second == newest_first[2:4]


async def test_a_page_after_an_unknown_report_is_refused(client: ClientSession) -> None:
    async with client.get("/api/reports", params={"after": str(uuid4())}) as response:
        assert response.status == 422
        assert (await response.json())["errors"][0]["pointer"] == "after"
