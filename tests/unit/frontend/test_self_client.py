"""A canary is registered by the form's endpoint; no other registration becomes one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from common.contracts.canary import canary_address, is_canary, new_canary_id
from common.errors import BrokerUnavailableError, UserStreamError
from common.http.address import OwnAddress
from common.http.app import base_app
from common.readiness import Readiness
from frontend.identity import Identities
from frontend.routes import BASE_URL, IDENTITIES, PUBLISHER, api
from frontend.self_client import SelfClient, SelfRequestError
from tests.fakes.publisher import FakePublisher

SECRET = "a secret of thirty-two characters"


@pytest.fixture
def publisher() -> FakePublisher:
    return FakePublisher()


@pytest.fixture
async def frontend(publisher: FakePublisher) -> AsyncIterator[TestClient[Any, Any]]:
    app = base_app("frontend", api, description="", readiness=Readiness())
    app[IDENTITIES] = Identities(SECRET)
    app[BASE_URL] = "http://localhost"
    app[PUBLISHER] = publisher
    async with TestClient(TestServer(app)) as client:
        yield client


@asynccontextmanager
async def client_of(server: TestClient[Any, Any]) -> AsyncIterator[SelfClient]:
    address = OwnAddress()
    address.listens("127.0.0.1", server.port or 0)
    async with SelfClient.open(address=address, identities=server.app[IDENTITIES]) as client:
        yield client


async def test_a_canary_is_published_under_its_own_id(
    frontend: TestClient[Any, Any], publisher: FakePublisher
) -> None:
    canary_id = new_canary_id()

    async with client_of(frontend) as client:
        await client.register(canary_id)

    ((data, message_id),) = publisher.published
    assert message_id == canary_id
    assert data.model_dump()["email"] == canary_address(canary_id)


async def test_a_refusal_keeps_its_reason(
    frontend: TestClient[Any, Any], publisher: FakePublisher
) -> None:
    publisher.error = BrokerUnavailableError("The broker takes no messages.")

    async with client_of(frontend) as client:
        with pytest.raises(BrokerUnavailableError, match="takes no messages"):
            await client.register(new_canary_id())


async def test_a_503_says_that_nothing_was_promised_and_what_to_do(
    frontend: TestClient[Any, Any], publisher: FakePublisher
) -> None:
    publisher.error = BrokerUnavailableError("Cannot reach the broker: Connection refused")
    person = {"name": "Ada", "surname": "Lovelace", "email": "ada@example.org"}

    for _ in range(2):
        async with frontend.post("/api/registrations", json=person) as answer:
            said = await answer.json()

            assert (answer.status, said["code"]) == (503, "broker_unavailable")
            assert said["detail"].startswith("Cannot reach the broker: Connection refused. ")
            assert said["detail"].count("The registration was not confirmed. Retry it") == 1


async def test_nobody_else_registers_a_canary(
    frontend: TestClient[Any, Any], publisher: FakePublisher
) -> None:
    """Not by what the canary looks like, nor by guessing at how it is told."""
    canary_id = new_canary_id()
    person = {"name": "Canary", "surname": "Canary", "email": canary_address(canary_id)}
    with frontend.app[IDENTITIES].reserve("the-key-of-this-moment", canary_id):
        for headers in (
            {},
            {"Idempotency-Key": str(canary_id)},
            {"Idempotency-Key": "canary"},
            {"X-Canary": "1", "X-Correlation-Id": f"canary-{canary_id.hex[-12:]}"},
            {"message_id": str(canary_id), "X-Request-Id": str(canary_id)},
        ):
            async with frontend.post("/api/registrations", json=person, headers=headers) as answer:
                assert answer.status == 202
        for field in ("registrationId", "canary", "messageId", "id"):
            body = {**person, field: str(canary_id)}
            async with frontend.post("/api/registrations", json=body) as answer:
                assert answer.status == 422, field
        form = {**person, "nonce": str(canary_id), "canary": "1"}
        async with frontend.post("/", data=form, allow_redirects=False) as answer:
            assert answer.status in (303, 422)

    assert len(publisher.published) >= 5
    assert not any(is_canary(message_id) for _, message_id in publisher.published)


async def test_a_canarys_key_opens_nothing_afterwards(
    frontend: TestClient[Any, Any], publisher: FakePublisher
) -> None:
    key, canary_id = "the-key-of-that-moment", new_canary_id()
    with frontend.app[IDENTITIES].reserve(key, canary_id):
        pass

    person = {"name": "Ada", "surname": "Lovelace", "email": "ada@example.org"}
    headers = {"Idempotency-Key": key}
    async with frontend.post("/api/registrations", json=person, headers=headers) as answer:
        assert answer.status == 202

    assert not is_canary(publisher.sent[0].id)


async def test_another_process_on_that_port_is_found_out() -> None:
    async def somebody_elses(_request: web.Request) -> web.Response:
        return web.json_response({"registrationId": str(UUID(int=1))}, status=202)

    app = web.Application()
    app.router.add_post("/api/registrations", somebody_elses)
    async with TestClient(TestServer(app)) as other:
        address = OwnAddress()
        address.listens("127.0.0.1", other.port or 0)
        async with SelfClient.open(address=address, identities=Identities(SECRET)) as client:
            with pytest.raises(SelfRequestError, match="another registration id"):
                await client.register(new_canary_id())


async def test_nobody_there_is_an_error_of_ours() -> None:
    address = OwnAddress()
    address.listens("127.0.0.1", 1)
    async with SelfClient.open(address=address, identities=Identities(SECRET)) as client:
        with pytest.raises(UserStreamError, match="No answer"):
            await client.register(new_canary_id())
