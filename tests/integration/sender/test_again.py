"""Mails sent again by hand, and mails that come back: the whole sender and what is behind it."""

import asyncio
import base64
import json
import quopri
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.contracts.topology import EMAIL_NOTIFICATIONS
from tests.amqp import depth, eventually, publish
from tests.backends import TestBroker
from tests.integration.sender.stack import Stack, running_sender, running_stack
from tools.testing.smtp_server import DROP, Hold

REFUSED = "550 5.1.1 no such user"

REPORT: dict[str, Any] = {
    "template": "report_ready",
    "subject": "Yours",
    "data": {
        "reportName": "users",
        "recordCount": 3,
        "downloadUrl": "http://localhost:8084/api/reports/1/download",
    },
}

DSN = """\
Content-Type: multipart/report; report-type=delivery-status; boundary=b

--b

It did not work.
--b
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example.net

Final-Recipient: rfc822; {recipient}
Action: {action}
Status: {status}
Diagnostic-Code: smtp; 550 5.1.1 no such user
--b
Content-Type: text/rfc822-headers

Message-ID: <{message_id}@example.com>
--b--
"""


@pytest.fixture
async def stack(empty_broker: TestBroker, database_dsn: str) -> AsyncIterator[Stack]:
    async with running_stack(empty_broker, database_dsn) as running:
        yield running


def an_address() -> str:
    return f"ada.{uuid4().hex}@example.org"


async def ask(stack: Stack, to: str, **body: Any) -> str:
    status, answer = await stack.post({"to": to, "template": "welcome", **body})
    assert status == 202, answer
    return str(answer["notificationId"])


async def failed(stack: Stack, *, count: int = 1, **body: Any) -> list[str]:
    """Mails that the server refused; it refuses no more."""
    stack.smtp.on("TEXT", REFUSED)
    ids = [await ask(stack, an_address(), **body) for _ in range(count)]
    for notification_id in ids:
        await stack.becomes(notification_id, "failed")
    stack.smtp.forget()
    return ids


async def post(stack: Stack, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    async with stack.http.post(f"{stack.url}/api/{path}", json=body) as answer:
        return answer.status, await answer.json()


async def bounce(
    stack: Stack, notification_id: str, recipient: str, *, action: str = "failed", status: str = ""
) -> dict[str, Any]:
    """Post a report; what it led to."""
    report = DSN.format(
        message_id=notification_id, recipient=recipient, action=action, status=status or "5.1.1"
    )
    headers = {"Content-Type": "message/rfc822"}
    url = f"{stack.url}/api/bounces"
    async with stack.http.post(url, data=report.encode(), headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        (result,) = (await answer.json())["results"]
    return dict(result)


async def drained(stack: Stack) -> None:
    async def empty() -> bool:
        return await depth(stack.broker.admin_url, EMAIL_NOTIFICATIONS.queue) == 0

    await eventually(empty, "the queue being empty")


def delivered(stack: Stack, notification_id: str) -> int:
    """How often the server has taken a mail with this Message-ID."""
    header = f"Message-ID: <{notification_id}@example.com>".encode()
    return sum(header in mail.content for mail in stack.smtp.accepted)


# -- again ----------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [{}, REPORT], ids=["welcome", "report"])
async def test_a_refused_mail_is_sent_again_as_it_was(stack: Stack, body: dict[str, Any]) -> None:
    (notification_id,) = await failed(stack, **body)

    status, answer = await post(
        stack, f"notifications/{notification_id}/resend", {"askedBy": "ops", "reason": "repaired"}
    )
    await stack.becomes(notification_id, "sent")

    assert (status, answer["statusBefore"]) == (202, "failed")
    first, second = stack.smtp.mails
    dated = b"Date: "
    assert [line for line in first.content.split(b"\r\n") if not line.startswith(dated)] == [
        line for line in second.content.split(b"\r\n") if not line.startswith(dated)
    ]
    assert delivered(stack, notification_id) == 1
    _, notification = await stack.get(f"/api/notifications/{notification_id}")
    assert [attempt["status"] for attempt in notification["attempts"]] == ["failed", "sent"]
    (note,) = notification["resends"]
    assert (note["askedBy"], note["reason"], note["statusBefore"]) == ("ops", "repaired", "failed")


async def test_asked_for_many_times_it_is_sent_once(stack: Stack) -> None:
    (notification_id,) = await failed(stack)
    async with running_sender(stack.broker, stack.database_url, stack.smtp):
        answers = await asyncio.gather(
            *(post(stack, f"notifications/{notification_id}/resend", {}) for _ in range(10))
        )
        await stack.becomes(notification_id, "sent")
        await drained(stack)

    assert {status for status, _ in answers} <= {202, 409}
    assert delivered(stack, notification_id) == 1


async def test_a_sent_mail_is_sent_again_by_force_only(stack: Stack) -> None:
    notification_id = await ask(stack, an_address())
    await stack.becomes(notification_id, "sent")
    path = f"notifications/{notification_id}/resend"

    status, problem = await post(stack, path, {})
    forced, _ = await post(stack, path, {"force": True})

    async def twice() -> bool:
        return delivered(stack, notification_id) == 2

    await eventually(twice, "the mail being sent again")
    assert (status, problem["code"], forced) == (409, "conflict", 202)
    assert "It stands as sent." in problem["detail"]


async def test_a_mail_in_hand_is_not_sent_beside_it(stack: Stack) -> None:
    hold = Hold("250 2.0.0 queued")
    stack.smtp.on("TEXT", hold, times=1)
    notification_id = await ask(stack, an_address())
    await stack.becomes(notification_id, "sending")

    status, problem = await post(stack, f"notifications/{notification_id}/resend", {"force": True})
    hold.released.set()
    await stack.becomes(notification_id, "sent")

    assert (status, "is sending" in problem["detail"]) == (409, True)
    assert delivered(stack, notification_id) == 1


async def test_an_unsure_mail_that_was_given_up_is_sent_again(
    empty_broker: TestBroker, database_dsn: str
) -> None:
    async with running_stack(empty_broker, database_dsn, max_retry_attempts=0) as stack:
        stack.smtp.on("TEXT", DROP, times=2)  # the second is no fault of that one connection
        notification_id = await ask(stack, an_address())
        await stack.becomes(notification_id, "unsure")
        stack.smtp.forget()

        status, _ = await post(stack, f"notifications/{notification_id}/resend", {})
        await stack.becomes(notification_id, "sent")

        assert status == 202
        assert delivered(stack, notification_id) == 1


async def test_a_crash_before_the_publish_leaves_it_to_be_asked_for_again(stack: Stack) -> None:
    (notification_id,) = await failed(stack)
    url = f"{stack.database_url}/api/notifications/resends"
    async with stack.http.post(url, json={"notificationIds": [notification_id]}) as answer:
        assert (await answer.json())["results"][0]["decision"] == "opened"  # and then it dies

    before = await stack.status_of(notification_id)
    day = str(datetime.now(UTC).date())
    _, again = await post(stack, "notifications/resend", {"day": day})
    await stack.becomes(notification_id, "sent")

    assert (before, again["resent"]) == ("failed", 1)
    assert delivered(stack, notification_id) == 1


async def test_an_unknown_mail_is_not_found(stack: Stack) -> None:
    assert (await post(stack, f"notifications/{uuid4()}/resend", {}))[0] == 404


async def test_all_that_failed_on_a_day_are_counted_then_sent_again_once(stack: Stack) -> None:
    ids = await failed(stack, count=7)
    report = await failed(stack, **REPORT)
    day = str(datetime.now(UTC).date())
    wanted = {"day": day, "template": "welcome", "reason": "the relay refused everybody"}

    _, tried = await post(stack, "notifications/resend", {**wanted, "dryRun": True})
    assert stack.smtp.accepted == []
    _, first = await post(stack, "notifications/resend", {**wanted, "limit": 3})
    _, rest = await post(stack, "notifications/resend", {**wanted, "after": first["nextAfter"]})
    for notification_id in ids:
        await stack.becomes(notification_id, "sent")
    await drained(stack)

    assert (tried["dryRun"], tried["found"], tried["resent"]) == (True, 7, 7)
    assert (first["found"], first["resent"]) == (3, 3)
    assert (rest["found"], rest["resent"], rest["nextAfter"]) == (4, 4, None)
    assert [delivered(stack, notification_id) for notification_id in ids] == [1] * 7
    assert await stack.status_of(report[0]) == "failed"
    yesterday = str(datetime.now(UTC).date() - timedelta(days=1))
    _, none = await post(stack, "notifications/resend", {"day": yesterday})
    assert none["found"] == 0


# -- back -----------------------------------------------------------------------------------


async def test_a_mail_that_came_back_is_the_last_to_that_address(stack: Stack) -> None:
    address, notification_id = await a_sent_mail(stack)

    result = await bounce(stack, notification_id, address)
    later = await ask(stack, address.upper())
    other = await ask(stack, an_address())
    await stack.becomes(later, "suppressed")
    await stack.becomes(other, "sent")

    assert result == {
        "notificationId": notification_id,
        "action": "failed",
        "status": "5.1.1",
        "isKnown": True,
        "isNew": True,
        "suppressed": True,
    }
    _, notification = await stack.get(f"/api/notifications/{notification_id}")
    assert (notification["status"], notification["reason"]) == (
        "bounced",
        "5.1.1 550 5.1.1 no such user",
    )
    assert delivered(stack, later) == 0


async def test_an_address_that_is_good_again_gets_the_mail_that_came_back(stack: Stack) -> None:
    address, notification_id = await a_sent_mail(stack)
    await bounce(stack, notification_id, address)
    path = f"notifications/{notification_id}/resend"

    refused, problem = await post(stack, path, {"force": True})
    url = f"{stack.database_url}/api/suppressions/{address}"
    async with stack.http.delete(url) as answer:
        removed = answer.status
    allowed, _ = await post(stack, path, {"force": True})
    await stack.becomes(notification_id, "sent")

    assert (refused, removed, allowed) == (409, 204, 202)
    assert "suppression list" in problem["detail"]
    assert delivered(stack, notification_id) == 2
    again = await bounce(stack, notification_id, address)  # the old report, posted once more
    assert (again["isNew"], again["suppressed"]) == (False, False)
    assert await stack.status_of(notification_id) == "sent"


async def test_a_report_that_it_takes_longer_changes_nothing(stack: Stack) -> None:
    address, notification_id = await a_sent_mail(stack)

    result = await bounce(stack, notification_id, address, action="delayed", status="4.4.1")

    assert (result["isKnown"], result["suppressed"]) == (True, False)
    _, notification = await stack.get(f"/api/notifications/{notification_id}")
    assert notification["status"] == "sent"
    assert [report["action"] for report in notification["bounces"]] == ["delayed"]


async def test_an_address_that_ours_was_forwarded_to_stands_for_ours(stack: Stack) -> None:
    address, notification_id = await a_sent_mail(stack)

    await bounce(stack, notification_id, "ada@internal.example.net")

    await stack.becomes(await ask(stack, address), "suppressed")


async def test_a_report_about_nobody_we_know_changes_nothing(stack: Stack) -> None:
    address = an_address()

    result = await bounce(stack, str(uuid4()), address)

    assert (result["isKnown"], result["suppressed"]) == (False, False)
    await stack.becomes(await ask(stack, address), "sent")


SAMPLES = Path(__file__).parents[2] / "reports_of_mail_servers"
SUPPRESSING = {
    *("exim_unfolded", "gmail_disabled", "qmail_style_dsn", "encoded_base64"),
    *("encoded_quoted_printable", "sendmail_replaced_id"),
}


async def test_reports_as_mail_servers_write_them_are_taken_and_mean_what_they_say(
    stack: Stack,
) -> None:
    url = f"{stack.database_url}/api/users"
    for sample in sorted(SAMPLES.iterdir()):
        address = an_address()
        async with stack.http.post(
            url, json={"name": "A", "surname": "B", "email": address}
        ) as answer:
            user_id = (await answer.json())["id"]
        mail = {"to": address, "template": "welcome", "userId": user_id}
        notification_id = str(uuid4())
        await publish(
            stack.broker.admin_url,
            EMAIL_NOTIFICATIONS.name,
            json.dumps(mail).encode(),
            message_id=notification_id,
        )
        await stack.becomes(notification_id, "sent")

        text = _with_ours(sample.read_bytes(), notification_id, address)
        async with stack.http.post(
            f"{stack.url}/api/bounces", data=text, headers={"Content-Type": "message/rfc822"}
        ) as answer:
            assert answer.status == 200, (sample.name, await answer.text())
            (result,) = (await answer.json())["results"]

        assert await stack.status_of(notification_id) == "bounced", sample.name
        assert result["notificationId"] == notification_id, sample.name
        assert result["suppressed"] is (sample.stem in SUPPRESSING), sample.name


def _with_ours(sample: bytes, notification_id: str, address: str) -> bytes:
    """A sample about a mail of ours, wherever it names one; what is encoded, too."""

    def named(text: bytes) -> bytes:
        return text.replace(
            b"0192f7a4-5b7c-5c3e-9f10-2b6d1c3a4e5f", notification_id.encode()
        ).replace(b"ada@example.org", address.encode())

    def decoded(match: re.Match[bytes]) -> bytes:
        return match[1] + base64.encodebytes(named(base64.b64decode(match[2]))) + b"\n--"

    if b"quoted-printable" in sample:
        sample = quopri.decodestring(sample).replace(b"quoted-printable", b"7bit")
    return re.sub(rb"(base64\n\n)([A-Za-z0-9+/=\n]{120,}?)\n*\n--", decoded, named(sample))


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("message/rfc822", 422, "not_a_bounce"),
        ("application/json", 415, "unsupported_media_type"),
    ],
)
async def test_what_is_no_report_is_refused(
    stack: Stack, kind: str, status: int, code: str
) -> None:
    url = f"{stack.url}/api/bounces"
    body = b"From: ada@example.org\r\n\r\nThank you for the nice mail.\r\n"

    async with stack.http.post(url, data=body, headers={"Content-Type": kind}) as answer:
        problem = await answer.json(content_type="application/problem+json")

    assert (answer.status, problem["code"]) == (status, code)


async def test_a_report_may_be_posted_without_its_headers(stack: Stack) -> None:
    address, notification_id = await a_sent_mail(stack)
    parts = DSN.format(
        message_id=notification_id, recipient=address, action="failed", status="5.1.1"
    ).partition("\n\n")[2]

    url, headers = f"{stack.url}/api/bounces", {"Content-Type": "multipart/report; boundary=b"}
    async with stack.http.post(url, data=parts.encode(), headers=headers) as answer:
        assert answer.status == 200, await answer.text()

    assert await stack.status_of(notification_id) == "bounced"


async def test_too_large_a_report_is_refused(stack: Stack) -> None:
    url, headers = f"{stack.url}/api/bounces", {"Content-Type": "message/rfc822"}

    async with stack.http.post(url, data=b"x" * 300_000, headers=headers) as answer:
        assert answer.status == 413


@pytest.mark.parametrize(
    "path", ["bounces", f"notifications/{UUID(int=1)}/resend", "notifications/resend"]
)
async def test_a_page_of_another_site_can_do_nothing(stack: Stack, path: str) -> None:
    """A browser on the same machine would send it for any page that it shows."""
    headers = {"Content-Type": "message/rfc822" if path == "bounces" else "application/json"}
    headers |= {"Sec-Fetch-Site": "cross-site"}
    body = b'{"day": "2026-11-21"}' if path == "notifications/resend" else b"{}"

    url = f"{stack.url}/api/{path}"
    async with stack.http.post(url, data=body, headers=headers) as answer:
        assert answer.status == 403, await answer.text()


async def a_sent_mail(stack: Stack) -> tuple[str, str]:
    """An address and the mail it got."""
    address = an_address()
    notification_id = await ask(stack, address)
    await stack.becomes(notification_id, "sent")
    return address, notification_id
