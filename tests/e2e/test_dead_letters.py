"""A message that cannot be handled, from the queue to its end, by the command that people type."""

import json
import subprocess
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aio_pika
import aiohttp
import pytest

from common.contracts.topology import USER_REGISTRATION
from tests.amqp import eventually, opened, publish
from tests.e2e.stack import PROJECT, Stack, addresses


def dead_letters(stack: Stack, *arguments: str, code: int = 0) -> Any:
    """What ``./userstream dead-letters … --json`` says."""
    command = [str(PROJECT / "userstream"), "dead-letters", *arguments, "--json", *stack.options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if done.stdout else done.stderr


@pytest.fixture
async def given_up(stack: Stack) -> list[str]:
    """Two messages that no receiver can read, as dead letters."""
    ids = [str(uuid4()) for _ in range(2)]
    for message_id in ids:
        await publish(
            stack.rabbitmq["amqp"],
            USER_REGISTRATION.name,
            b'{"name": "Ada", "surname": "Lovelace", "email": "nobody"}',
            message_id=message_id,
        )

    def are_there() -> bool:
        messages = dead_letters(stack, "--code", "malformed")["messages"]
        return set(ids) <= {message["id"] for message in messages}

    await eventually(are_there, "two dead letters")
    return ids


async def test_a_person_decides_what_becomes_of_a_dead_letter(
    stack: Stack, given_up: list[str], tmp_path: Path
) -> None:
    first, second = given_up
    [address] = addresses(1)
    corrected = tmp_path / "corrected.json"

    shown = dead_letters(stack, "show", first)
    assert (shown["failedService"], shown["attempts"]) == ("queue_receiver", 1)
    assert "nobody" not in json.dumps(shown)
    assert "nobody" in dead_letters(stack, "show", first, "--unmask")["body"]
    [tried] = dead_letters(stack, "dry-run", first)["messages"]
    assert (tried["wouldSucceed"], tried["outcome"]) == (False, "malformed")

    redrive = dead_letters(stack, "redrive", first, second, code=1)
    assert (redrive["state"], redrive["sent"], redrive["total"]) == ("failed", 1, 2)

    corrected.write_text('{"name": "Ada", "surname": "Lovelace", "email": "still nobody"}')
    assert "/body/email" in dead_letters(stack, "resend", first, "--body", str(corrected), code=1)
    body = {"name": "Ada", "surname": "Lovelace", "email": address}
    corrected.write_text(json.dumps(body))
    dead_letters(stack, "resend", first, "--body", str(corrected))
    dead_letters(stack, "discard", second, "--reason", "nobody is there")

    async def is_mailed() -> bool:
        return address in await stack.mails_by_address()

    await eventually(is_mailed, "the mail of the corrected registration", 60)
    await stack.stored_once({first: address})
    left = {message["id"] for message in dead_letters(stack)["messages"]}
    assert not left & {first, second}
    discards = dead_letters(stack, "discards")["discards"]
    assert [d["reason"] for d in discards if d["messageId"] == second] == ["nobody is there"]


KILLS = 3
MESSAGES = 80


async def test_a_receiver_killed_in_the_middle_of_a_redrive_duplicates_nothing(
    stack: Stack,
) -> None:
    code = f"repaired_{uuid4().hex[:8]}"
    messages = {str(uuid4()): address for address in addresses(MESSAGES)}
    await _fill(stack, messages, code)

    for kill in range(KILLS):
        await _begin(stack, code)
        await eventually(
            partial(_stored, stack, messages, 20 * (kill + 1)), "messages being stored"
        )
        stack.kill("queue_receiver")
        await stack.all_ready()
    assert dead_letters(stack, "redrive", "--code", code)["state"] == "done"

    await stack.drained(60)
    await stack.stored_once(messages)
    mails = await stack.mails_by_address()
    assert {address: len(mails[address]) for address in messages.values()} == dict.fromkeys(
        messages.values(), 1
    )
    assert dead_letters(stack, "--code", code)["messages"] == []


async def _fill(stack: Stack, messages: dict[str, str], code: str) -> None:
    """Put good registrations among the dead letters, as after a fault that was repaired."""
    headers: Any = {"x-error-code": code, "x-failed-attempts": 4, "x-attempt": 4}
    async with opened(stack.rabbitmq["amqp"]) as channel:
        exchange = await channel.get_exchange(USER_REGISTRATION.dead_letter_exchange, ensure=False)
        for message_id, address in messages.items():
            person = {"name": "Ada", "surname": "Lovelace", "email": address}
            message = aio_pika.Message(
                json.dumps(person).encode(),
                delivery_mode=2,
                message_id=message_id,
                headers=headers,
            )
            await exchange.publish(message, "user.registration.submitted.v1")


async def _begin(stack: Stack, code: str) -> None:
    url = f"{stack.services['queue_receiver']}/api/dead-letters/redrive"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json={"code": code, "rate": 30}) as response,
    ):
        assert response.status == 202, await response.text()


async def _stored(stack: Stack, messages: dict[str, str], count: int) -> bool:
    """Whether so many are stored: then a step is under way."""
    [row] = await stack.rows(
        "SELECT count(*) FROM registrations WHERE registration_id = ANY($1::uuid[])",
        [UUID(message_id) for message_id in messages],
    )
    return bool(row["count"] >= count)
