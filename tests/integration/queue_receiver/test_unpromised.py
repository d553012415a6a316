"""A registration that was answered with 503 and is in the stream alone: nobody was promised it."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from uuid import UUID, uuid4

from aiohttp import ClientSession

from common.contracts.topology import USER_REGISTRATION
from frontend.app import build_app
from frontend.settings import Settings
from tests.amqp import a_registration, eventually
from tests.backends import TestBroker
from tests.integration.queue_receiver.receivers import (
    a_receiver,
    is_ready,
    the_ledger,
    until_stored,
)
from tests.services import listening

NAME = USER_REGISTRATION.name
POLICY = "/api/policies/%2F/full"


@asynccontextmanager
async def a_frontend(broker: TestBroker, database_url: str) -> AsyncIterator[ClientSession]:
    """The frontend as it runs in production, without canaries."""
    app = build_app(
        Settings.model_validate(
            {
                "queue_url": broker.url("frontend"),
                "database_service_url": database_url,
                "registration_id_secret": "s" * 32,
                "canary_seconds": 0,
            }
        )
    )
    async with listening(app) as url, ClientSession(url) as client:
        await eventually(lambda: is_ready(client), "being ready")
        yield client


async def registered(frontend: ClientSession, person: dict[str, Any], key: str) -> int:
    """The status that somebody is answered with; always of the same trace."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"Idempotency-Key": key, "traceparent": trace}
    async with frontend.post("/api/registrations", json=person, headers=headers) as response:
        await response.read()
        return response.status


def a_person() -> dict[str, Any]:
    return a_registration().model_dump(mode="json", exclude={"timestamp"})


@contextmanager
def full(broker: TestBroker) -> Iterator[None]:
    """The work queue takes nothing, and the stream all; empty again afterwards."""
    definition = {"max-length": 1, "overflow": "reject-publish"}
    body = {"pattern": f"^{NAME}$", "definition": definition, "priority": 9, "apply-to": "queues"}
    broker.management("PUT", POLICY, body)
    try:
        yield
    finally:
        broker.management("DELETE", POLICY)


async def fill(frontend: ClientSession) -> int:
    """Register people until the work queue is full; how many of them were promised it."""
    promised = 0

    async def is_refused() -> bool:
        nonlocal promised
        status = await registered(frontend, a_person(), uuid4().hex)
        promised += status == 202
        return status == 503

    await eventually(is_refused, "refusing")
    return promised


def purge(broker: TestBroker) -> None:
    """Empty the work queue, as a careless hand would."""
    broker.management("DELETE", f"/api/queues/%2F/{NAME}/contents")


async def test_who_was_told_503_is_unpromised_and_who_was_told_202_is_never_hidden(
    fresh_broker: TestBroker, database_url: str, database_dsn: str
) -> None:
    """Under one key and trace: 503 twice; 503, then 202; and 202, then 503."""
    first_refused, first_promised, refused = (a_person() for _ in range(3))
    async with a_frontend(fresh_broker, database_url) as frontend:
        assert await registered(frontend, first_promised, "b") == 202
        with full(fresh_broker):
            lost = 1 + await fill(frontend)
            assert await registered(frontend, first_refused, "a") == 503
            assert await registered(frontend, first_promised, "b") == 503
            assert [await registered(frontend, refused, "c") for _ in range(2)] == [503, 503]
    purge(fresh_broker)
    # Another one: a queue that was purged does not tell its publishers that it takes more.
    async with a_frontend(fresh_broker, database_url) as frontend:
        assert await registered(frontend, first_refused, "a") == 202
    purge(fresh_broker)
    lost += 1

    async with a_receiver(fresh_broker, database_url) as receiver:

        async def noticed() -> dict[str, Any] | None:
            ledger = await the_ledger(receiver)
            return ledger if ledger["lost"] else None

        ledger = await eventually(noticed, "noticing")
        assert (ledger["lost"], ledger["totals"]["missing"]) == (lost, lost)
        assert ledger["totals"]["unpromised"] == 2  # the one who filled it up, and c
        named = ledger["unpromisedRegistrations"]
        assert len(named) == 2
        assert not {one["registrationId"] for one in named} & {
            one["registrationId"] for one in ledger["lostRegistrations"]
        }
        async with receiver.get("/health") as response:
            assert (await response.json())["notes"]["ledger"]["unpromised"] == 2
        async with receiver.get("/metrics") as response:
            text = await response.text()
        assert 'userstream_ledger_registrations{state="unpromised"} 2.0' in text

        async with receiver.post("/api/ledger/repairs") as response:
            assert (await response.json())["republished"] == lost
        await until_stored(
            database_dsn, [UUID(one["registrationId"]) for one in ledger["lostRegistrations"]]
        )
        ledger = await the_ledger(receiver)
        assert (ledger["lost"], ledger["totals"]["unpromised"]) == (0, 2)
