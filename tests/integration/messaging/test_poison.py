"""Messages that kill their process: they take no others with them."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aio_pika

from common.contracts.topology import USER_REGISTRATION
from common.messaging.quarantine import CRASH_LIMIT, QUARANTINE_AFTER
from tests.amqp import a_registration, depth, eventually, opened, take
from tests.backends import TestBroker
from tests.mortal_consumer import LEASED_POISON, POISON, crashes_of

ROOT = Path(__file__).parents[3]

QUEUE = USER_REGISTRATION.queue
DEAD = USER_REGISTRATION.dead_letter_queue

PREFETCH = 20
PATIENCE_SECONDS = 240.0
"""Less than pytest's own deadline; only a failing test waits it out."""


@dataclass(slots=True)
class Instances:
    """Two mortal consumers, each started again as soon as it is dead."""

    markers: Path
    journal: Path

    @property
    def crashes(self) -> int:
        crashes = crashes_of(self.journal)
        return crashes.stat().st_size if crashes.exists() else 0

    @property
    def handled(self) -> set[UUID]:
        lines = self.journal.read_text().split() if self.journal.exists() else []
        return {UUID(line) for line in lines}

    @property
    def markers_left(self) -> list[Path]:
        return [path for path in self.markers.rglob("*") if path.is_file()]

    async def keep_one_running(self, url: str) -> None:
        arguments = [url, str(PREFETCH), str(self.markers), str(self.journal)]
        command = [sys.executable, "-m", "tests.mortal_consumer", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=ROOT,
            env=environment,
            stdout=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            await process.wait()
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


@asynccontextmanager
async def two_instances(broker: TestBroker, folder: Path) -> AsyncIterator[Instances]:
    instances = Instances(folder / "markers", folder / "journal")
    url = broker.url("queue_receiver")
    running = [asyncio.create_task(instances.keep_one_running(url)) for _ in range(2)]
    try:
        yield instances
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def submit_all(broker: TestBroker, names: list[str]) -> list[UUID]:
    """Publish one registration for each name, in order."""
    ids = [uuid4() for _ in names]
    async with opened(broker.admin_url) as channel:
        exchange = await channel.get_exchange(USER_REGISTRATION.name, ensure=False)
        for message_id, name in zip(ids, names, strict=True):
            body = a_registration(name=name).model_dump_json(by_alias=True).encode()
            message = aio_pika.Message(body, delivery_mode=2, message_id=str(message_id))
            await exchange.publish(message, "anything")
    return ids


async def taken(broker: TestBroker, count: int) -> dict[UUID, dict[str, Any]]:
    """So many dead letters, by id: their headers."""
    dead = [await take(broker.admin_url, DEAD) for _ in range(count)]
    return {UUID(message.message_id): dict(message.headers) for message in dead}


async def test_poison_is_dead_lettered_alone(empty_broker: TestBroker, tmp_path: Path) -> None:
    names = ["Ada"] * 500 + [POISON] + ["Ada"] * 500
    ids = await submit_all(empty_broker, names)
    poison, good = ids[500], {*ids[:500], *ids[501:]}

    async with two_instances(empty_broker, tmp_path) as instances:
        await eventually(lambda: instances.handled >= good, "handling all good", PATIENCE_SECONDS)
        dead = await taken(empty_broker, 1)

    assert list(dead) == [poison]
    assert dead[poison]["x-error-code"] == "process_killed"
    assert dead[poison]["x-failed-service"] == "queue_receiver"
    assert await depth(empty_broker.admin_url, DEAD) == 0
    assert await depth(empty_broker.admin_url, QUEUE) == 0
    assert poison not in instances.handled
    assert instances.markers_left == []


async def test_poison_that_leaves_a_lease_behind_at_each_crash_is_dead_lettered_alone(
    empty_broker: TestBroker, tmp_path: Path
) -> None:
    names = ["Ada"] * 100 + [LEASED_POISON] + ["Ada"] * 100
    ids = await submit_all(empty_broker, names)
    poison, good = ids[100], {*ids[:100], *ids[101:]}

    async with two_instances(empty_broker, tmp_path) as instances:
        await eventually(lambda: instances.handled >= good, "handling all good", PATIENCE_SECONDS)
        dead = await taken(empty_broker, 1)

    assert list(dead) == [poison]
    assert dead[poison]["x-error-code"] == "process_killed"
    assert (
        instances.crashes <= QUARANTINE_AFTER + CRASH_LIMIT + 1
    )  # with one that was not alone by chance
    assert await depth(empty_broker.admin_url, DEAD) == 0
    assert poison not in instances.handled
    assert instances.markers_left == []


async def test_many_poisons_beside_each_other_take_no_other_message_with_them(
    empty_broker: TestBroker, tmp_path: Path
) -> None:
    names = (["Ada"] * 30 + [POISON] + ["Ada"] * 9) * 5
    ids = await submit_all(empty_broker, names)
    poisons = {key for key, name in zip(ids, names, strict=True) if name == POISON}

    async with two_instances(empty_broker, tmp_path) as instances:
        dead = await taken(empty_broker, len(poisons))
        good = set(ids) - poisons
        await eventually(lambda: instances.handled >= good, "handling all good", PATIENCE_SECONDS)

    assert set(dead) == poisons
    assert {headers["x-error-code"] for headers in dead.values()} == {"process_killed"}
    assert await depth(empty_broker.admin_url, DEAD) == 0
