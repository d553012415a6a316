"""A careless hand takes the work queue's binding: people see it, and nothing is lost."""

import json
import subprocess
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from yarl import URL

from common.contracts.topology import USER_REGISTRATION, definitions
from tests.amqp import eventually
from tests.e2e.stack import PROJECT, Stack, addresses, register

DRAIN_SECONDS = 90.0

NAME = USER_REGISTRATION.name


async def management(stack: Stack, method: str, path: str, body: object = None) -> None:
    """Call the broker's management API as its administrator."""
    login = aiohttp.encode_basic_auth(stack.rabbitmq["user"], stack.rabbitmq["password"])
    url = URL(f"{stack.rabbitmq['management']}{path}", encoded=True)
    async with (
        aiohttp.ClientSession(headers={"Authorization": login}) as session,
        session.request(method, url, json=body) as response,
    ):
        assert response.status < 400, await response.text()


@pytest.fixture
async def unbound(stack: Stack) -> AsyncIterator[Stack]:
    """The stack without the binding; with it again afterwards."""
    await stack.all_ready()
    await management(stack, "DELETE", f"/api/bindings/%2F/e/{NAME}/q/{NAME}/%23")
    yield stack
    await management(stack, "POST", "/api/definitions", definitions())
    await stack.all_ready()


def the_ledger(stack: Stack, *options: str) -> tuple[int, dict[str, Any]]:
    """Exit code of ``./userstream ledger`` and what it says."""
    done = subprocess.run(
        [str(PROJECT / "userstream"), "ledger", "--json", *options, *stack.options],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode in (0, 1), done.stderr
    ledger: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, ledger


async def test_all_that_was_accepted_is_in_the_ledger(stack: Stack) -> None:
    await stack.drained(DRAIN_SECONDS)
    _, before = the_ledger(stack)
    repeated = addresses(20)

    await register(stack, [*repeated, *addresses(30)])
    await stack.drained(DRAIN_SECONDS)
    await register(stack, repeated)
    await stack.drained(DRAIN_SECONDS)

    code, ledger = the_ledger(stack)
    totals, was = ledger["totals"], before["totals"]
    assert (code, ledger["lost"], ledger["workBinding"]) == (0, 0, "present")
    # A client that was refused while a part was away comes again under the same id.
    assert totals["accepted"] - was["accepted"] == 70
    assert totals["stored"] - was["stored"] == 50
    assert totals["duplicates"] - was["duplicates"] == 20


async def test_what_is_accepted_without_a_binding_is_noticed_and_brought_back(
    unbound: Stack,
) -> None:
    def is_noticed() -> bool:
        services = unbound.status()["services"]
        return not services["frontend"]["ready"] and not services["queue_receiver"]["ready"]

    await eventually(is_noticed, "frontend and receiver not being ready")
    accepted = await register(unbound, addresses(12))

    async def is_lost() -> dict[str, Any] | None:
        code, ledger = the_ledger(unbound)
        assert code == bool(ledger["lost"])
        return ledger if ledger["lost"] == len(accepted) else None

    ledger = await eventually(is_lost, "being shown as lost", 60)
    assert {lost["registrationId"] for lost in ledger["lostRegistrations"]} == set(accepted)
    assert ledger["workBinding"] == "missing"

    code, repaired = the_ledger(unbound, "--repair")

    assert (code, repaired["lost"], repaired["repair"]["republished"]) == (0, 0, len(accepted))
    await unbound.drained(DRAIN_SECONDS)
    await unbound.stored_once(accepted)
    mails = await unbound.mails_by_address()
    assert {address: len(mails[address]) for address in accepted.values()} == dict.fromkeys(
        accepted.values(), 1
    )
