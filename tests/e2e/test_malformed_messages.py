"""Thousands of messages that are none, between good ones, at the real consumers of all routes."""

import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import aio_pika
import pytest

from common.contracts.notifications import EmailRequested
from common.contracts.registrations import RegistrationSubmitted
from common.contracts.reports import ReportRequested
from common.contracts.topology import ROUTES
from tests.amqp import eventually, publishing_raw
from tests.e2e.stack import Stack
from tests.malformed import (
    ACCEPTED,
    CONTRACTS,
    KINDS,
    PLACE,
    TIME_PLACE,
    Message,
    a_message,
    a_strange_message,
    properties_of,
)
from tests.scale import SEED, scaled

pytestmark = pytest.mark.timeout(scaled(300))

STRANGE = scaled(1020)
"""Each kind at each route ten times."""

GOOD = scaled(120)
"""Strewn among them, at all routes."""

GROWTH_BYTES = 20 * 2**20
"""What a consumer's memory may grow by: a leak per message would be more."""

DRAIN_SECONDS = 60.0 + scaled(60)

CONSUMERS = ("queue_receiver", "sender", "report_generator")

STORED = {
    RegistrationSubmitted: "SELECT registration_id AS id FROM registrations",
    EmailRequested: "SELECT message_id AS id FROM notification_logs WHERE status = 'sent'",
    ReportRequested: "SELECT report_id AS id FROM report_logs WHERE status = 'ready'",
}
"""Where the work of a route shows when it is done."""


@pytest.fixture
async def dead_letters(stack: Stack) -> AsyncIterator[dict[str, str]]:
    """Routing key to reason of every dead letter, as they come; they are taken out."""
    reasons: dict[str, str] = {}
    connection = await aio_pika.connect(stack.rabbitmq["amqp"])
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=100)

        async def take(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            key = str(message.headers["x-original-routing-key"])
            reasons[key] = str(message.headers["x-error-code"])
            await message.ack()

        for route in ROUTES:
            queue = await channel.get_queue(route.dead_letter_queue, ensure=False)
            await queue.consume(take)
        yield reasons


async def test_each_is_dead_lettered_with_its_reason_or_done_and_no_other_is_affected(
    stack: Stack, dead_letters: dict[str, str]
) -> None:
    run = uuid4().hex[:8]
    chance = random.Random(SEED)  # noqa: S311 - to be repeated
    messages = shuffled(chance, run, STRANGE, GOOD)
    # What grows once, such as caches and pools, has grown before it is measured.
    await publish(stack, shuffled(chance, f"w{run}", len(KINDS) * len(CONTRACTS), 30))
    await stack.drained(DRAIN_SECONDS)
    before = consumers(stack)
    dead_letters.clear()

    await publish(stack, messages)
    await eventually(
        lambda: len(dead_letters) >= sum(m.reason != ACCEPTED for m in messages),
        f"dead-lettering (USERSTREAM_TEST_SEED={SEED})",
        DRAIN_SECONDS,
    )
    await stack.drained(DRAIN_SECONDS)

    expected = {m.key: m.reason for m in messages if m.reason != ACCEPTED}
    kinds = {message.key: message.kind for message in messages}
    wrong = {
        (kinds.get(key, key), expected.get(key, "accepted"), dead_letters.get(key, "none"))
        for key in expected.keys() | dead_letters.keys()
        if expected.get(key) != dead_letters.get(key)
    }
    assert not wrong, f"USERSTREAM_TEST_SEED={SEED}: kind, expected and found reason: {wrong}"
    assert await undone(stack, messages) == Counter(), f"USERSTREAM_TEST_SEED={SEED}"
    after = consumers(stack)
    for name in CONSUMERS:
        assert after[name].pid == before[name].pid, f"{name} was restarted"
        growth = after[name].memory - before[name].memory
        assert growth < GROWTH_BYTES, f"{name} has grown by {growth / 2**20:.1f} MiB"
    growths = {
        name: f"{(after[name].memory - before[name].memory) >> 10} KiB" for name in CONSUMERS
    }
    print(f"{len(messages)} messages, {len(expected)} dead letters; grown by {growths}")  # noqa: T201


def shuffled(chance: random.Random, run: str, strange: int, good: int) -> list[Message]:
    messages = [a_strange_message(chance, number, run) for number in range(strange)]
    messages += [
        a_message(chance, f"g-{number}-{run}", CONTRACTS[number % len(CONTRACTS)])
        for number in range(good)
    ]
    chance.shuffle(messages)
    return messages


async def publish(stack: Stack, messages: list[Message]) -> None:
    async with publishing_raw(stack.rabbitmq["amqp"]) as publisher:
        for message in messages:
            place = TIME_PLACE if "timestamp" in message.properties else PLACE
            altered = {place: message.bytes_in_place} if message.bytes_in_place else None
            await publisher.publish(
                message.contract.route.name,
                message.key,
                properties_of(message),
                message.body,
                altered,
            )


async def undone(stack: Stack, messages: list[Message]) -> Counter[str]:
    """Kinds of the messages that were good work and have not been done."""
    left: Counter[str] = Counter()
    for contract, query in STORED.items():
        done = {row["id"] for row in await stack.rows(query)}
        left += Counter(
            message.kind
            for message in messages
            if message.contract is contract and message.reason == ACCEPTED
            if message.id not in done
        )
    return left


class Process:
    """A process as it stands now."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        (line,) = (
            line
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if line.startswith("VmRSS")
        )
        self.memory = int(line.split()[1]) * 1024


def consumers(stack: Stack) -> dict[str, Process]:
    services = stack.status()["services"]
    return {name: Process(services[name]["pid"]) for name in CONSUMERS}
