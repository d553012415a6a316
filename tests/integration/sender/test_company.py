"""Mails that are announced behind another mail's text: what befalls one leaves the other alone."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import pytest

from common.contracts.notifications import DeliveryStatus
from common.errors import MailServerUnavailableError
from sender.mailer import Outcome, SmtpMailer
from sender.smtp import connection, pool
from sender.smtp import transport as link
from sender.smtp.connection import Connection, Mail
from sender.smtp.replies import Phase
from tests.integration.sender.test_mailer import a_mailer
from tests.polling import until
from tools.testing.smtp_server import (
    DROP,
    STALL,
    Action,
    Hold,
    Point,
    SmtpServer,
    running_smtp_server,
)

SENT, FAILED = DeliveryStatus.SENT, DeliveryStatus.FAILED
DEFERRED, UNSURE = DeliveryStatus.DEFERRED, DeliveryStatus.UNSURE


@pytest.fixture(autouse=True)
def short_time_outs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "SECONDS", dict.fromkeys(Phase, 0.5))


def go_on() -> None:
    """Nothing speaks against sending the text."""


async def send(
    mailer: SmtpMailer, name: str, *, before_text: Callable[[], None] = go_on
) -> Outcome:
    mail = Mail(
        sender="us@example.com",
        recipient=f"{name}@example.org",
        content=f"Subject: {name}\r\n\r\nx\r\n".encode(),
    )
    return await mailer.send(mail, before_text=before_text)


async def send_together(
    mailer: SmtpMailer, *names: str, once_the_first_is_announced: Callable[[], None] = go_on
) -> list[DeliveryStatus]:
    """Send the mails in this order; all wait while the first one is announced.

    What the server is told ``once_the_first_is_announced`` applies to what comes after that.
    """
    first = send(mailer, names[0], before_text=once_the_first_is_announced)
    outcomes = await asyncio.gather(first, *(send(mailer, name) for name in names[1:]))
    return [outcome.status for outcome in outcomes]


def accepted(server: SmtpServer) -> list[str]:
    """Who got a mail, in order; twice if they got two."""
    return [mail.recipients[0].partition("@")[0] for mail in server.accepted]


def announcement(name: str) -> bytes:
    return (f"MAIL FROM:<us@example.com>\r\nRCPT TO:<{name}@example.org>\r\nDATA\r\n").encode()


async def test_waiting_mails_are_announced_behind_the_text_before_them() -> None:
    async with running_smtp_server() as server, a_mailer(server, connections=1) as mailer:
        statuses = await send_together(mailer, "ada", "bob", "eve")

    assert statuses == [SENT, SENT, SENT]
    assert server.behind_texts == [announcement("bob"), announcement("eve")]
    assert [mail.content for mail in server.accepted] == [
        f"Subject: {name}\r\n\r\nx\r\n".encode() for name in ("ada", "bob", "eve")
    ]


async def test_a_mail_with_nobody_behind_it_leaves_alone() -> None:
    async with running_smtp_server() as server, a_mailer(server, connections=2) as mailer:
        assert await send_together(mailer, "ada", "bob") == [SENT, SENT]
        assert await send_together(mailer, "eve") == [SENT]

    assert server.behind_texts == []


async def test_nothing_is_announced_to_a_server_that_does_not_pipeline() -> None:
    plain = SmtpServer(extensions=[])
    async with running_smtp_server(plain) as server, a_mailer(server, connections=1) as mailer:
        assert await send_together(mailer, "ada", "bob") == [SENT, SENT]

    assert server.behind_texts == []


async def test_an_address_of_any_script_is_announced_with_smtputf8() -> None:
    async with running_smtp_server() as server, a_mailer(server, connections=1) as mailer:
        assert await send_together(mailer, "ada", "jörg", "bob") == [SENT, SENT, SENT]

    assert b"MAIL FROM:<us@example.com> SMTPUTF8\r\n" in server.behind_texts[0]
    assert server.behind_texts[1] == announcement("bob")


async def test_an_address_that_can_not_be_said_is_not_announced() -> None:
    plain = SmtpServer(extensions=["PIPELINING"])
    async with running_smtp_server(plain) as server, a_mailer(server, connections=1) as mailer:
        statuses = await send_together(mailer, "ada", "jörg", "bob")

    assert statuses == [SENT, FAILED, SENT]
    assert accepted(server) == ["ada", "bob"]
    assert server.sessions == 1


@pytest.mark.parametrize(
    ("point", "reply", "status"),
    [
        ("MAIL", "451 4.3.0 later", DEFERRED),
        ("RCPT", "450 4.2.0 greylisted", DEFERRED),
        ("RCPT", "552 5.2.2 full", DEFERRED),
        ("RCPT", "550 5.1.1 nobody", FAILED),
        ("DATA", "451 4.3.0 later", DEFERRED),
        ("DATA", "554 5.7.1 no", DEFERRED),
        ("TEXT", "552 5.3.4 too large", FAILED),
        ("TEXT", "451 4.3.0 later", DEFERRED),
        ("TEXT", "554 5.7.1 spam", DEFERRED),
    ],
)
async def test_a_refusal_is_for_the_one_it_was_said_to(
    point: Point, reply: str, status: DeliveryStatus
) -> None:
    async with running_smtp_server() as server, a_mailer(server, connections=1) as mailer:

        def refuse_the_second() -> None:
            server.on(point, reply, times=1, to=None if point == "MAIL" else "bob@example.org")

        statuses = await send_together(
            mailer, "ada", "bob", "eve", once_the_first_is_announced=refuse_the_second
        )

    assert server.behind_texts[0] == announcement("bob")
    assert statuses == [SENT, status, SENT]
    assert accepted(server) == ["ada", "eve"]


async def test_a_refused_text_leaves_the_one_announced_behind_it_alone() -> None:
    async with running_smtp_server() as server, a_mailer(server, connections=1) as mailer:
        server.on("TEXT", "550 5.7.1 spam", to="ada@example.org")

        assert await send_together(mailer, "ada", "bob") == [DEFERRED, SENT]
    assert server.sessions == 1


async def test_a_refusal_of_ourselves_leaves_the_mail_before_it_sent() -> None:
    async with running_smtp_server() as server, a_mailer(server, connections=1) as mailer:
        first = send(mailer, "ada", before_text=lambda: server.on("MAIL", "553 5.7.1 not you"))
        results = await asyncio.gather(first, send(mailer, "bob"), return_exceptions=True)

    assert isinstance(results[0], Outcome)
    assert results[0].status is SENT
    assert isinstance(results[1], MailServerUnavailableError)


@pytest.mark.parametrize("action", [DROP, STALL, b"nonsense\r\n", b"250", "421 4.3.2 closing"])
@pytest.mark.parametrize("point", ["MAIL", "RCPT", "DATA"])
async def test_a_link_lost_after_the_reply_to_the_text_costs_nobody(
    point: Point, action: Action
) -> None:
    async with running_smtp_server() as server, a_mailer(server, connections=1) as mailer:
        statuses = await send_together(
            mailer,
            "ada",
            "bob",
            once_the_first_is_announced=lambda: server.on(point, action, times=1),
        )

    assert statuses == [SENT, SENT]
    assert accepted(server) == ["ada", "bob"]
    assert len(server.mails) == 2
    assert server.sessions == 2


@pytest.mark.parametrize("action", [DROP, STALL, b"nonsense\r\n", b"250", "354 more"])
async def test_a_link_lost_before_that_reply_leaves_one_unsure_and_the_other_untouched(
    action: Action,
) -> None:
    async with running_smtp_server() as server, a_mailer(server, connections=1) as mailer:
        server.on("TEXT", action, to="ada@example.org")

        statuses = await send_together(mailer, "ada", "bob")

    assert server.behind_texts == [announcement("bob")]
    assert statuses == [UNSURE, SENT]
    assert [mail.recipients for mail in server.mails] == [["ada@example.org"], ["bob@example.org"]]


async def test_what_follows_a_senseless_reply_decides_about_nobody() -> None:
    async with running_smtp_server() as server, a_mailer(server, connections=1) as mailer:
        server.on("TEXT", b"354 more\r\n250 ok\r\n550 5.1.1 nobody\r\n", times=1)

        assert await send_together(mailer, "ada", "bob") == [UNSURE, SENT]


async def test_a_farewell_in_reply_to_the_text_sends_both_once_on_a_new_connection() -> None:
    async with running_smtp_server() as server, a_mailer(server, connections=1) as mailer:
        server.on("TEXT", "421 4.3.2 closing", times=1)

        statuses = await send_together(mailer, "ada", "bob")

    assert statuses == [SENT, SENT]
    assert sorted(accepted(server)) == ["ada", "bob"]


async def test_a_mail_that_loses_a_new_connection_too_is_put_off_and_nobody_else() -> None:
    async with running_smtp_server() as server, a_mailer(server, connections=1) as mailer:
        server.on("RCPT", DROP, to="odd@example.org")

        statuses = await send_together(mailer, "ada", "odd", "bob")

    assert statuses == [SENT, DEFERRED, SENT]
    assert accepted(server) == ["ada", "bob"]


@pytest.mark.parametrize("forgets", ["all", "a line"])
async def test_a_server_that_forgets_what_stands_behind_a_text_is_told_nothing_there_again(
    forgets: Literal["all", "a line"],
) -> None:
    names = [f"a{number}" for number in range(20)]
    forgetful = SmtpServer(forgets=forgets)
    async with running_smtp_server(forgetful) as server, a_mailer(server, connections=1) as mailer:
        statuses = await send_together(mailer, *names)

    assert statuses == [SENT] * 20
    assert sorted(accepted(server)) == sorted(names)
    assert len(server.mails) == 20
    assert len(server.behind_texts) == 1
    assert server.sessions <= 3


async def test_a_server_that_is_slow_with_one_recipient_is_not_taken_for_forgetful(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "ANNOUNCED_SECONDS", 0.05)
    monkeypatch.setattr(link, "SECONDS", dict.fromkeys(Phase, 3600.0))
    async with running_smtp_server() as server, a_mailer(server, connections=1) as mailer:
        held = Hold("250 ok")
        server.on("RCPT", held, to="bob@example.org")
        asyncio.get_running_loop().call_later(0.5, held.released.set)

        assert await send_together(mailer, "ada", "bob", "eve") == [SENT, SENT, SENT]
    assert len(server.behind_texts) == 2
    assert server.sessions == 1


async def test_each_mail_is_asked_about_just_before_its_own_text() -> None:
    async with running_smtp_server() as server, a_mailer(server, connections=1) as mailer:
        held = Hold("250 ok")
        server.on("TEXT", held, to="ada@example.org")
        asked: list[str] = []
        sending = [
            asyncio.create_task(send(mailer, name, before_text=partial(asked.append, name)))
            for name in ("ada", "bob")
        ]
        await until(lambda: server.mails)
        assert asked == ["ada"]

        held.released.set()
        await asyncio.gather(*sending)

    assert asked == ["ada", "bob"]


async def test_an_announced_mail_that_may_no_longer_be_sent_is_not() -> None:
    def forbid() -> None:
        raise InterruptedError

    async with running_smtp_server() as server, a_mailer(server, connections=1) as mailer:
        first, forbidden, third = await asyncio.gather(
            send(mailer, "ada"),
            send(mailer, "bob", before_text=forbid),
            send(mailer, "eve"),
            return_exceptions=True,
        )

    assert server.behind_texts == [announcement("bob")]
    assert isinstance(forbidden, InterruptedError)
    assert isinstance(first, Outcome)
    assert isinstance(third, Outcome)
    assert [first.status, third.status] == [SENT, SENT]
    assert accepted(server) == ["ada", "eve"]


@pytest.mark.parametrize("cancelled", [0, 1, 2])
async def test_a_cancelled_mail_leaves_those_before_and_behind_it_alone(cancelled: int) -> None:
    """The first one's text is out, the second one is announced, the third one waits."""
    names = ["ada", "bob", "eve"]
    async with running_smtp_server() as server, a_mailer(server, connections=1) as mailer:
        held = Hold("250 ok")
        server.on("TEXT", held, to="ada@example.org")
        sending = [asyncio.create_task(send(mailer, name)) for name in names]
        await until(lambda: server.behind_texts)

        sending[cancelled].cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending[cancelled]
        held.released.set()
        others = [task for task in sending if task is not sending[cancelled]]
        outcomes = await asyncio.gather(*others)

        assert {outcome.status for outcome in outcomes} == {SENT}
        assert (await send(mailer, "zoe")).status is SENT
    del names[cancelled]
    assert sorted(name for name in accepted(server) if name in names) == names
    assert len(server.mails) == (3 if cancelled else 4)  # the first one's text was out
    assert server.sessions == 3 - cancelled  # who only waits costs none


async def test_a_mail_cancelled_as_it_gets_its_turn_leaves_the_rest_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = Connection.send

    async def cancelling(*args: Any, **options: Any) -> Any:
        try:
            return await original(*args, **options)
        finally:  # between the turn that is about to be given and the task that will get it
            asyncio.get_running_loop().call_soon(sending[1].cancel)

    monkeypatch.setattr(Connection, "send", cancelling)
    async with running_smtp_server() as server, a_mailer(server, connections=1) as mailer:
        sending = [asyncio.create_task(send(mailer, name)) for name in ("ada", "bob", "eve")]
        results = await asyncio.gather(*sending, return_exceptions=True)

    assert isinstance(results[1], asyncio.CancelledError)
    assert accepted(server) == ["ada", "eve"]
    assert len(server.mails) == 2


async def test_a_mail_does_not_stand_behind_an_unanswered_text_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(link, "SECONDS", dict.fromkeys(Phase, 3600.0))
    async with running_smtp_server() as server, a_mailer(server, connections=2) as mailer:
        held = Hold("250 ok")
        server.on("TEXT", held, to="ada@example.org")
        server.on("TEXT", held, to="bob@example.org")
        slow = [asyncio.create_task(send(mailer, name)) for name in ("ada", "bob")]
        behind = [asyncio.create_task(send(mailer, name)) for name in ("eve", "zoe")]
        await until(lambda: len(server.behind_texts) == 2)
        server.forget()

        slow[0].cancel()  # one connection is free; the other stays with the text it has sent

        outcomes = await asyncio.gather(*behind)
        assert {outcome.status for outcome in outcomes} == {SENT}
        assert not slow[1].done()
        held.released.set()
        assert (await slow[1]).status is SENT
    assert sorted(accepted(server)) == ["ada", "bob", "eve", "zoe"]


async def test_a_mail_that_wants_a_new_connection_is_announced_behind_nobody() -> None:
    async with running_smtp_server() as server, a_mailer(server, connections=1) as mailer:
        held = Hold("250 ok")
        server.on("TEXT", held, to="eve@example.org")
        server.on("MAIL", DROP, times=1)
        sending = [asyncio.create_task(send(mailer, name)) for name in ("ada", "eve", "bob")]
        await until(lambda: server.mails)  # the first one waits behind the others, for its second
        held.released.set()

        outcomes = await asyncio.gather(*sending)

    assert {outcome.status for outcome in outcomes} == {SENT}
    assert server.behind_texts == [announcement("bob")]
    assert accepted(server) == ["eve", "bob", "ada"]
    assert server.sessions == 3
