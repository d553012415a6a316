"""The receiver's ledger, with a real broker and a real database behind it."""

from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from aiohttp import ClientSession

from common.amqp.publisher import Publisher
from common.contracts.registrations import RegistrationSubmitted
from common.contracts.topology import EMAIL_NOTIFICATIONS, USER_REGISTRATION, definitions
from queue_receiver.ledger import auditor as ledger_module
from tests.amqp import a_registration, depth, eventually, publish
from tests.backends import TestBroker
from tests.integration.queue_receiver.receivers import (
    a_receiver,
    is_ready,
    the_ledger,
    until_stored,
)
from tools.launcher.broker import FLUSH_TABLES

NAME, LOG = USER_REGISTRATION.name, USER_REGISTRATION.log


async def repaired(receiver: ClientSession) -> dict[str, Any]:
    async with receiver.post("/api/ledger/repairs") as response:
        done: dict[str, Any] = await response.json()
        assert response.status == 200, done
        return done


async def accepted(broker: TestBroker, count: int) -> dict[UUID, RegistrationSubmitted]:
    """Registrations that the frontend has answered with 202."""
    registrations = {uuid4(): a_registration() for _ in range(count)}
    url = broker.url("frontend")
    async with Publisher(
        url, service="frontend", exchanges=[NAME], queues=[USER_REGISTRATION.queue, LOG]
    ) as publisher:
        await eventually(lambda: _connected(publisher), "connecting")
        for message_id, registration in registrations.items():
            await publisher.publish(registration, message_id=message_id, correlation_id="test")
    return registrations


async def _connected(publisher: Publisher) -> bool:
    try:
        await publisher.check()
    except Exception:  # noqa: BLE001 - asked again
        return False
    return True


def unbind(broker: TestBroker) -> None:
    """Take the work queue from the exchange, as a careless hand would."""
    broker.management("DELETE", f"/api/bindings/%2F/e/{NAME}/q/{NAME}/%23")


async def test_everything_that_is_stored_is_accounted_for(
    fresh_broker: TestBroker, database_url: str, database_dsn: str
) -> None:
    async with a_receiver(fresh_broker, database_url) as receiver:
        ids = list(await accepted(fresh_broker, 20))
        await until_stored(database_dsn, ids)

        async def settled() -> bool:
            return bool((await the_ledger(receiver))["inFlight"] == 0)

        await eventually(settled, "the queue's figures being up to date")
        ledger = await the_ledger(receiver)

    assert (ledger["totals"]["accepted"], ledger["totals"]["stored"]) == (20, 20)
    assert (ledger["lost"], ledger["deadLettered"], ledger["rejected"]) == (0, 0, 0)
    assert ledger["workBinding"] == "present"
    assert (ledger["readUpTo"], ledger["caughtUp"]) == (20, True)


async def test_what_never_reached_the_work_queue_is_lost_until_it_is_repaired(
    fresh_broker: TestBroker, database_url: str, database_dsn: str
) -> None:
    async with a_receiver(fresh_broker, database_url) as receiver:
        stored = list(await accepted(fresh_broker, 5))
        await until_stored(database_dsn, stored)
        unbind(fresh_broker)

        stranded = list(await accepted(fresh_broker, 7))  # the broker confirms them all

        async def noticed() -> dict[str, Any] | None:
            ledger = await the_ledger(receiver)
            return ledger if ledger["lost"] else None

        ledger = await eventually(noticed, "noticing")
        assert ledger["lost"] == 7
        named = [UUID(lost["registrationId"]) for lost in ledger["lostRegistrations"]]
        assert set(named) == set(stranded)
        assert ledger["workBinding"] == "missing"
        async with receiver.get("/metrics") as response:
            assert "userstream_ledger_lost 7.0" in await response.text()
        async with receiver.get("/health") as response:
            health = await response.json()
            assert health["notes"]["ledger"]["warning"]
            assert health["notes"]["ledger"]["lost"] == 7
        async with receiver.get("/health/ready") as response:
            assert response.status == 503  # for the binding, not for the ledger
            assert "binding" in (await response.json())["dependencies"]["topology"]["detail"]

        done = await repaired(receiver)
        assert (done["lost"], done["republished"], done["notInStream"]) == (7, 7, [])
        await until_stored(database_dsn, [*stored, *stranded])
        assert (await repaired(receiver))["republished"] == 0

        ledger = await the_ledger(receiver)
    assert (ledger["lost"], ledger["totals"]["stored"], ledger["totals"]["repeated"]) == (0, 12, 0)


async def test_without_a_management_api_the_ledger_itself_notices_a_missing_binding(
    fresh_broker: TestBroker, database_url: str, database_dsn: str
) -> None:
    async with a_receiver(fresh_broker, database_url, queue_management_url=None) as receiver:
        stored = list(await accepted(fresh_broker, 2))
        await until_stored(database_dsn, stored)
        ledger = await the_ledger(receiver)
        assert (ledger["workBinding"], ledger["inFlightByPlace"]["unacknowledged"]) == (
            "unknown",
            None,
        )
        await eventually(lambda: is_ready(receiver), "being ready")
        unbind(fresh_broker)
        stranded = list(await accepted(fresh_broker, 1))

        async def noticed() -> bool:
            return bool((await the_ledger(receiver))["workBinding"] == "missing")

        await eventually(noticed, "noticing")

        async with receiver.get("/health/ready") as response:
            report = await response.json()
        assert not report["dependencies"]["work_binding"]["ready"]
        await repaired(receiver)
        await until_stored(database_dsn, stranded)
        ledger = await the_ledger(receiver)
        assert (ledger["lost"], ledger["workBinding"]) == (0, "unknown")


async def test_a_dead_letter_is_counted_as_dead_lettered_and_not_lost(
    fresh_broker: TestBroker, database_url: str
) -> None:
    async with a_receiver(fresh_broker, database_url) as receiver:
        await publish(fresh_broker.admin_url, NAME, b"nonsense", message_id=str(uuid4()))

        async def dead() -> bool:
            messages = await depth(fresh_broker.admin_url, USER_REGISTRATION.dead_letter_queue)
            return messages == 1

        await eventually(dead, "dead-lettering")
        for _ in range(2):
            ledger = await the_ledger(receiver)

    assert (ledger["lost"], ledger["totals"]["missing"]) == (0, 1)
    assert ledger["deadLetteredByCode"] == {"malformed": 1}


async def test_two_receivers_asked_at_the_same_time_count_nothing_twice(
    fresh_broker: TestBroker, database_url: str, database_dsn: str
) -> None:
    async with (
        a_receiver(fresh_broker, database_url, ledger_interval_seconds=0.01) as one,
        a_receiver(fresh_broker, database_url, ledger_interval_seconds=0.01) as other,
    ):
        ids = list(await accepted(fresh_broker, 200))
        await until_stored(database_dsn, ids)

        async def whole() -> bool:
            ledgers = [await the_ledger(each) for each in (one, other)]
            return [ledger["totals"]["accepted"] for ledger in ledgers] == [200, 200]

        await eventually(whole, "reading all")


def make_anew(broker: TestBroker) -> None:
    """Delete the stream and import the definitions, as somebody who tidies up does."""
    broker.management("DELETE", f"/api/queues/%2F/{LOG}")
    broker.management("POST", "/api/definitions", definitions())


async def test_a_stream_that_was_made_anew_is_an_incident_until_it_is_acknowledged(
    fresh_broker: TestBroker, database_url: str, database_dsn: str
) -> None:
    async with a_receiver(fresh_broker, database_url) as receiver:
        ids = list(await accepted(fresh_broker, 9))
        await until_stored(database_dsn, ids)
        assert (await the_ledger(receiver))["totals"]["accepted"] == 9
        make_anew(fresh_broker)
        await until_stored(database_dsn, list(await accepted(fresh_broker, 4)))

        async def read() -> dict[str, Any] | None:
            async with receiver.get("/api/ledger") as response:
                ledger: dict[str, Any] = await response.json()
            return ledger if ledger.get("totals", {}).get("accepted") == 13 else None

        ledger = await eventually(read, "reading the new stream")
        assert (ledger["readUpTo"], ledger["totals"]["restarts"]) == (4, 1)
        assert (ledger["lost"], ledger["totals"]["repeated"]) == (0, 0)
        (incident,) = ledger["incidents"]
        assert (incident["kind"], incident["acceptedBefore"]) == ("replaced", 9)
        assert await _ledger_says(receiver, "created anew")
        async with receiver.get("/health/ready") as response:
            assert response.status == 200  # red, and at work

        note = {"reason": "A new disk.", "acknowledgedBy": "ada"}
        async with receiver.post("/api/ledger/acknowledgements", json=note) as response:
            assert response.status == 200, await response.text()

        assert await _ledger_says(receiver, "Nothing was lost")
        assert (await the_ledger(receiver))["incidents"] == []


async def test_a_stream_and_queue_emptied_before_they_were_read_is_not_nothing_lost(
    fresh_broker: TestBroker, database_url: str, database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was accepted meanwhile is gone for good; of that alone there is no trace anywhere."""
    monkeypatch.setattr(ledger_module, "EMPTY_FOR", 1)
    async with a_receiver(fresh_broker, database_url) as receiver:
        await until_stored(database_dsn, list(await accepted(fresh_broker, 2)))
        await the_ledger(receiver)
    await accepted(fresh_broker, 30)
    make_anew(fresh_broker)
    fresh_broker.management("DELETE", f"/api/queues/%2F/{NAME}/contents")

    async with a_receiver(fresh_broker, database_url) as receiver:
        assert not (await the_ledger(receiver))["caughtUp"]

        async def noticed() -> list[dict[str, Any]]:
            incidents: list[dict[str, Any]] = (await the_ledger(receiver))["incidents"]
            return incidents

        (incident,) = await eventually(noticed, "noticing")

    assert (incident["kind"], incident["acceptedBefore"]) == ("replaced", 2)


@pytest.mark.parametrize("lost_after", [0, 600])
async def test_a_restored_database_gets_everybody_back_and_mails_nobody_twice(
    fresh_broker: TestBroker,
    database_url: str,
    database_dsn: str,
    tmp_path: Path,
    lost_after: int,
) -> None:
    """Restored while no receiver ran: back at once; one lost for another reason is mailed."""
    others = 0 if lost_after else 2  # they are too young
    notes: dict[str, Any] = {"crash_marker_dir": tmp_path}
    async with a_receiver(fresh_broker, database_url, **notes) as receiver:
        kept = list(await accepted(fresh_broker, 3))
        await until_stored(database_dsn, kept)
        await the_ledger(receiver)
        backup = await dumped(database_dsn)
        forgotten = list(await accepted(fresh_broker, 5))
        await until_stored(database_dsn, forgotten)
        await the_ledger(receiver)
        await eventually(lambda: _depth_is(fresh_broker, 8), "8 mails being asked for")
    await restored(database_dsn, backup)

    notes["ledger_lost_after_seconds"] = lost_after
    async with a_receiver(fresh_broker, database_url, **notes) as receiver:
        unbind(fresh_broker)
        stranded = list(await accepted(fresh_broker, 2))[:others]

        async def noticed() -> dict[str, Any] | None:
            ledger = await the_ledger(receiver)
            return ledger if ledger["lost"] == 5 + others else None

        ledger = await eventually(noticed, "noticing")
        assert [one["kind"] for one in ledger["incidents"]] == ["restored"]
        done = await repaired(receiver)
        await until_stored(database_dsn, [*kept, *forgotten, *stranded])

        async def all_settled() -> bool:
            mails = (await the_ledger(receiver))["totals"]["mails"]
            return bool(mails["suppressed"] == 5)

        await eventually(all_settled, "the mails that were sent before being on record")

    assert (done["republished"], done["withoutMail"]) == (5 + others, 5)
    assert await depth(fresh_broker.admin_url, EMAIL_NOTIFICATIONS.queue) == 8 + others


TABLES = ("users", "registrations", "ledger_positions", "ledger_entries")


async def dumped(database_dsn: str) -> dict[str, list[asyncpg.Record]]:
    """What a backup keeps."""
    connection = await asyncpg.connect(database_dsn)
    try:
        return {table: await connection.fetch(f"TABLE {table}") for table in TABLES}
    finally:
        await connection.close()


async def restored(database_dsn: str, backup: dict[str, list[asyncpg.Record]]) -> None:
    """Put back what a backup kept."""
    connection = await asyncpg.connect(database_dsn)
    try:
        async with connection.transaction():
            await connection.execute(f"TRUNCATE {', '.join(TABLES)}, notification_logs CASCADE")
            for table, rows in backup.items():
                await connection.copy_records_to_table(table, records=[*map(tuple, rows)])
    finally:
        await connection.close()


async def _depth_is(broker: TestBroker, number: int) -> bool:
    return await depth(broker.admin_url, EMAIL_NOTIFICATIONS.queue) == number


async def test_the_ledger_is_kept_current_after_the_broker_was_killed(
    fresh_broker: TestBroker, database_url: str, database_dsn: str
) -> None:
    async with a_receiver(fresh_broker, database_url, ledger_interval_seconds=0.05) as receiver:
        ids = list(await accepted(fresh_broker, 3))
        await until_stored(database_dsn, ids)

        settle(fresh_broker)
        fresh_broker.kill()
        await eventually(lambda: _ledger_says(receiver, "cannot be read"), "noticing")
        fresh_broker.start()
        ids += list(await accepted(fresh_broker, 3))

        await until_stored(database_dsn, ids)

        # The stream is up some seconds after the broker. Nobody asks; it reads by itself.
        await eventually(lambda: _has_read(receiver, 6), "reading on in the background")
        await eventually(lambda: _ledger_says(receiver, "Nothing was lost, 0 s ago"), "a new note")
        ledger = await the_ledger(receiver)
    totals = ledger["totals"]
    assert (totals["accepted"], totals["truncated"], totals["restarts"]) == (6, 0, 0)


def settle(broker: TestBroker) -> None:
    """Let a stream that was made anew survive a kill, as the launcher does at the first start."""
    if broker.native is not None:
        broker.native.ctl("eval", FLUSH_TABLES)


async def _has_read(receiver: ClientSession, number: int) -> bool:
    async with receiver.get("/metrics") as response:
        text = await response.text()
    return f'userstream_ledger_registrations{{state="accepted"}} {number}.0' in text


async def _ledger_says(receiver: ClientSession, words: str) -> bool:
    async with receiver.get("/health") as response:
        notes = (await response.json())["notes"]
    return words in notes["ledger"]["detail"]
