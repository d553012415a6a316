"""An id that comes again for somebody else, and bytes without an id that come again."""

import json
from typing import Any
from uuid import uuid4

import asyncpg
from aiohttp import ClientSession

from common.contracts.topology import EMAIL_NOTIFICATIONS, USER_REGISTRATION
from tests.amqp import depth, eventually, publish
from tests.backends import TestBroker
from tests.integration.queue_receiver.receivers import a_receiver, the_ledger

GRACE = {"name": "Grace", "surname": "Hopper", "email": "grace@example.org"}
ADA = {"name": "Ada", "surname": "Lovelace", "email": "ada@example.org"}


async def published(broker: TestBroker, person: dict[str, str], **properties: Any) -> None:
    body = json.dumps(person).encode()
    await publish(broker.admin_url, USER_REGISTRATION.name, body, **properties)


def published_as_the_readme_does(broker: TestBroker, person: dict[str, str]) -> None:
    """Over the broker's own API, without an id."""
    message = {
        "routing_key": "",
        "properties": {"delivery_mode": 2},
        "payload_encoding": "string",
        "payload": json.dumps(person),
    }
    path = f"/api/exchanges/%2F/{USER_REGISTRATION.name}/publish"
    broker.management("POST", path, message)


async def until_users(database_dsn: str, *addresses: str) -> None:
    """Wait until these people are registered, and nobody else."""

    async def all_there() -> bool:
        connection = await asyncpg.connect(database_dsn)
        try:
            rows = await connection.fetch("SELECT email FROM users")
        finally:
            await connection.close()
        return sorted(row["email"] for row in rows) == sorted(addresses)

    await eventually(all_there, f"{addresses} being registered")


async def messages(receiver: ClientSession) -> list[dict[str, Any]]:
    async with receiver.get("/api/dead-letters") as response:
        found: list[dict[str, Any]] = (await response.json())["messages"]
        return found


async def test_two_people_under_one_id_are_one_user_and_one_dead_letter(
    fresh_broker: TestBroker, database_url: str, database_dsn: str
) -> None:
    """A publisher whose counter begins at 1 again; the message sent back gets an id of its own."""
    async with a_receiver(fresh_broker, database_url) as receiver:
        await published(fresh_broker, ADA, message_id="1")
        await until_users(database_dsn, ADA["email"])
        await published(fresh_broker, GRACE, message_id="1")

        async def dead() -> list[dict[str, Any]]:
            return await messages(receiver)

        (message,) = await eventually(dead, "the second one being a dead letter")
        assert message["code"] == "id_reused"
        assert "id of its own" in message["detail"]
        ledger = await the_ledger(receiver)
        assert ledger["deadLetteredByCode"] == {"id_reused": 1}
        dry_run = {"ids": [message["id"]]}
        async with receiver.post("/api/dead-letters/dry-run", json=dry_run) as response:
            assert (await response.json())["messages"][0]["outcome"] == "stored"

        async with receiver.post("/api/dead-letters/redrive", json=dry_run) as response:
            assert response.status == 202, await response.text()

        await until_users(database_dsn, ADA["email"], GRACE["email"])
        assert await depth(fresh_broker.admin_url, EMAIL_NOTIFICATIONS.queue) == 2


async def test_the_same_bytes_without_an_id_register_again_who_was_deleted(
    fresh_broker: TestBroker, database_url: str, database_dsn: str
) -> None:
    async with (
        a_receiver(fresh_broker, database_url) as receiver,
        ClientSession(database_url) as database,
    ):
        for number in range(1, 4):
            published_as_the_readme_does(fresh_broker, GRACE)
            await until_users(database_dsn, GRACE["email"])

            async def asked_for(number: int = number) -> bool:
                return await depth(fresh_broker.admin_url, EMAIL_NOTIFICATIONS.queue) == number

            await eventually(asked_for, f"mail {number} being asked for")
            async with database.get(f"/api/users/email/{GRACE['email']}") as response:
                user = await response.json()
            async with database.delete(f"/api/users/{user['id']}") as response:
                assert response.status == 204
        ledger = await the_ledger(receiver)
    assert (ledger["totals"]["accepted"], ledger["totals"]["repeated"]) == (1, 2)


async def test_what_has_an_id_stays_deleted_when_it_comes_again(
    fresh_broker: TestBroker, database_url: str, database_dsn: str
) -> None:
    """Whoever names an id wants the same answer for it, for ever."""
    known = str(uuid4())
    async with a_receiver(fresh_broker, database_url):
        await published(fresh_broker, GRACE, message_id=known)
        await until_users(database_dsn, GRACE["email"])
        connection = await asyncpg.connect(database_dsn)
        await connection.execute("DELETE FROM users")
        await connection.close()

        await published(fresh_broker, GRACE, message_id=known)
        await published(fresh_broker, ADA, message_id=str(uuid4()))

        await until_users(database_dsn, ADA["email"])
