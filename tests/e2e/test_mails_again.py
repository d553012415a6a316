"""A mail that was refused is sent again and arrives once; one that came back is the last there."""

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Any

import aiohttp
import pytest

from tests.amqp import eventually
from tests.e2e.stack import Stack, addresses, register, running
from tools.testing.smtp_server import SmtpServer

DRAIN_SECONDS = 60.0

REPORT = """\
From: MAILER-DAEMON@mx.example.net
Content-Type: multipart/report; report-type=delivery-status; boundary=b

--b

Nobody there.
--b
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example.net

Final-Recipient: rfc822; {address}
Action: failed
Status: 5.1.1
Diagnostic-Code: smtp; 550 5.1.1 no such user
--b
Content-Type: message/rfc822

{mail}
--b--
"""


@contextmanager
def mail_server() -> Iterator[SmtpServer]:
    """A mail server with a loop of its own, since the launcher blocks that of the test."""
    server, loop = SmtpServer(), asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.start(), loop).result()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def smtp() -> Iterator[SmtpServer]:
    with mail_server() as server:
        yield server


@pytest.fixture(scope="module")
def own_stack(smtp: SmtpServer) -> Iterator[Stack]:
    """A stack that hands its mails to that server."""
    data = Path(f"/var/tmp/userstream-mails-{os.getpid()}")  # noqa: S108 - also for ``nobody``
    with running(
        data,
        CANARY_SECONDS="0",
        SMTP_HOST=smtp.host,
        SMTP_PORT=str(smtp.port),
        SMTP_SECURE="none",
        FROM_EMAIL="hello@example.com",
    ) as stack:
        yield stack


async def journey(stack: Stack, registration_id: str) -> str:
    url = f"{stack.services['frontend']}/api/registrations/{registration_id}"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return str((await answer.json())["status"])


async def becomes(stack: Stack, registration_id: str, status: str) -> None:
    async def stands() -> bool:
        return await journey(stack, registration_id) == status

    await eventually(stands, f"the registration being {status}", DRAIN_SECONDS)


def mails(stack: Stack, *line: str) -> Any:
    """What ``./userstream mails`` says."""
    return json.loads(stack.launcher("mails", *line, "--json"))


async def notification_of(stack: Stack, registration_id: str) -> str:
    [row] = await stack.rows(
        "SELECT message_id::text AS id FROM notification_logs WHERE registration_id = $1::uuid",
        registration_id,
    )
    return str(row["id"])


async def test_refused_then_sent_again_then_back_then_no_more(
    own_stack: Stack, smtp: SmtpServer
) -> None:
    stack, (first, second) = own_stack, addresses(2)
    smtp.on("RCPT", "550 5.1.1 nobody of that name")
    ids = {address: key for key, address in (await register(stack, [first, second])).items()}
    for registration_id in ids.values():
        await becomes(stack, registration_id, "mail_failed")
    smtp.forget()
    one = await notification_of(stack, ids[first])
    day = str(datetime.now(UTC).date())

    # One of them, then all that failed on that day, then once more.
    mails(stack, "resend", one, "--reason", "they know us now")
    await becomes(stack, ids[first], "mailed")
    counted = mails(stack, "resend", "--failed", "--day", day, "--dry-run")
    resent = mails(stack, "resend", "--failed", "--day", day)
    await becomes(stack, ids[second], "mailed")
    rest = mails(stack, "resend", "--failed", "--day", day)

    assert (counted["found"], resent["resent"], rest["found"]) == (1, 1, 0)
    assert sorted(mail.recipients[0] for mail in smtp.accepted) == sorted([first, second])
    shown = mails(stack, "show", one)
    assert [attempt["status"] for attempt in shown["attempts"]] == ["failed", "sent"]
    assert shown["resends"][0]["reason"] == "they know us now"

    # It comes back. Nobody who asks the form learns that; but nothing more goes there.
    [mail] = [mail for mail in smtp.accepted if mail.recipients == [first]]
    report = REPORT.format(address=first, mail=mail.content.decode().replace("\r\n", "\n"))
    url = f"{stack.services['sender']}/api/bounces"
    headers = {"Content-Type": "message/rfc822"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=report.encode(), headers=headers) as answer,
    ):
        assert answer.status == 200, await answer.text()
    assert mails(stack, "show", one)["status"] == "bounced"
    assert await journey(stack, ids[first]) == "mailed"
    [again] = await register(stack, [first])
    await becomes(stack, again, "mailed")  # as for any address that is known already
    [entry] = mails(stack, "suppressed")["addresses"]

    assert (entry["address"], entry["status"]) == (first.lower(), "5.1.1")
    assert sum(mail.recipients == [first] for mail in smtp.mails) == 1

    # Until somebody says that it is good again.
    mails(stack, "suppressed", first, "--remove")
    mails(stack, "resend", one, "--force")

    async def came() -> bool:
        return sum(mail.recipients == [first] for mail in smtp.accepted) == 2

    await eventually(came, "the mail being sent once more", DRAIN_SECONDS)
