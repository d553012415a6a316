"""The promise, from the form's endpoint to the inbox and the report, on the real system."""

import asyncio
import csv
from collections import Counter

import aiohttp

from tests.amqp import eventually
from tests.e2e.stack import Stack, addresses, register

REGISTRATIONS = 1000

DRAIN_SECONDS = 60.0
"""All queues are empty by then; a sender's lease that died with it takes 30 s to run out."""

SERVICES = ("queue_receiver", "sender", "database_service", "frontend", "report_generator")


async def test_everybody_is_stored_and_mailed_once_and_stands_in_the_report(stack: Stack) -> None:
    people = addresses(REGISTRATIONS)

    accepted = await register(stack, people)

    await stack.drained(DRAIN_SECONDS)
    assert sorted(accepted.values()) == sorted(people)
    await stack.stored_once(accepted)
    mails = await stack.mails_by_address()
    assert {address: len(mails.get(address, ())) for address in people} == dict.fromkeys(people, 1)
    assert set(people) <= {row["Email"] for row in await _report(stack)}


async def test_nothing_is_lost_while_every_service_is_killed(stack: Stack) -> None:
    people = addresses(REGISTRATIONS)
    restarts = {}

    async def kill_all() -> None:
        for service in SERVICES:
            restarts[service] = await asyncio.to_thread(stack.kill, service)
            await asyncio.sleep(0.3)  # the scale are to fall into the work, not all at once

    killing = asyncio.create_task(kill_all())
    accepted: dict[str, str] = {}
    while not killing.done() or len(accepted) < REGISTRATIONS:
        part, people = people[:100], people[100:] or addresses(100)
        accepted |= await register(stack, part)
    await killing

    await stack.all_ready()
    await stack.drained(DRAIN_SECONDS)
    await stack.stored_once(accepted)
    mails = await stack.mails_by_address()
    unmailed = [address for address in accepted.values() if address not in mails]
    assert unmailed == []
    await _duplicates_are_explained(stack, mails)
    state = stack.status()["services"]
    assert {service: state[service]["restarts"] > restarts[service] for service in SERVICES} == (
        dict.fromkeys(SERVICES, True)
    )


async def test_the_same_registration_twice_is_one_user_and_one_mail(stack: Stack) -> None:
    (address,) = addresses(1)
    body = {"name": "Ada", "surname": "Lovelace", "email": address}
    url = f"{stack.services['frontend']}/api/registrations"

    async with aiohttp.ClientSession() as session:
        ids = set()
        for _ in range(3):
            async with session.post(url, json=body, headers={"Idempotency-Key": address}) as answer:
                assert answer.status == 202
                ids.add((await answer.json())["registrationId"])
    await stack.drained(DRAIN_SECONDS)

    assert len(ids) == 1
    await stack.stored_once(dict.fromkeys(ids, address))
    assert len((await stack.mails_by_address())[address]) == 1


async def test_a_known_address_is_told_once_and_the_answer_does_not_differ(stack: Stack) -> None:
    (address,) = addresses(1)
    url = stack.services["frontend"]

    answers = []
    async with aiohttp.ClientSession() as session:
        for _ in range(3):
            body = {"name": "Ada", "surname": "Lovelace", "email": address.upper()}
            async with session.post(f"{url}/api/registrations", json=body) as answer:
                answers.append((answer.status, sorted((await answer.json()).keys())))
                registration_id = (await answer.json())["registrationId"]
            await stack.drained(DRAIN_SECONDS)
        async with session.get(f"{url}/api/registrations/{registration_id}") as answer:
            journey = await answer.json()

    assert answers == [answers[0]] * 3
    assert journey["status"] == "mailed"
    subjects = Counter(
        mail["Subject"]
        for mail in await stack.mails()
        if mail["To"][0]["Address"].lower() == address
    )
    assert sorted(subjects.values()) == [1, 1]  # one welcome, one "you are registered already"


async def _duplicates_are_explained(stack: Stack, mails: dict[str, list[str]]) -> None:
    """A mail came twice only where the 250 was not recorded when its sender was killed."""
    twice = {address: ids for address, ids in mails.items() if len(ids) > 1}
    assert all(len(set(ids)) == 1 for ids in twice.values()), twice
    rows = await stack.rows(
        "SELECT message_id::text AS id FROM notification_logs WHERE attempts > 1"
    )
    tried_again = {row["id"] for row in rows}
    assert {ids[0].partition("@")[0] for ids in twice.values()} <= tried_again


async def _report(stack: Stack) -> list[dict[str, str]]:
    url = stack.services["report_generator"]
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{url}/api/reports/generate", json={}) as answer:
            assert answer.status == 202
            report_id = (await answer.json())["reportId"]

        async def ready() -> bool:
            async with session.get(f"{url}/api/reports/{report_id}/status") as status:
                return bool((await status.json())["status"] == "ready")

        await eventually(ready, "making the report")
        async with session.get(f"{url}/api/reports/{report_id}/download") as download:
            assert download.status == 200
            return list(csv.DictReader((await download.text()).splitlines()))
