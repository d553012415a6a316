"""The whole sender: from a request or message to the mail server's answer on record."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.amqp.message import DELIVERY_COUNT
from common.contracts.notifications import (
    ClaimRequest,
    DeliveryOutcomeOf,
    DeliveryStatus,
    Template,
)
from common.contracts.topology import EMAIL_NOTIFICATIONS
from common.database_client.client import DatabaseClient
from common.messaging.quarantine import QUARANTINE_AFTER
from sender.routes.notifications import PREVIEW_POLICY
from tests.amqp import depth, eventually, publish, take
from tests.backends import TestBroker
from tests.integration.sender.stack import Stack, running_sender, running_stack
from tests.polling import until
from tools.testing.smtp_server import DROP, STALL, Action, Point

REPORT = {
    "to": "ada@example.org",
    "template": "report_ready",
    "data": {
        "reportName": "users",
        "recordCount": 3,
        "downloadUrl": "http://localhost:8084/api/reports/1/download",
    },
}
WELCOME = {"to": "ada@example.org", "template": "welcome"}

DEAD_LETTERS = EMAIL_NOTIFICATIONS.dead_letter_queue


@pytest.fixture
async def stack(empty_broker: TestBroker, database_dsn: str) -> AsyncIterator[Stack]:
    async with running_stack(empty_broker, database_dsn) as running:
        yield running


async def ask(stack: Stack, body: dict[str, Any] | None = None) -> str:
    status, answer = await stack.post(body or WELCOME)
    assert status == 202, answer
    return str(answer["notificationId"])


async def foreign(stack: Stack, body: object, **properties: Any) -> None:
    """Publish to the sender as any program may."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    await publish(stack.broker.admin_url, EMAIL_NOTIFICATIONS.name, data, **properties)


async def test_a_request_becomes_a_mail_and_its_answer_is_on_record(stack: Stack) -> None:
    status, answer = await stack.post(REPORT)
    assert status == 202
    await stack.becomes(answer["notificationId"], "sent")
    _, notification = await stack.get(answer["statusUrl"])

    (mail,) = stack.smtp.mails
    assert mail.recipients == ["ada@example.org"]
    assert b"http://localhost:8084/api/reports/1/download" in mail.content.replace(b"=\r\n", b"")
    assert f"<{answer['notificationId']}@example.com>".encode() in mail.content
    (attempt,) = notification["attempts"]
    assert (attempt["status"], attempt["replyCode"]) == ("sent", 250)
    assert attempt["replyText"] == "2.0.0 queued"
    assert notification["sentAt"]


async def test_what_another_program_publishes_is_sent_once(stack: Stack) -> None:
    message_id = uuid4()
    for _ in range(3):
        await foreign(stack, WELCOME, message_id=str(message_id))
    await stack.becomes(message_id, "sent")
    await eventually(lambda: _drained(stack), "the queue being empty")

    assert len(stack.smtp.mails) == 1


async def test_the_same_key_and_body_is_one_mail_and_another_body_is_another(stack: Stack) -> None:
    key = {"Idempotency-Key": "order-1"}
    ids = [
        (await stack.post(body, key))[1]["notificationId"]
        for body in (WELCOME, WELCOME, WELCOME | {"to": "bob@example.org"})
    ]
    for notification_id in ids:
        await stack.becomes(notification_id, "sent")

    assert ids[0] == ids[1] != ids[2]
    assert sorted(mail.recipients[0] for mail in stack.smtp.mails) == [
        "ada@example.org",
        "bob@example.org",
    ]


async def test_two_senders_send_each_mail_once(stack: Stack) -> None:
    async with running_sender(stack.broker, stack.database_url, stack.smtp):
        ids = [uuid4() for _ in range(50)]
        for number, message_id in enumerate(ids):
            body = WELCOME | {"to": f"a{number}@example.org"}
            await asyncio.gather(
                *(foreign(stack, body, message_id=str(message_id)) for _ in range(2))
            )
        for message_id in ids:
            await stack.becomes(message_id, "sent")
        await eventually(lambda: _drained(stack), "the queue being empty")

    assert len(stack.smtp.mails) == 50


async def test_a_refused_recipient_is_failed_and_no_dead_letter(stack: Stack) -> None:
    stack.smtp.on("RCPT", "550 5.1.1 no such mailbox", to="ada@example.org")
    notification_id = await ask(stack)
    await stack.becomes(notification_id, "failed")
    _, notification = await stack.get(f"/api/notifications/{notification_id}")

    assert notification["attempts"][0]["replyCode"] == 550
    assert notification["attempts"][0]["replyText"] == "5.1.1 no such mailbox"
    assert await depth(stack.broker.admin_url, DEAD_LETTERS) == 0


async def test_a_greylisted_mail_arrives_later(stack: Stack) -> None:
    stack.smtp.on("RCPT", "451 4.7.1 greylisted", times=2)
    notification_id = await ask(stack)
    await stack.becomes(notification_id, "sent")
    _, notification = await stack.get(f"/api/notifications/{notification_id}")

    assert [attempt["status"] for attempt in notification["attempts"]] == [
        "deferred",
        "deferred",
        "sent",
    ]


async def test_a_lost_final_answer_sends_again_with_the_same_message_id(stack: Stack) -> None:
    stack.smtp.on("TEXT", DROP, times=1)
    notification_id = await ask(stack)
    await stack.becomes(notification_id, "sent")

    assert len(stack.smtp.mails) == 2
    for mail in stack.smtp.mails:
        assert f"Message-ID: <{notification_id}@example.com>".encode() in mail.content
    _, notification = await stack.get(f"/api/notifications/{notification_id}")
    assert [attempt["status"] for attempt in notification["attempts"]] == ["unsure", "sent"]


async def test_an_outage_of_the_mail_server_loses_nothing_and_kills_nothing(stack: Stack) -> None:
    await stack.becomes(await ask(stack), "sent")
    await stack.smtp.stop()
    ids = [await ask(stack, WELCOME | {"to": f"a{n}@example.org"}) for n in range(20)]

    async def says_so() -> bool:
        status, report = await stack.get("/health/ready")
        code = report["dependencies"]["smtp"].get("code")
        return (status, code) == (503, "mail_server_unavailable")

    await eventually(says_so, "readiness naming the mail server")
    await stack.smtp.start()
    for notification_id in ids:
        await stack.becomes(notification_id, "sent")

    assert len(stack.smtp.accepted) == 21
    for queue in (*EMAIL_NOTIFICATIONS.retries, DEAD_LETTERS):
        assert await depth(stack.broker.admin_url, queue) == 0


async def test_what_every_recipient_gets_is_ours_so_it_is_said_and_nobody_has_failed(
    stack: Stack,
) -> None:
    stack.smtp.on("RCPT", "554 5.7.1 <someone@example.org>: Relay access denied")
    ids = [await ask(stack, WELCOME | {"to": f"a{n}@example.org"}) for n in range(20)]

    async def says_so() -> bool:
        status, report = await stack.get("/health/ready")
        consumer = report["dependencies"]["consumer"]
        return status == 503 and "554 5.7.1" in consumer.get("detail", "")

    await eventually(says_so, "readiness naming the refusal")
    assert "failed" not in {await stack.status_of(notification_id) for notification_id in ids}
    assert "someone" not in str((await stack.get("/health/ready"))[1])
    stack.smtp.forget()
    for notification_id in ids:
        await stack.becomes(notification_id, "sent")
    assert len(stack.smtp.accepted) == 20
    assert await depth(stack.broker.admin_url, DEAD_LETTERS) == 0


@pytest.mark.parametrize(
    ("odd", "point", "reply"),
    [
        ("odd@example.org", "RCPT", "421 4.7.0 closing"),
        ("odd@example.org", "RCPT", DROP),
        ("odd@example.org", "RCPT", "550 5.7.1 not to this one"),
        ("jörg@example.org", "SMTPUTF8", "555 5.5.4 unsupported option"),
    ],
)
async def test_one_odd_recipient_stops_no_other_mail(
    empty_broker: TestBroker, database_dsn: str, odd: str, point: Point, reply: Action
) -> None:
    async with running_stack(empty_broker, database_dsn, max_retry_attempts=0) as stack:
        stack.smtp.on(point, reply, to=None if point == "SMTPUTF8" else odd)
        strange = await ask(stack, WELCOME | {"to": odd})
        ids = [await ask(stack, WELCOME | {"to": f"a{n}@example.org"}) for n in range(20)]
        for notification_id in ids:
            await stack.becomes(notification_id, "sent")
        await eventually(lambda: _drained(stack), "the queue being empty")

        assert await stack.status_of(strange) in ("deferred", "failed")
        assert len(stack.smtp.accepted) == 20


async def test_a_server_that_hangs_up_on_everybody_for_a_while_is_an_outage(stack: Stack) -> None:
    stack.smtp.on("MAIL", "421 4.3.2 shutting down")
    ids = [await ask(stack, WELCOME | {"to": f"a{n}@example.org"}) for n in range(5)]

    async def says_so() -> bool:
        _, report = await stack.get("/health/ready")
        code: str = report["dependencies"]["consumer"].get("code", "")
        return code == "mail_server_unavailable"

    await eventually(says_so, "readiness saying that the consumer has paused")
    stack.smtp.forget()
    for notification_id in ids:
        await stack.becomes(notification_id, "sent")

    assert await depth(stack.broker.admin_url, DEAD_LETTERS) == 0
    assert len(stack.smtp.accepted) == 5


async def test_a_mail_server_that_hangs_with_every_connection_at_work_is_not_ready(
    empty_broker: TestBroker, database_dsn: str
) -> None:
    async with running_stack(empty_broker, database_dsn, smtp_connections=2) as stack:
        for point in ("CONNECT", "NOOP", "RSET", "MAIL", "RCPT", "DATA", "TEXT"):
            stack.smtp.on(point, STALL)
        for number in range(4):
            await ask(stack, WELCOME | {"to": f"a{number}@example.org"})
        await until(lambda: stack.smtp.commands.count("DATA") >= 1 or stack.smtp.sessions >= 2)

        for _ in range(3):  # and it stays so

            async def says_so() -> bool:
                status, report = await stack.get("/health/ready")
                return status == 503 and not report["dependencies"]["smtp"]["ready"]

            await eventually(says_so, "readiness naming the mail server")
        stack.smtp.forget()
        stack.smtp.hang_up()
        await eventually(lambda: len(stack.smtp.accepted) == 4, "all of them being sent")


async def test_a_stop_in_the_middle_notes_what_is_unsure(
    empty_broker: TestBroker, database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.messaging.consumer.DRAIN_SECONDS", 0.1)
    lines = {"smtp_connections": 6}  # enough for all, however they are shared out
    async with running_stack(empty_broker, database_dsn, **lines) as stack:
        async with running_sender(stack.broker, stack.database_url, stack.smtp, **lines) as other:
            stack.smtp.on("TEXT", STALL, to="slow@example.org")
            ids = [await ask(stack, WELCOME | {"to": "slow@example.org"}) for _ in range(6)]
            await until(lambda: len(stack.smtp.mails) == 6)
            assert other
        # The other has stopped: what it had in flight is redelivered here, when the server is well.
        stack.smtp.forget()
        stack.smtp.hang_up()
        for notification_id in ids:
            await stack.becomes(notification_id, "sent")
        attempts = [
            (await stack.get(f"/api/notifications/{notification_id}"))[1]["attempts"]
            for notification_id in ids
        ]

    assert {attempt[0]["status"] for attempt in attempts} == {"unsure"}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (REPORT | {"data": {"reportName": "users", "recordCount": 3}}, "/data/downloadUrl"),
        (WELCOME | {"to": "ada@example.org\r\nBcc: eve@example.net"}, "/to"),
        (WELCOME | {"subject": "Hello\r\nBcc: eve@example.net"}, "/subject"),
        (WELCOME | {"template": "unknown"}, "/template"),
        (WELCOME | {"colour": "red"}, "/colour"),
    ],
)
async def test_a_request_that_can_not_become_a_mail_is_refused_at_the_door(
    stack: Stack, body: dict[str, Any], pointer: str
) -> None:
    status, problem = await stack.post(body)

    assert status == 422
    assert [error["pointer"] for error in problem["errors"]] == [pointer]
    assert "eve@" not in json.dumps(problem["detail"])


async def test_data_that_a_template_does_not_use_is_named_and_not_kept(stack: Stack) -> None:
    body = WELCOME | {"subject": "Welcome", "data": {"name": "John", "surname": "Doe"}}

    status, answer = await stack.post(body)

    assert (status, answer["unusedData"]) == (202, ["name", "surname"])
    await stack.becomes(answer["notificationId"], "sent")
    _, kept = await stack.get(answer["statusUrl"])
    assert kept["status"] == "sent"
    assert "Doe" not in str(kept)
    assert "Doe" not in str(stack.smtp.accepted)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"not json", "malformed"),
        (WELCOME | {"to": "ada@example.org\r\nBcc: eve@example.net"}, "malformed"),
        (WELCOME | {"template": "unknown"}, "malformed"),
        (REPORT | {"data": {}}, "template_data_missing"),
    ],
)
async def test_a_message_that_can_not_become_a_mail_is_dead_lettered_with_its_reason(
    stack: Stack, body: object, code: str
) -> None:
    await foreign(stack, body)
    message = await take(stack.broker.admin_url, DEAD_LETTERS)

    assert message.headers["x-error-code"] == code
    assert "example" not in str(message.headers["x-error-detail"])
    assert not any(command.startswith("RCPT") for command in stack.smtp.commands)


async def test_an_id_that_nobody_has_taken_up_may_still_be_waiting(stack: Stack) -> None:
    status, problem = await stack.get(f"/api/notifications/{uuid4()}")

    assert status == 404
    assert "waits for its turn" in problem["detail"]


@pytest.mark.parametrize("template", ["welcome", "already_registered", "report_ready"])
async def test_a_preview_shows_the_mail_and_lets_it_do_nothing(stack: Stack, template: str) -> None:
    url = f"{stack.url}/api/templates/{template}/preview"
    async with stack.http.get(url) as response:
        html = await response.text()
        assert response.content_type == "text/html"
        assert response.headers["Content-Security-Policy"] == PREVIEW_POLICY
    async with stack.http.get(url, params={"format": "text"}) as response:
        text = await response.text()
        assert response.content_type == "text/plain"

    assert "<h1" in html
    assert "<" not in text


async def test_there_is_no_preview_of_an_unknown_template(stack: Stack) -> None:
    status, problem = await stack.get("/api/templates/base/preview")

    assert status == 404
    assert "welcome" in problem["detail"]


async def _drained(stack: Stack) -> bool:
    async with stack.http.get(f"{stack.url}/metrics") as response:
        metrics = await response.text()
    idle = 'userstream_deliveries_in_flight{queue="email.notifications"} 0.0' in metrics
    return idle and await depth(stack.broker.admin_url, EMAIL_NOTIFICATIONS.queue) == 0


@pytest.mark.parametrize(
    "headers", [{}, {DELIVERY_COUNT: QUARANTINE_AFTER}], ids=["new", "quarantined"]
)
async def test_mails_that_a_dead_sender_has_leased_hold_up_no_others(
    empty_broker: TestBroker, database_dsn: str, headers: dict[str, int]
) -> None:
    held = {uuid4(): uuid4() for _ in range(3)}
    others = [uuid4() for _ in range(3)]

    async with (
        running_stack(empty_broker, database_dsn, prefetch=2, max_retry_attempts=2) as stack,
        DatabaseClient.open(stack.database_url) as dead,
    ):
        for message_id, lease_id in held.items():
            await dead.claim(a_claim(message_id, lease_id))
        for message_id in [*held, *others]:
            await foreign(stack, WELCOME, message_id=str(message_id), headers=headers)
        for message_id in others:
            await stack.becomes(message_id, "sent")
        states = {await stack.status_of(message_id) for message_id in held}
        for message_id, lease_id in held.items():  # as if its lease had ended
            await dead.record_outcome(
                DeliveryOutcomeOf(
                    message_id=message_id, lease_id=lease_id, status=DeliveryStatus.DEFERRED
                )
            )
        for message_id in held:
            await stack.becomes(message_id, "sent")
        await eventually(lambda: _drained(stack), "the queue being empty")

    assert states == {"sending"}
    assert len(stack.smtp.mails) == len(held) + len(others)


def a_claim(message_id: UUID, lease_id: UUID) -> ClaimRequest:
    return ClaimRequest(
        message_id=message_id,
        lease_id=lease_id,
        template=Template.WELCOME,
        recipient=WELCOME["to"],
    )
