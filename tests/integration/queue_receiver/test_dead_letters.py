"""Dead letters with the receiver, the broker and the database real."""

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import aio_pika
import asyncpg
import pytest
from aiohttp import ClientSession

from common.amqp.dead_letter_queue import DeadLetter, LockedQueue
from common.contracts.topology import EMAIL_NOTIFICATIONS, USER_REGISTRATION
from queue_receiver.app import build_app
from queue_receiver.settings import Settings
from tests.amqp import depth, eventually, opened, take
from tests.backends import TestBroker
from tests.integration.database_service.builders import serving, settings_for
from tests.services import listening

DEAD = USER_REGISTRATION.dead_letter_queue


@dataclass
class Receiver:
    """A receiver with everything behind it."""

    broker: TestBroker
    client: ClientSession
    sql: asyncpg.Connection

    async def fill(self, *bodies: bytes, code: str = "upstream_error") -> list[UUID]:
        """Put dead letters there; returns their ids, oldest first."""
        ids = [uuid4() for _ in bodies]
        async with opened(self.broker.admin_url) as channel:
            exchange = await channel.get_exchange(
                USER_REGISTRATION.dead_letter_exchange, ensure=False
            )
            for message_id, body in zip(ids, bodies, strict=True):
                headers: Any = {"x-error-code": code, "x-failed-attempts": 4, "x-attempt": 4}
                message = aio_pika.Message(
                    body, delivery_mode=2, message_id=str(message_id), headers=headers
                )
                await exchange.publish(message, "foreign.key")
        return ids

    async def get(self, path: str) -> Any:
        async with self.client.get(f"/api/dead-letters{path}") as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def post(self, path: str, body: object, status: int = 200) -> Any:
        async with self.client.post(f"/api/dead-letters{path}", json=body) as response:
            assert response.status == status, await response.text()
            return await response.json()

    async def redrive(self, **wish: Any) -> Any:
        """Begin a redrive and wait for its end."""
        begun = await self.post("/redrive", {"rate": 1000, "waitSeconds": 20, **wish}, 202)

        async def end() -> Any:
            progress = await self.get(f"/redrives/{begun['redriveId']}")
            return progress if progress["state"] != "running" else None

        return await eventually(end, "the end of the redrive")

    async def stored(self) -> set[UUID]:
        """Ids of all registrations that are stored."""
        rows = await self.sql.fetch("SELECT registration_id FROM registrations")
        return {UUID(str(row["registration_id"])) for row in rows}

    async def waiting(self) -> list[UUID]:
        """Ids of the dead letters, in order."""
        return [UUID(message["id"]) for message in (await self.get("?limit=500"))["messages"]]


@pytest.fixture
async def receiver(empty_broker: TestBroker, database_dsn: str) -> AsyncIterator[Receiver]:
    async with serving(settings_for(database_dsn)) as database:
        await _ready(database)
        settings = Settings.model_validate(
            {
                "queue_url": empty_broker.url("queue_receiver"),
                "database_service_url": str(database._base_url),
                "retry_delay_ms": 50,
            }
        )
        sql = await asyncpg.connect(database_dsn)
        try:
            async with listening(build_app(settings)) as url, ClientSession(url) as client:
                await _ready(client)
                yield Receiver(empty_broker, client, sql)
        finally:
            await sql.close()


async def _ready(client: ClientSession) -> None:
    async def is_ready() -> bool:
        async with client.get("/health/ready") as response:
            return response.status == 200

    await eventually(is_ready, "being ready")


def a_body(**changes: str) -> bytes:
    person = {"name": "Ada", "surname": "Lovelace", "email": f"ada-{uuid4().hex}@example.org"}
    return json.dumps(person | changes).encode()


async def test_what_was_repaired_goes_through(receiver: Receiver) -> None:
    ids = await receiver.fill(*(a_body() for _ in range(25)))

    redrive = await receiver.redrive(all=True)

    assert (redrive["state"], redrive["handled"], redrive["total"]) == ("done", 25, 25)
    assert await receiver.stored() == set(ids)
    assert await receiver.waiting() == []


async def test_a_redrive_stops_at_the_poison_and_leaves_the_rest(receiver: Receiver) -> None:
    good, poison = [a_body() for _ in range(20)], b'{"name": "Ada"}'
    ids = await receiver.fill(*good[:5], poison, *good[5:])

    redrive = await receiver.redrive(all=True)

    assert (redrive["state"], redrive["failed"]) == ("failed", 1)
    assert redrive["firstFailed"] == str(ids[5])
    await eventually(_held(receiver, 10), "the good ones being stored")
    assert await receiver.stored() == {*ids[:5], *ids[6:11]}
    assert await receiver.waiting() == [*ids[11:], ids[5]]


def _held(receiver: Receiver, count: int) -> Callable[[], Awaitable[bool]]:
    async def is_so() -> bool:
        return len(await receiver.stored()) == count

    return is_so


async def test_a_crash_between_confirm_and_ack_duplicates_nothing(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = a_body()
    [message_id] = await receiver.fill(body)
    with monkeypatch.context() as dying:
        dying.setattr(LockedQueue, "remove", _no_ack)
        await receiver.post(f"/{message_id}/resend", {"body": json.loads(body)})
    await eventually(_held(receiver, 1), "the first of the two being stored")
    assert await receiver.waiting() == [message_id]  # in both, as after a kill

    redrive = await receiver.redrive(ids=[str(message_id)])
    requests = [await take(receiver.broker.admin_url, EMAIL_NOTIFICATIONS.queue) for _ in range(2)]

    assert redrive["state"] == "done"
    assert await receiver.stored() == {message_id}
    assert await receiver.sql.fetchval("SELECT count(*) FROM users") == 1
    assert len({request.message_id for request in requests}) == 1  # so the sender sends one mail
    assert await receiver.waiting() == []


async def test_after_a_crash_amid_a_correction_the_uncorrected_one_is_still_for_a_person(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    [message_id] = await receiver.fill(a_body())
    with monkeypatch.context() as dying:
        dying.setattr(LockedQueue, "remove", _no_ack)
        await receiver.post(f"/{message_id}/resend", {"body": json.loads(a_body())})
    await eventually(_held(receiver, 1), "the corrected one being stored")

    redrive = await receiver.redrive(ids=[str(message_id)])

    assert redrive["state"] == "failed"
    assert await receiver.stored() == {message_id}
    [message] = (await receiver.get(""))["messages"]
    assert (message["id"], message["code"]) == (str(message_id), "id_reused")


def _no_ack(_self: LockedQueue, _message: DeadLetter) -> None:
    """As if the process had ended before."""


async def test_a_dry_run_says_what_would_be_and_leaves_no_trace(receiver: Receiver) -> None:
    known = a_body()
    await receiver.fill(known)
    await receiver.redrive(all=True)
    before = await receiver.stored()
    new, again, twice, bad = await receiver.fill(a_body(), known, known, b"[]")

    dry_run = await receiver.post("/dry-run", {"code": "upstream_error"})

    outcomes = {UUID(message["id"]): message["outcome"] for message in dry_run["messages"]}
    assert outcomes == {new: "stored", again: "duplicate", twice: "duplicate", bad: "malformed"}
    assert [message["wouldSucceed"] for message in dry_run["messages"]] == [True, True, True, False]
    assert await receiver.stored() == before
    assert await receiver.sql.fetchval("SELECT count(*) FROM users") == 1
    assert await receiver.waiting() == [new, again, twice, bad]


async def test_a_dry_run_of_what_is_stored_already_says_so(receiver: Receiver) -> None:
    body = a_body()
    [message_id] = await receiver.fill(body)
    await receiver.redrive(all=True)
    async with opened(receiver.broker.admin_url) as channel:
        exchange = await channel.get_exchange(USER_REGISTRATION.dead_letter_exchange, ensure=False)
        await exchange.publish(aio_pika.Message(body, message_id=str(message_id)), "again")
    [other] = await receiver.fill(a_body())

    dry_run = await receiver.post("/dry-run", {"all": True})

    assert [message["id"] for message in dry_run["messages"]] == [str(message_id), str(other)]
    assert [message["outcome"] for message in dry_run["messages"]] == ["stored", "stored"]
    assert await receiver.stored() == {message_id}


async def test_a_message_is_corrected_and_keeps_its_id(receiver: Receiver) -> None:
    [message_id] = await receiver.fill(a_body(email="nobody"), code="malformed")

    problem = await receiver.post(
        f"/{message_id}/resend", {"body": {"name": "Ada", "surname": "L", "email": "no"}}, 422
    )
    assert problem["errors"][0]["pointer"] == "/body/email"
    assert await receiver.waiting() == [message_id]

    await receiver.post(f"/{message_id}/resend", {"body": json.loads(a_body())})
    await eventually(_held(receiver, 1), "the corrected one being stored")

    assert await receiver.stored() == {message_id}
    assert await receiver.waiting() == []


async def test_a_discarded_message_is_gone_and_its_reason_is_kept(receiver: Receiver) -> None:
    first, second = await receiver.fill(a_body(), b"nonsense", code="malformed")

    await receiver.post(
        f"/{second}/discard", {"reason": "A test of somebody's.", "discardedBy": "ada"}
    )

    assert await receiver.waiting() == [first]
    [discard] = (await receiver.get("/discards"))["discards"]
    del discard["discardedAt"]
    assert discard == {
        "messageId": str(second),
        "route": "user.registration",
        "errorCode": "malformed",
        "reason": "A test of somebody's.",
        "discardedBy": "ada",
    }
    await receiver.post(f"/{second}/discard", {"reason": "again"}, 404)


async def test_a_kind_is_discarded_and_each_message_has_the_reason(receiver: Receiver) -> None:
    bad = await receiver.fill(*(b"nonsense %d" % n for n in range(45)), code="malformed")
    good = await receiver.fill(a_body(), a_body())
    wish = {"code": "malformed", "reason": "A test of somebody's.", "discardedBy": "ada"}

    problem = await receiver.post("/discard", {**wish, "expected": 44}, 409)
    assert "45 by now" in problem["detail"]  # one came after they were shown
    assert await receiver.waiting() == [*bad, *good]
    assert await receiver.post("/discard", {**wish, "expected": 45}) == {"discarded": 45}

    assert await receiver.waiting() == good
    discards = (await receiver.get("/discards?limit=500"))["discards"]
    assert {UUID(discard["messageId"]) for discard in discards} == set(bad)
    assert {discard["reason"] for discard in discards} == {wish["reason"]}
    assert await receiver.post("/discard", wish) == {"discarded": 0}
    await receiver.post("/discard", {"reason": "which?"}, 422)


async def test_a_kind_says_what_it_means_and_what_helps(receiver: Receiver) -> None:
    [message_id] = await receiver.fill(b"[]", code="malformed")

    [group] = (await receiver.get(""))["groups"]
    message = await receiver.get(f"/{message_id}")

    said = {"meaning", "advice", "remedy"}
    assert {name: group[name] for name in said} == {name: message[name] for name in said}
    assert group["remedy"] == "correct"


async def test_without_its_reason_on_record_nothing_is_discarded(receiver: Receiver) -> None:
    [message_id] = await receiver.fill(b"nonsense")
    await receiver.sql.execute("ALTER TABLE dead_letter_discards RENAME TO elsewhere")

    async with receiver.client.post(
        f"/api/dead-letters/{message_id}/discard", json={"reason": "nonsense"}
    ) as response:
        assert response.status >= 500

    await receiver.post("/discard", {"code": "upstream_error", "reason": "nonsense"}, 500)

    assert await receiver.waiting() == [message_id]


async def test_looking_at_many_large_messages_takes_no_memory_for_them(receiver: Receiver) -> None:
    ids = await receiver.fill(*(b'{"name": "%s"}' % (b"x" * 60_000) for _ in range(300)))
    await receiver.get("?limit=5")  # what is made once is made

    tracemalloc.start()
    try:
        page = await receiver.get("?limit=5")
        one = await receiver.get(f"/{ids[150]}")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert [message["id"] for message in page["messages"]] == [str(i) for i in ids[:5]]
    assert (await receiver.get(f"/{ids[4]}"))["id"] == str(ids[4])  # among the first, as well
    assert (one["id"], page["groups"][0]["count"]) == (str(ids[150]), 300)
    assert peak < 6_000_000  # of 18 MB


async def test_values_are_redacted_until_asked_for(receiver: Receiver) -> None:
    [message_id] = await receiver.fill(a_body(email="canary@example.org"))

    redacted = [await receiver.get(""), await receiver.get(f"/{message_id}")]
    unmasked = await receiver.get(f"/{message_id}?unmask=true")

    assert "canary" not in json.dumps(redacted)
    assert "canary@example.org" in unmasked["body"]


async def test_messages_come_in_pages_and_by_kind(receiver: Receiver) -> None:
    ids = await receiver.fill(*(a_body() for _ in range(5)))
    [other] = await receiver.fill(b"[]", code="malformed")

    first = await receiver.get("?limit=4&code=upstream_error")
    second = await receiver.get(f"?limit=4&code=upstream_error&after={first['nextAfter']}")

    assert [message["id"] for message in first["messages"]] == [str(i) for i in ids[:4]]
    assert [message["id"] for message in second["messages"]] == [str(ids[4])]
    assert second["nextAfter"] is None
    assert {(g["code"], g["count"]) for g in first["groups"]} == {
        ("upstream_error", 5),
        ("malformed", 1),
    }
    assert other in await receiver.waiting()


async def test_many_who_look_at_once_lose_nothing(receiver: Receiver) -> None:
    ids = await receiver.fill(*(a_body() for _ in range(50)))

    await asyncio.gather(*(receiver.waiting() for _ in range(20)))

    assert await depth(receiver.broker.admin_url, DEAD) == 50
    assert await receiver.waiting() == ids


async def test_another_sites_page_can_do_nothing(receiver: Receiver) -> None:
    [message_id] = await receiver.fill(a_body())
    elsewhere = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}

    for path, body in (
        ("/api/dead-letters/redrive", {"all": True}),
        ("/api/dead-letters/dry-run", {"all": True}),
        (f"/api/dead-letters/{message_id}/discard", {"reason": "evil"}),
        (f"/api/dead-letters/{message_id}/resend", {"body": {}}),
    ):
        async with receiver.client.post(path, json=body, headers=elsewhere) as response:
            assert response.status == 403
    for path, form in (
        ("/dead-letters/redrive", {}),
        ("/dead-letters/dry-run", {}),
        (f"/dead-letters/{message_id}/discard", {"reason": "evil"}),
        (f"/dead-letters/{message_id}/resend", {"body": "{}"}),
    ):
        async with receiver.client.post(path, data=form, headers=elsewhere) as response:
            assert response.status in (403, 415)

    assert await receiver.waiting() == [message_id]
