import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import pytest
from aiohttp.test_utils import TestClient
from structlog.testing import capture_logs

from common.amqp.message import TRACEPARENT
from common.context import span_of
from common.contracts.canary import new_canary_id
from common.contracts.ledger import UnpromisedPublication, UnpromisedPublications
from common.errors import (
    BrokerUnavailableError,
    DatabaseServiceUnavailableError,
    NotConfirmedError,
    NotFoundError,
    UnroutableError,
    UserStreamError,
)
from frontend import unpromised as unpromised_module
from frontend.identity import Identities
from frontend.routes import BASE_URL, IDENTITIES, PUBLISHER, UNPROMISED
from frontend.unpromised import Unpromised
from tests.fakes.publisher import FakePublisher
from tests.polling import until
from tests.services import build, serving

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpromised_module, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(unpromised_module, "LONGEST_PAUSE_SECONDS", 0.001)


@dataclass
class FakeLedger:
    """Keeps what it is told, where nothing goes wrong."""

    failures: list[Exception] = field(default_factory=list)
    told: list[list[UnpromisedPublication]] = field(default_factory=list)
    asked: int = 0

    async def record_unpromised(self, unpromised: UnpromisedPublications) -> int:
        self.asked += 1
        await asyncio.sleep(0)
        if self.failures:
            raise self.failures.pop(0)
        self.told.append(unpromised.publications)
        return len(unpromised.publications)

    @property
    def ids(self) -> list[UUID]:
        return [one.registration_id for some in self.told for one in some]


async def test_what_was_answered_with_503_is_told_together() -> None:
    ledger, keys = FakeLedger(), [uuid4() for _ in range(1500)]
    async with Unpromised(ledger).reporting() as unpromised:
        for key in keys:
            unpromised.note(key, TRACE)
        await until(lambda: len(ledger.ids) == 1500, "reporting")

    assert ledger.ids == keys
    assert [len(some) for some in ledger.told] == [1000, 500]
    assert ledger.told[0][0].span == "b7ad6b7169203331"


async def test_it_is_told_again_until_it_is_taken() -> None:
    away = DatabaseServiceUnavailableError
    ledger, key = FakeLedger([away(), away(), away()]), uuid4()
    async with Unpromised(ledger).reporting() as unpromised:
        unpromised.note(key, TRACE)
        await until(lambda: ledger.ids == [key], "reporting")

    assert ledger.asked == 4


async def test_what_is_left_is_told_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpromised_module, "LONGEST_PAUSE_SECONDS", 3600)
    monkeypatch.setattr(unpromised_module, "PAUSE_SECONDS", 3600)
    ledger, keys = FakeLedger(), [uuid4(), uuid4()]
    async with Unpromised(ledger).reporting() as unpromised:
        unpromised.note(keys[0], TRACE)
        await until(lambda: ledger.ids == keys[:1], "reporting")
        unpromised.note(keys[1], TRACE)

    assert ledger.ids == keys


async def test_an_end_waits_for_nobody_who_is_away() -> None:
    ledger = FakeLedger([DatabaseServiceUnavailableError()] * 10_000)
    async with Unpromised(ledger).reporting() as unpromised:
        unpromised.note(uuid4(), TRACE)
        await until(lambda: ledger.asked > 1, "reporting")


async def test_an_older_database_service_is_asked_and_told_of_once() -> None:
    ledger = FakeLedger([NotFoundError(), NotFoundError()])
    with capture_logs() as lines:
        async with Unpromised(ledger).reporting() as unpromised:
            for number in (1, 2):
                unpromised.note(uuid4(), TRACE)
                await until(lambda number=number: ledger.asked == number, "reporting")  # type: ignore[misc]

    assert ledger.told == []
    assert [(line["event"], line["code"]) for line in lines] == [
        ("unpromised.dropped", "not_found")
    ]


async def test_so_many_wait_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpromised_module, "MAX_WAITING", 3)
    ledger, keys = FakeLedger(), [uuid4() for _ in range(5)]
    with capture_logs() as lines:
        async with Unpromised(ledger).reporting() as unpromised:
            for key in keys:
                unpromised.note(key, TRACE)

    assert ledger.ids == keys[:3]
    assert [line["code"] for line in lines] == ["full"]


async def test_of_canaries_and_without_a_span_nothing_is_told() -> None:
    ledger = FakeLedger()
    async with Unpromised(ledger).reporting() as unpromised:
        unpromised.note(new_canary_id(), TRACE)
        unpromised.note(uuid4(), "")

    assert ledger.asked == 0


# -- whom the frontend notes ----------------------------------------------------------------


@dataclass
class FakeUnpromised:
    noted: list[tuple[UUID, str]] = field(default_factory=list)

    def note(self, registration_id: UUID, traceparent: str) -> None:
        self.noted.append((registration_id, span_of(traceparent)))


@asynccontextmanager
async def a_frontend(
    publisher: FakePublisher, unpromised: FakeUnpromised
) -> AsyncIterator[TestClient[Any, Any]]:
    app = build("frontend")
    app[IDENTITIES] = Identities("s" * 32)
    app[BASE_URL] = "http://localhost"
    app[PUBLISHER] = publisher
    app[UNPROMISED] = unpromised  # type: ignore[misc]
    async with serving(app) as client:
        yield client


ADA = {"name": "Ada", "surname": "Lovelace", "email": "ada@example.org"}


async def register(client: TestClient[Any, Any], path: str) -> int:
    """As a program or by the form, again and again with the same key and trace."""
    headers = {"traceparent": TRACE, "Idempotency-Key": "k"}
    if path == "/":
        form = {**ADA, "nonce": "k"}
        async with client.post(path, data=form, headers=headers, allow_redirects=False) as answer:
            return answer.status
    async with client.post(path, json=ADA, headers=headers) as answer:
        return answer.status


@pytest.mark.parametrize("path", ["/", "/api/registrations", "/api/submit"])
async def test_each_503_of_what_the_broker_may_have_is_noted_by_its_span_and_no_202(
    path: str,
) -> None:
    publisher, unpromised = FakePublisher(NotConfirmedError()), FakeUnpromised()
    async with a_frontend(publisher, unpromised) as client:
        refused = [await register(client, path) for _ in range(2)]
        publisher.error = None
        promised = await register(client, path)

    assert (refused, promised) == ([503, 503], 303 if path == "/" else 202)
    published = [
        (message.id, span_of(message.headers[TRACEPARENT])) for message in publisher.attempted
    ]
    assert unpromised.noted == published[:2]
    ids = {registration_id for registration_id, _ in published}
    spans = {span for _, span in published}
    assert (len(ids), len(spans)) == (1, 3)
    assert span_of(TRACE) not in spans


@pytest.mark.parametrize("failure", [BrokerUnavailableError(), UnroutableError()])
async def test_what_the_broker_can_not_have_is_not_noted(failure: UserStreamError) -> None:
    unpromised = FakeUnpromised()
    async with a_frontend(FakePublisher(failure), unpromised) as client:
        assert await register(client, "/api/registrations") == 503

    assert unpromised.noted == []
