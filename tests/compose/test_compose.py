"""The compose file on a container engine: ``./userstream test-compose``.

The system is built from a checkout that only its owner may read, and all its containers are told
of a proxy that leads nowhere, as a company's daemon tells them of its own.
"""

import asyncio
import csv
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import aio_pika
import aiohttp
import pytest

from common.contracts.topology import USER_REGISTRATION
from tests.amqp import eventually
from tests.compose.system import UP, ComposeSystem, private_checkout, reason_to_skip
from tests.e2e.stack import Stack, addresses, register

pytestmark = [
    pytest.mark.skipif(bool(why := reason_to_skip()), reason=why),
    pytest.mark.timeout(2400),
]

REGISTRATIONS = 100

SETTLED_SECONDS = 240.0
"""After a crash a sender's lease runs out, and restarts have pauses that double."""

FROM = "desk@example.org"

CONTAINERS = (
    *("frontend", "queue_receiver", "sender", "database_service", "report_generator"),
    *("rabbitmq", "postgres", "mailpit", "gateway"),
)

FLOOD = 40_000
"""Messages of 50 kB each: some 2 GB, for a broker that may use 1."""

FLOOD_UNCONFIRMED = 300


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeSystem]:
    """The whole of it, built and started; gone afterwards, with its data."""
    checkout = tmp_path_factory.mktemp("checkout") / "userstream"
    private_checkout(checkout)
    name = f"userstream-test-{uuid4().hex[:8]}"
    running = ComposeSystem(checkout=checkout, name=name, settings={"FROM_EMAIL": FROM})
    try:
        running.compose(*UP, "--build")
        yield running
    finally:
        (checkout.parent / "logs").write_text(running.compose("logs", "--no-color"))
        running.compose("down", "--volumes", "--rmi", "local", "--timeout", "60")


@pytest.fixture(scope="module")
def stack(system: ComposeSystem) -> Stack:
    return system.stack()


async def settled(system: ComposeSystem, accepted: dict[str, str]) -> None:
    """Wait until every accepted registration (id to address) is stored, and its mail is sent."""
    expected = {registration_id: (email, "sent") for registration_id, email in accepted.items()}

    async def all_there() -> bool:
        stored = await asyncio.to_thread(system.stored)
        return expected.items() <= stored.items()

    await eventually(all_there, "every registration being stored and mailed", SETTLED_SECONDS)


async def healthy(system: ComposeSystem, *containers: str) -> None:
    for container in containers:
        await eventually(
            lambda name=container: system.is_healthy(name),
            f"{container} being healthy",
            SETTLED_SECONDS,
        )


async def status_of(session: aiohttp.ClientSession, url: str) -> int:
    async with session.get(url) as answer:
        return answer.status


async def test_everything_that_the_documents_name_is_reached(stack: Stack) -> None:
    pages = {
        *(f"{url}/api-docs" for url in stack.services.values()),
        *(f"{url}/health/ready" for url in stack.services.values()),
        f"{stack.services['frontend']}/",
        f"{stack.services['queue_receiver']}/dead-letters",
        f"{stack.services['database_service']}/api/users",
        f"{stack.mailbox['web']}/api/v1/messages",
        f"{stack.rabbitmq['management']}/",
    }

    async with aiohttp.ClientSession() as session:
        found = {url: await status_of(session, url) for url in pages}

    assert found == dict.fromkeys(pages, 200)


async def test_everybody_is_stored_and_mailed_once_and_stands_in_the_report(
    system: ComposeSystem, stack: Stack
) -> None:
    people = addresses(REGISTRATIONS)

    accepted = await register(stack, people)

    await settled(system, accepted)
    assert sorted(accepted.values()) == sorted(people)
    mails = await stack.mails()
    counts = [mail["To"][0]["Address"] for mail in mails]
    assert {address: counts.count(address) for address in people} == dict.fromkeys(people, 1)
    assert {mail["From"]["Address"] for mail in mails} == {FROM}, "the setting has no effect"
    assert set(people) <= {row["Email"] for row in await report(stack)}


async def report(stack: Stack) -> list[dict[str, str]]:
    url = f"{stack.services['report_generator']}/api/reports"
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{url}/generate", json={}) as answer:
            assert answer.status == 202
            report_id = (await answer.json())["reportId"]
        address = f"{url}/{report_id}/download"

        async def written() -> bool:
            return await status_of(session, address) == 200

        await eventually(written, "the report being written", SETTLED_SECONDS)
        async with session.get(address) as answer:
            text = (await answer.read()).decode("utf-8-sig")
    return list(csv.DictReader(text.splitlines()))


async def test_nothing_is_lost_while_every_container_crashes(
    system: ComposeSystem, stack: Stack
) -> None:
    before = {name: system.restarts(name) for name in CONTAINERS}

    async def crash_all() -> None:
        for name in CONTAINERS:
            # The words of the README. `docker kill` would count as stopped by hand.
            crash = system.start("exec", "-T", name, "sh", "-c", "kill -9 -1")
            await asyncio.to_thread(crash.communicate)
            await asyncio.sleep(1)  # they are to fall into the work, not all at once

    crashing = asyncio.create_task(crash_all())
    accepted: dict[str, str] = {}
    while not crashing.done() or len(accepted) < REGISTRATIONS:
        accepted |= await register(stack, addresses(REGISTRATIONS))
    await crashing

    await healthy(system, *CONTAINERS)
    await settled(system, accepted)
    mails = await stack.mails_by_address()
    # A mail may come twice where its sender was killed in between; as the same mail.
    assert {address: len(set(mails.get(address, ()))) for address in accepted.values()} == (
        dict.fromkeys(accepted.values(), 1)
    )
    assert {name: system.restarts(name) > before[name] for name in CONTAINERS} == (
        dict.fromkeys(CONTAINERS, True)
    )


async def test_up_waits_for_a_service_that_is_away_at_first(system: ComposeSystem) -> None:
    system.shell("postgres", "kill -STOP -1")
    up = system.start(*UP, "--no-deps", "--force-recreate", "database_service")
    try:
        await eventually(
            lambda: system.failed_checks("database_service") > 3,
            "some failures of its check",
            SETTLED_SECONDS,
        )
        assert up.poll() is None
    finally:
        system.shell("postgres", "kill -CONT -1")
        _, said = await asyncio.to_thread(up.communicate)

    assert up.returncode == 0, said


async def test_every_service_can_have_more_instances_behind_the_same_address(
    system: ComposeSystem, stack: Stack
) -> None:
    counts = dict.fromkeys(stack.services, 2) | {"queue_receiver": 3}
    scale = [word for name, count in counts.items() for word in ("--scale", f"{name}={count}")]

    system.compose(*UP, "--no-recreate", *scale)

    for name, count in counts.items():
        assert len(system.compose("ps", "--quiet", name).split()) == count
    await consumed_by(stack, USER_REGISTRATION.queue, counts["queue_receiver"])
    people = addresses(REGISTRATIONS)
    crash = system.start("exec", "-T", "--index", "2", "frontend", "sh", "-c", "kill -9 -1")
    accepted = await register(stack, people)
    await asyncio.to_thread(crash.communicate)
    await settled(system, accepted)
    assert sorted(accepted.values()) == sorted(people)
    await test_everything_that_the_documents_name_is_reached(stack)


async def management(stack: Stack, method: str, path: str) -> Any:
    login = aiohttp.encode_basic_auth(stack.rabbitmq["user"], stack.rabbitmq["password"])
    url = f"{stack.rabbitmq['management']}/api{path}"
    async with (
        aiohttp.ClientSession(headers={"Authorization": login}) as session,
        session.request(method, url) as answer,
    ):
        assert answer.status < 300, await answer.text()
        return await answer.json() if answer.status == 200 else None


async def consumed_by(stack: Stack, queue: str, instances: int) -> None:
    """Wait until so many read it; the management API counts every few seconds."""

    async def all_of_them() -> bool:
        found = await management(stack, "GET", f"/queues/%2F/{queue}")
        return bool(found.get("consumers") == instances)

    await eventually(all_of_them, f"{instances} consumers of {queue}", SETTLED_SECONDS)


async def test_a_flood_is_held_and_the_broker_stays_up(system: ComposeSystem, stack: Stack) -> None:
    before = system.restarts("rabbitmq")
    system.compose("stop", "queue_receiver")
    body = b'{"name": "' + b"x" * 50_000 + b'"}'
    room = asyncio.Semaphore(FLOOD_UNCONFIRMED)
    address = f"127.0.0.1:{system.ports['RABBITMQ_PORT']}"
    connection = await aio_pika.connect(
        f"amqp://userstream:{stack.rabbitmq['password']}@{address}/%2F"
    )

    async with connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange(USER_REGISTRATION.name, ensure=False)

        async def publish() -> bool:
            async with room:
                confirmed = await exchange.publish(aio_pika.Message(body, delivery_mode=2), "any")
                return confirmed is not None

        outcomes = await asyncio.gather(*(publish() for _ in range(FLOOD)))

    assert outcomes.count(True) == FLOOD
    assert system.restarts("rabbitmq") == before
    assert not system.inspect("rabbitmq")["State"]["OOMKilled"]
    await management(stack, "DELETE", f"/queues/%2F/{USER_REGISTRATION.queue}/contents")
    system.compose("start", "queue_receiver")


async def test_a_broker_that_confirms_nothing_is_started_again(
    system: ComposeSystem, stack: Stack
) -> None:
    before = system.restarts("rabbitmq")

    # The process that writes what quorum queues have to keep stands still.
    system.shell("rabbitmq", "rabbitmqctl eval 'sys:suspend(ra_log_wal).'")

    await eventually(lambda: system.restarts("rabbitmq") > before, "a restart", 3 * SETTLED_SECONDS)
    people = addresses(REGISTRATIONS)
    accepted = await register(stack, people)
    await settled(system, accepted)
    assert sorted(accepted.values()) == sorted(people)


async def test_what_was_there_is_there_again_after_down(
    system: ComposeSystem, stack: Stack
) -> None:
    accepted = await register(stack, addresses(10))
    await settled(system, accepted)
    mails = await stack.mails_by_address()

    system.compose("down", "--timeout", "60")
    left = system.containers()
    system.compose(*UP)

    assert left == []
    assert accepted.keys() <= system.stored().keys()
    assert await stack.mails_by_address() == mails
    again = await register(stack, addresses(10))
    await settled(system, again)
