"""A message that can not be handled, from the queue to its end, by the command that people type."""

import json
import subprocess
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from common.topology import USER_REGISTRATION
from tests.amqp import eventually, publish
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
        letters = dead_letters(stack, "--code", "malformed")["letters"]
        return set(ids) <= {letter["id"] for letter in letters}

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
    assert "nobody" in dead_letters(stack, "show", first, "--reveal")["body"]
    [rehearsed] = dead_letters(stack, "rehearse", first)["letters"]
    assert (rehearsed["wouldPass"], rehearsed["outcome"]) == (False, "malformed")

    redrive = dead_letters(stack, "redrive", first, second, code=1)
    assert (redrive["state"], redrive["sent"], redrive["total"]) == ("failed_again", 1, 2)

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
    left = {letter["id"] for letter in dead_letters(stack)["letters"]}
    assert not left & {first, second}
    discards = dead_letters(stack, "discards")["discards"]
    assert [d["reason"] for d in discards if d["messageId"] == second] == ["nobody is there"]
