import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID, uuid4

import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, make_mocked_request
from multidict import CIMultiDict

from common.contracts.registrations import Journey, JourneyStatus
from common.errors import DatabaseServiceUnavailableError
from common.http import server
from common.http.api import Api
from common.http.app import base_app
from common.readiness import Readiness
from frontend import events
from frontend.clients import Clients
from frontend.events import Watchers
from tests.polling import until
from tests.services import serving

ID = uuid4()
AWAY = DatabaseServiceUnavailableError("away")

PENDING, STORED, MAILED = JourneyStatus.PENDING, JourneyStatus.STORED, JourneyStatus.MAILED


class FakeJourneys:
    """Answers one after the other; the last one for ever."""

    def __init__(self, *answers: JourneyStatus | Exception) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.together: list[int] = []
        """How many were asked for, each time."""

    async def select_journeys(self, registration_ids: Sequence[UUID]) -> list[Journey]:
        self.asked += 1
        self.together.append(len(registration_ids))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return [Journey(registration_id=each, status=answer) for each in registration_ids]


INTERVAL = events._interval


def test_looks_are_frequent_at_first_and_never_more_than_seconds_apart() -> None:
    pauses = [INTERVAL(watched) for watched in (0, 1, 10, 600)]

    assert pauses == sorted(pauses)
    assert 0 < pauses[0] < 0.5
    assert pauses[-1] == 3


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_interval", lambda _watched: 0.0)
    monkeypatch.setattr(events, "PAUSE_SECONDS", 0.05)


@asynccontextmanager
async def watching(watchers: Watchers) -> AsyncIterator[TestClient[Any, Any]]:
    api = Api()

    @api.get("/events", returns={200: "text/event-stream"})
    async def watch(request: web.Request) -> web.StreamResponse:
        return await watchers.watch(request, UUID(request.query.get("id", str(ID))))

    app = base_app("frontend", api, description="", readiness=Readiness())
    async with serving(app) as client:
        yield client


async def watch(*answers: JourneyStatus | Exception) -> list[str]:
    """What the stream says from its beginning to its end."""
    async with (
        watching(Watchers(FakeJourneys(*answers).select_journeys)) as client,
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
    monkeypatch.setattr(events, "KEEP_ALIVE_SECONDS", 0.01)

    async with (
        watching(Watchers(FakeJourneys(PENDING).select_journeys)) as client,
        client.get("/events") as answer,
    ):
        for _ in range(2):
            await read_until(answer, b": still here")
        answer.close()


@pytest.mark.slow
async def test_a_stream_ends_when_it_has_lasted_long_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "LONGEST_WATCH_SECONDS", 1.0)

    assert await watch(PENDING) == ["pending"]


async def test_all_streams_end_when_the_service_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_interval", lambda _watched: 3600.0)
    watchers = Watchers(FakeJourneys(PENDING).select_journeys)

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
    monkeypatch.setattr(events, "KEEP_ALIVE_SECONDS", 0.01)
    watchers = Watchers(FakeJourneys(PENDING).select_journeys)

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
        watching(Watchers(journeys.select_journeys)) as client,
        client.head("/events") as answer,
    ):
        assert answer.status == 200

    assert journeys.asked == 0


async def test_however_many_watch_their_journeys_are_read_together() -> None:
    journeys = FakeJourneys(PENDING)
    ids = [uuid4() for _ in range(20)]

    async with watching(Watchers(journeys.select_journeys, connections=400)) as client:
        streams = [await client.get(f"/events?id={each}") for each in [*ids, *ids]]
        for stream in streams:
            await read_until(stream, b"data: ")
        # Each once, whoever watches it.
        await until(lambda: journeys.together[-1] == len(ids))
        for stream in streams:
            stream.close()


async def test_nobody_asks_when_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEEP_ALIVE_SECONDS", 0.01)
    watchers = Watchers(FakeJourneys(PENDING).select_journeys)

    async with watching(watchers) as client:
        stream = await client.get("/events")
        await read_until(stream, b"data: ")
        reading = watchers._reading
        assert reading is not None
        stream.close()
        async with asyncio.timeout(60):
            await reading


async def test_a_client_has_its_share_and_another_one_has_room() -> None:
    watchers = Watchers(
        FakeJourneys(PENDING).select_journeys, clients=Clients("127.0.0.0/8"), connections=64
    )

    async with watching(watchers) as client:
        answers = [
            await client.get("/events", headers={"X-Forwarded-For": "192.0.2.1"})
            for _ in range(32 // 4 + 1)
        ]
        other = await client.get("/events", headers={"X-Forwarded-For": "192.0.2.2"})

        assert [answer.status for answer in answers] == [200] * 8 + [503]
        assert answers[-1].headers["Retry-After"]
        assert other.status == 200
        for answer in (*answers, other):
            answer.close()


async def test_half_of_all_connections_are_left_for_others() -> None:
    watchers = Watchers(
        FakeJourneys(PENDING).select_journeys, clients=Clients("127.0.0.0/8"), connections=64
    )

    async with watching(watchers) as client:
        answers = [
            await client.get("/events", headers={"X-Forwarded-For": f"192.0.2.{number}"})
            for number in range(40)
        ]
        assert [answer.status for answer in answers] == [200] * 32 + [503] * 8
        for answer in answers:
            answer.close()


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("198.51.100.7", [], "198.51.100.7"),
        ("198.51.100.7", ["192.0.2.1"], "198.51.100.7"),  # anybody may say that
        ("10.0.0.1", ["192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ["203.0.113.9, 192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ["203.0.113.9", "192.0.2.1, 10.0.0.2"], "192.0.2.1"),
        ("10.0.0.1", ["192.0.2.1:5000"], "192.0.2.1"),
        ("10.0.0.1", ["[2001:db8:1:2:3::4]:5000"], "2001:db8:1:2::/64"),
        ("10.0.0.1", ["nonsense"], "10.0.0.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("::ffff:10.0.0.1", ["192.0.2.1"], "192.0.2.1"),
        ("2001:db8:1:2:3::4", ["192.0.2.1"], "2001:db8:1:2::/64"),
        ("", [], ""),
    ],
)
def test_a_client_is_the_last_address_that_no_trusted_proxy_has(
    peer: str, forwarded: list[str], client: str
) -> None:
    headers = CIMultiDict([("X-Forwarded-For", value) for value in forwarded])
    request = make_mocked_request("GET", "/", headers=headers).clone(remote=peer)

    assert Clients("10.0.0.0/8").name(request) == client


async def test_whoever_opens_streams_takes_no_place_from_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "connection_limit", lambda: 40)
    watchers = Watchers(FakeJourneys(PENDING).select_journeys, connections=40)

    async with watching(watchers) as client:
        readers = []
        for _ in range(80):
            reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
            writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await writer.drain()
            readers.append((reader, writer))
        async with asyncio.timeout(60), client.get("/nothing") as answer:
            assert answer.status == 404
        statuses = [await _status(reader) for reader, _ in readers]
        for _, writer in readers:
            writer.close()

    assert 0 < statuses.count(200) <= 20
    assert set(statuses) <= {0, 200, 503}


async def _status(reader: asyncio.StreamReader) -> int:
    """What was answered; 0 where the connection was closed instead."""
    with suppress(ConnectionError, IndexError):
        async with asyncio.timeout(60):
            return int((await reader.readline()).split()[1])
    return 0
