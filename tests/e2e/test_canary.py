"""The canary goes everybody's way, every second here, and leaves no trace where people look."""

import csv
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import pytest

from common.contracts.canary import (
    FIRST_CANARY,
    LAST_CANARY,
    canary_address,
    is_canary,
    new_canary_id,
)
from tests.amqp import eventually
from tests.e2e.stack import Stack, addresses, register, running

TIMEOUT_SECONDS = 90.0
"""Longer than a sender's lease that was frozen with it, on a machine that is busy."""


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A stack of its own, because of the setting."""
    data = Path(f"/var/tmp/userstream-canary-{os.getpid()}")  # noqa: S108 - also for ``nobody``
    with running(data, CANARY_SECONDS="1") as stack:
        yield stack


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def note(client: aiohttp.ClientSession, stack: Stack) -> dict[str, Any]:
    async with client.get(f"{stack.services['frontend']}/health") as answer:
        canary: dict[str, Any] = (await answer.json())["notes"]["canary"]
        return canary


async def round_trips(client: aiohttp.ClientSession, stack: Stack) -> float:
    async with client.get(f"{stack.services['frontend']}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(COUNT))


COUNT = "userstream_canary_seconds_count "


async def some_round_trips(client: aiohttp.ClientSession, stack: Stack, *, number: int = 3) -> None:
    begin = await round_trips(client, stack)

    async def mailed() -> bool:
        return await round_trips(client, stack) >= begin + number

    await eventually(mailed, f"{number} round trips", TIMEOUT_SECONDS)


async def rows_of_canaries(stack: Stack) -> set[UUID]:
    rows = await stack.rows(
        """
        SELECT registration_id FROM registrations WHERE registration_id BETWEEN $1 AND $2
         UNION
        SELECT registration_id FROM notification_logs WHERE registration_id BETWEEN $1 AND $2
        """,
        FIRST_CANARY,
        LAST_CANARY,
    )
    return {row["registration_id"] for row in rows}


async def test_people_see_nothing_of_the_canaries_that_fly_among_them(
    client: aiohttp.ClientSession, stack: Stack
) -> None:
    people = addresses(20)

    await some_round_trips(client, stack)
    accepted = await register(stack, people)
    await stack.drained(TIMEOUT_SECONDS)
    await some_round_trips(client, stack)

    seen = await note(client, stack)
    assert not seen["warning"], seen
    assert seen["detail"].startswith("last full round trip ")
    assert seen["milliseconds"] > 0
    assert "last full round trip " in stack.launcher("status")
    await stack.stored_once(accepted)
    database = stack.services["database_service"]
    async with client.get(f"{database}/api/users?limit=100") as answer:
        users = {user["email"] for user in (await answer.json())["users"]}
    async with client.get(f"{database}/api/users/report") as answer:
        report = {row["Email"] for row in csv.DictReader((await answer.text()).splitlines())}
    async with client.get(f"{stack.services['queue_receiver']}/api/ledger") as answer:
        ledger = await answer.json()
    assert users == report == set(people)
    totals = ledger["totals"]
    assert (totals["accepted"], totals["stored"]) == (len(people), len(people))
    assert totals["mails"]["mailed"] == len(people)
    assert ledger["lost"] == 0
    assert set(await stack.mails_by_address()) == set(people)


async def test_what_was_mailed_is_removed(client: aiohttp.ClientSession, stack: Stack) -> None:
    before = await rows_of_canaries(stack)

    await some_round_trips(client, stack)

    left = await rows_of_canaries(stack)
    assert not before & left
    assert len(left) <= 1  # the one that flies just now


async def test_a_frozen_sender_is_noticed_and_takes_nothing_away(
    client: aiohttp.ClientSession, stack: Stack
) -> None:
    frontend = stack.services["frontend"]
    await some_round_trips(client, stack, number=1)
    seen: dict[str, Any] = {}

    async def warned() -> bool:
        seen.update(await note(client, stack))
        return bool(seen["warning"] and "not mailed" in seen["detail"])

    stack.freeze("sender")
    try:
        await eventually(warned, "the warning", TIMEOUT_SECONDS)
        async with client.get(f"{frontend}/health/ready") as answer:
            assert answer.status == 200
        accepted = await register(stack, addresses(1))
        assert len(await rows_of_canaries(stack)) == 1  # no flock behind the frozen one
    finally:
        stack.thaw("sender")

    async def recovered() -> bool:
        return not (await note(client, stack))["warning"]

    await eventually(recovered, "the end of the warning", TIMEOUT_SECONDS)
    await stack.drained(TIMEOUT_SECONDS)
    await stack.stored_once(accepted)


async def test_what_a_killed_frontend_left_behind_is_swept_when_it_is_stale(
    client: aiohttp.ClientSession, stack: Stack
) -> None:
    await stack.all_ready()
    stack.freeze("sender")
    try:

        async def in_progress() -> bool:
            return bool(await rows_of_canaries(stack))

        await eventually(in_progress, "a canary that is stored", TIMEOUT_SECONDS)
        orphans = await rows_of_canaries(stack)
        os.kill(stack.status()["services"]["frontend"]["pid"], signal.SIGKILL)
    finally:
        stack.thaw("sender")
    await stack.all_ready()
    await some_round_trips(client, stack)
    await stack.drained(TIMEOUT_SECONDS)
    assert orphans <= await rows_of_canaries(stack)  # nobody knows of them; not stale yet

    await stack.rows(
        """
        WITH mail AS (
                 UPDATE notification_logs SET created_at = created_at - interval '1 hour'
                  WHERE registration_id = ANY ($1)
             )
        UPDATE registrations SET stored_at = stored_at - interval '1 hour'
         WHERE registration_id = ANY ($1)
        """,
        list(orphans),
    )

    async def swept() -> bool:
        return not orphans & await rows_of_canaries(stack)

    await eventually(swept, "the sweep", TIMEOUT_SECONDS)


async def test_an_outsider_can_not_mark_a_registration(
    client: aiohttp.ClientSession, stack: Stack
) -> None:
    frontend, database = stack.services["frontend"], stack.services["database_service"]
    canary_id = new_canary_id()
    (address,) = addresses(1)
    people = [canary_address(canary_id), address]
    marks: list[dict[str, str]] = [
        {"Idempotency-Key": str(canary_id)},
        {"X-Canary": "1", "X-Request-Id": str(canary_id), "X-Correlation-Id": "canary-1"},
    ]

    ids = []
    for email, headers in zip(people, marks, strict=True):
        person = {"name": "Canary", "surname": "Canary", "email": email}
        async with client.post(
            f"{frontend}/api/registrations", json=person, headers=headers
        ) as answer:
            assert answer.status == 202
            ids.append(UUID((await answer.json())["registrationId"]))
        marked = {**person, "registrationId": str(canary_id)}
        async with client.post(f"{frontend}/api/registrations", json=marked) as answer:
            assert answer.status == 422
    await stack.drained(TIMEOUT_SECONDS)
    removals = []
    for registration_id in ids:
        async with client.delete(f"{database}/api/canaries/{registration_id}") as answer:
            removals.append(answer.status)

    assert not any(map(is_canary, ids))
    await stack.stored_once({str(item): email for item, email in zip(ids, people, strict=True)})
    assert set(people) <= set(await stack.mails_by_address())
    assert set(removals) <= {404, 422}
