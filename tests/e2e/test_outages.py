"""Parts that hang or die: people are answered, nothing is lost, nothing is dead-lettered."""

import asyncio
import os
import signal

import pytest

from tests.e2e.stack import Stack, addresses, register

OUTAGE_SECONDS = 12.0
"""Longer than every deadline inside, so that each of them strikes."""

DRAIN_SECONDS = 90.0


@pytest.mark.parametrize("part", ["database_service", "postgres", "mailbox", "rabbitmq"])
async def test_a_part_that_hangs_only_delays(stack: Stack, part: str) -> None:
    accepted = await register(stack, addresses(30))

    stack.freeze(part)
    try:
        registering = asyncio.create_task(register(stack, addresses(60)))
        await asyncio.sleep(OUTAGE_SECONDS)
    finally:
        stack.thaw(part)
    accepted |= await registering
    accepted |= await register(stack, addresses(30))

    await stack.all_ready()
    await stack.drained(DRAIN_SECONDS)
    await stack.stored_once(accepted)
    assert set(accepted.values()) <= set(await stack.mails_by_address())


@pytest.mark.parametrize("part", ["postgres", "mailbox", "rabbitmq"])
async def test_a_part_that_is_killed_only_delays(stack: Stack, part: str) -> None:
    registering = asyncio.create_task(register(stack, addresses(300)))
    await asyncio.sleep(0.3)
    os.kill(stack.status()["parts"][part]["pid"], signal.SIGKILL)
    accepted = await registering

    await stack.all_ready()
    accepted |= await register(stack, addresses(30))
    await stack.drained(DRAIN_SECONDS)
    await stack.stored_once(accepted)
    assert set(accepted.values()) <= set(await stack.mails_by_address())
