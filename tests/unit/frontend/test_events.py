import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient

from common.contracts.registrations import Journey, JourneyStatus
from common.errors import DatabaseServiceUnavailableError
from common.http.problems import problem_middleware
from frontend import events
from frontend.events import Watchers
from tests.services import serving

ID = uuid4()
AWAY = DatabaseServiceUnavailableError("away")

PENDING, STORED, MAILED = JourneyStatus.PENDING, JourneyStatus.STORED, JourneyStatus.MAILED


class FakeJourneys:
    """Answers one after the other; the last one for ever."""

    def __init__(self, *answers: JourneyStatus | Exception) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.on_asked: Callable[[int], None] = lambda _count: None

    async def select_journey(self, registration_id: UUID) -> Journey:
        self.asked += 1
        self.on_asked(self.asked)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return Journey(registration_id=registration_id, status=answer)


INTERVAL = events._interval


def test_looks_are_frequent_at_first_and_never_more_than_seconds_apart() -> None:
    pauses = [INTERVAL(watched) for watched in (0, 1, 10, 600)]

    assert pauses == sorted(pauses)
    assert 0 < pauses[0] < 0.5
    assert pauses[-1] == 3


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_interval", lambda _watched: 0.0)


@asynccontextmanager
async def watching(watchers: Watchers) -> AsyncIterator[TestClient[Any, Any]]:
    async def watch(request: web.Request) -> web.StreamResponse:
        return await watchers.watch(request, ID)

    app = web.Application(middlewares=[problem_middleware(None)])
    app.router.add_get("/events", watch)
    async with serving(app) as client:
        yield client


async def watch(*answers: JourneyStatus | Exception) -> list[str]:
    """What the stream says from its beginning to its end."""
    async with (
        watching(Watchers(FakeJourneys(*answers).select_journey)) as client,
        client.get("/events") as answer,
    ):
        assert answer.content_type == "text/event-stream"
        return said(await answer.text())


def said(text: str) -> list[str]:
    """Each event as its name, a journey as its status."""
    parts = [part for part in text.split("\n\n") if part]
    assert parts.pop(0) == "retry: 2000"
    return [_said(part) for part in parts]


def _said(part: str) -> str:
    if part.startswith(":"):
        return "comment"
    event, data = part.split("\n")
    name, content = event.removeprefix("event: "), json.loads(data.removeprefix("data: "))
    if name == "journey":
        assert content["registrationId"] == str(ID)
    return str(content.get("status", name))


async def read_until(answer: ClientResponse, text: bytes) -> None:
    while text not in await answer.content.readline():
        assert not answer.content.at_eof()


async def test_a_journey_is_told_change_by_change_to_its_end() -> None:
    assert await watch(PENDING, PENDING, PENDING, STORED, STORED, MAILED) == [
        "pending",
        "stored",
        "mailed",
    ]


@pytest.mark.parametrize("end", [MAILED, JourneyStatus.MAIL_FAILED])
async def test_a_journey_that_has_ended_is_told_once(end: JourneyStatus) -> None:
    assert await watch(end) == [end]


async def test_an_outage_is_told_once_and_the_journey_goes_on() -> None:
    assert await watch(AWAY, AWAY, PENDING, AWAY, AWAY, PENDING, MAILED) == [
        "unavailable",
        "pending",
        "unavailable",
        "pending",
        "mailed",
    ]


async def test_a_silent_stream_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEEP_ALIVE_SECONDS", -1.0)

    assert await watch(PENDING, PENDING, PENDING, MAILED) == [
        "pending",
        "comment",
        "comment",
        "mailed",
    ]


async def test_a_stream_ends_when_it_has_lasted_long_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "LONGEST_WATCH_SECONDS", 0.05)

    assert await watch(PENDING) == ["pending"]


async def test_all_streams_end_when_the_service_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_interval", lambda _watched: 3600.0)
    watchers = Watchers(FakeJourneys(PENDING).select_journey)

    async with (
        watching(watchers) as client,
        client.get("/events") as first,
        client.get("/events") as second,
    ):
        for answer in (first, second):
            await read_until(answer, b"data: ")
        watchers.stop()
        for answer in (first, second):
            await asyncio.wait_for(answer.read(), timeout=30)


async def test_a_reader_who_goes_away_makes_room_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "MAX_WATCHERS", 1)
    monkeypatch.setattr(events, "KEEP_ALIVE_SECONDS", -1.0)
    watchers = Watchers(FakeJourneys(PENDING).select_journey)

    async with watching(watchers) as client:
        async with client.get("/events") as first:
            await read_until(first, b"data: ")
            async with client.get("/events") as second:
                assert second.status == 503
                assert (await second.json(content_type=None))["code"] == "too_many_watchers"
            first.close()

        async def next_status() -> int:
            async with client.get("/events") as answer:
                answer.close()
                return answer.status

        async with asyncio.timeout(30):
            while await next_status() != 200:
                pass


async def test_asking_for_the_head_alone_watches_nothing() -> None:
    journeys = FakeJourneys(PENDING)

    async with (
        watching(Watchers(journeys.select_journey)) as client,
        client.head("/events") as answer,
    ):
        assert answer.status == 200

    assert journeys.asked == 0
