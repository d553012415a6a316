"""The faults about ids and the log, as ``chaos`` makes them, against a receiver alone."""

from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import asyncpg
import pytest

from queue_receiver.ledger import auditor as ledger_module
from tests.amqp import eventually
from tests.backends import TestBroker
from tests.integration.queue_receiver.receivers import a_receiver, the_ledger, until_stored
from tools.chaos import accounting
from tools.chaos.accounting import DeadLetter, Observations, Registration
from tools.chaos.driver import Driver
from tools.chaos.harness import Harness
from tools.chaos.inject import Happened, Injector
from tools.chaos.observations import _ledger, _read_dead_letters
from tools.chaos.schedule import Fault, Kind


def a_person(name: str) -> dict[str, str]:
    return {"name": name, "surname": "Lovelace", "email": f"{name.lower()}@example.org"}


async def test_a_deleted_log_and_a_reused_id_break_no_promise_and_are_told(
    fresh_broker: TestBroker, database_url: str, database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "EMPTY_FOR", 1)
    driver = Driver(
        seed=1, number=0, seconds=0, frontends=[], reports=[], amqp_url=fresh_broker.admin_url
    )
    harness = SimpleNamespace(broker=fresh_broker, logs_deleted=0)
    ids = [uuid4() for _ in range(3)]
    async with a_receiver(fresh_broker, database_url) as receiver:
        harness.urls = lambda _service: [str(receiver._base_url).rstrip("/")]
        for number, name in enumerate(("Ada", "Grace")):
            await driver._publish(ids[number], a_person(name), 5)
        await until_stored(database_dsn, ids[:2])
        await driver._reuse(ids[0], a_person("Else"))

        async def dead() -> list[DeadLetter]:
            return await _read_dead_letters(fresh_broker.admin_url)

        await eventually(dead, "the second one being a dead letter")
        await the_ledger(receiver)
        fault = Fault(at=0, kind=Kind.LOG_DELETED, lasts=1.5)
        happened = Happened(fault, 0.0)
        await Injector(cast(Harness, harness), [fault])._delete_log(fault, happened)
        await driver._publish(ids[2], a_person("Mary"), 5)
        await until_stored(database_dsn, ids)

        async def told() -> dict[str, Any] | None:
            said = dict(await _ledger(cast(Harness, harness)))
            return said if said["incidents"] and said["totals"]["accepted"] == 3 else None

        ledger = await eventually(told, "the ledger having read the new log")
        found = Observations(
            journal=driver.journal,
            registrations=await the_rows(database_dsn),
            users={f"{name}@example.org": 1 for name in ("ada", "grace", "mary")},
            mails=[],
            taken=[],
            put_off={},
            refused={},
            dead=await dead(),
            waiting={},
            ledger=ledger,
            logs_deleted=harness.logs_deleted,
        )

    assert (happened.skipped, harness.logs_deleted) == ("", 1)
    for check in ("lost", "stored_twice", "dlq_unexplained", "reused_untold", "ledger_untrue"):
        assert [*getattr(accounting, check)(found)] == [], check


async def the_rows(database_dsn: str) -> list[Registration]:
    connection = await asyncpg.connect(database_dsn)
    try:
        rows = await connection.fetch("SELECT registration_id FROM registrations")
    finally:
        await connection.close()
    return [Registration(id=UUID(int=row["registration_id"].int), email="") for row in rows]
