"""The mailer and its pool against real connections."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from common import metrics
from common.contracts.notifications import DeliveryStatus
from common.errors import MailServerUnavailableError
from sender import mailer as mailer_module
from sender.mailer import Outcome, SmtpMailer
from sender.smtp import pool
from sender.smtp import transport as link
from sender.smtp.connection import Mail
from sender.smtp.handshake import Security, Server
from sender.smtp.replies import Phase
from tests.polling import until
from tools.testing.smtp_server import DROP, STALL, Action, Point, SmtpServer, running_smtp_server


@pytest.fixture(autouse=True)
def short_time_outs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "SECONDS", dict.fromkeys(Phase, 0.5))


@asynccontextmanager
async def a_mailer(server: SmtpServer, *, connections: int = 2) -> AsyncIterator[SmtpMailer]:
    target = Server(
        host=server.host,
        port=server.port,
        security=Security.NONE,
        tls=ssl.create_default_context(),
    )
    async with SmtpMailer.open(target, connections=connections) as mailer:
        yield mailer


async def send(mailer: SmtpMailer, to: str = "ada@example.org") -> Outcome:
    mail = Mail(sender="us@example.com", recipient=to, content=b"Subject: x\r\n\r\nx\r\n")
    return await mailer.send(mail, before_text=lambda: None)


def gauge() -> float:
    return float(metrics.SMTP_CONNECTIONS._value.get())


async def test_many_mails_share_few_connections() -> None:
    async with running_smtp_server() as server, a_mailer(server, connections=2) as mailer:
        outcomes = await asyncio.gather(*(send(mailer, f"a{n}@example.org") for n in range(50)))

    assert {outcome.status for outcome in outcomes} == {DeliveryStatus.SENT}
    assert {mail.recipients[0] for mail in server.accepted} == {
        f"a{n}@example.org" for n in range(50)
    }
    assert server.sessions == 2


async def test_the_end_is_polite_and_leaves_nothing_open() -> None:
    before = gauge()
    async with running_smtp_server() as server:
        async with a_mailer(server) as mailer:
            await send(mailer)
            assert gauge() == before + 1
        await until(lambda: server.open_sessions == 0)

    assert server.commands[-1] == "QUIT"
    assert gauge() == before


async def test_an_end_without_an_answer_does_not_take_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool, "QUIT_SECONDS", 0.01)
    monkeypatch.setattr(link, "SECONDS", dict.fromkeys(Phase, 3600.0))
    before = gauge()
    async with running_smtp_server() as server:
        server.on("QUIT", STALL)
        async with a_mailer(server) as mailer:
            await send(mailer)

    assert gauge() == before


async def test_idle_connections_say_goodbye(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "IDLE_SECONDS", 0.05)
    async with running_smtp_server() as server, a_mailer(server) as mailer:
        await send(mailer)
        await until(lambda: "QUIT" in server.commands)
        await until(lambda: server.open_sessions == 0)

        assert (await send(mailer)).status is DeliveryStatus.SENT
    assert server.sessions == 2


async def test_a_connection_that_the_server_closed_while_idle_costs_nothing() -> None:
    async with running_smtp_server() as server, a_mailer(server) as mailer:
        await asyncio.gather(*(send(mailer) for _ in range(10)))
        server.hang_up()

        outcome = await send(mailer)

    assert outcome.status is DeliveryStatus.SENT


@pytest.mark.parametrize("action", ["421 enough for one connection", DROP])
async def test_a_server_that_ends_a_session_gets_a_new_one(action: Action) -> None:
    async with running_smtp_server() as server, a_mailer(server, connections=1) as mailer:
        await send(mailer)
        server.on("MAIL", action, times=1)

        outcome = await send(mailer)

    assert outcome.status is DeliveryStatus.SENT
    assert len(server.accepted) == 2
    assert server.sessions == 2


async def test_when_one_idle_connection_turns_out_dead_the_others_are_not_tried() -> None:
    async with running_smtp_server() as server, a_mailer(server, connections=3) as mailer:
        await asyncio.gather(*(send(mailer) for _ in range(9)))
        assert server.sessions == 3
        server.on("MAIL", DROP, times=1)

        outcome = await send(mailer)

    assert outcome.status is DeliveryStatus.SENT
    assert server.sessions == 4


async def in_a_row(mailer: SmtpMailer, count: int) -> list[DeliveryStatus | None]:
    """What becomes of mails to so many recipients; None where no mail would be accepted."""
    statuses: list[DeliveryStatus | None] = []
    for number in range(count):
        try:
            statuses.append((await send(mailer, f"a{number}@example.org")).status)
        except MailServerUnavailableError:
            statuses.append(None)
    return statuses


AGAINST_US: list[tuple[Point, Action]] = [
    *((point, "421 4.3.2 shutting down") for point in ("MAIL", "RCPT", "DATA", "TEXT")),
    *((point, DROP) for point in ("MAIL", "RCPT", "DATA")),
    ("RCPT", "554 5.7.1 Relay access denied"),
    ("RCPT", "550 5.1.8 Sender address rejected: Domain not found"),
    ("RCPT", "550 5.7.1 Client host [192.0.2.1] blocked using zen.example"),
    ("RCPT", "550 5.7.1 Authentication required"),
    ("RCPT", "550 5.7.60 Client does not have permissions to send as this sender"),
    ("RCPT", "554 denied"),
    ("TEXT", "550 5.4.5 Daily user sending quota exceeded"),
    ("TEXT", "554"),
]


@pytest.mark.parametrize(("point", "action"), AGAINST_US)
async def test_what_every_recipient_gets_is_ours_and_nobody_has_failed(
    point: Point, action: Action
) -> None:
    async with running_smtp_server() as server, a_mailer(server) as mailer:
        server.on(point, action)
        statuses = await in_a_row(mailer, 6)
        server.forget()
        again = await send(mailer)
        server.on(point, action, times=1 if action != DROP and "421" not in str(action) else 2)
        once = await send(mailer)

    assert statuses == [DeliveryStatus.DEFERRED] * 2 + [None] * 4
    assert again.status is DeliveryStatus.SENT
    assert once.status is DeliveryStatus.DEFERRED  # of one, it proves nothing any more


@pytest.mark.parametrize(("point", "action"), AGAINST_US)
async def test_what_one_recipient_gets_however_often_stops_nobody(
    point: Point, action: Action
) -> None:
    async with running_smtp_server() as server, a_mailer(server) as mailer:
        server.on("RCPT" if point == "MAIL" else point, action, to="odd@example.org")
        outcomes = [await send(mailer, "odd@example.org") for _ in range(5)]
        other = await send(mailer)

    assert {outcome.status for outcome in outcomes} == {DeliveryStatus.DEFERRED}
    assert other.status is DeliveryStatus.SENT


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        ("550 5.1.1 no such user", DeliveryStatus.FAILED),
        ("552 5.2.2 mailbox full", DeliveryStatus.DEFERRED),
        ("450 4.7.1 greylisted", DeliveryStatus.DEFERRED),
    ],
)
async def test_addresses_that_are_dead_full_or_greylisted_in_a_row_stop_nobody(
    reply: str, status: DeliveryStatus
) -> None:
    async with running_smtp_server() as server, a_mailer(server) as mailer:
        server.on("RCPT", reply)
        statuses = await in_a_row(mailer, 6)

    assert statuses == [status] * 6


@pytest.mark.parametrize(
    ("point", "reply"),
    [("TEXT", "552 5.3.4 too big"), ("RCPT", "550 no"), ("RCPT", "555"), ("RCPT", "553 5.0.0 -")],
)
async def test_what_fails_one_mail_without_saying_whose_fault_it_is_is_ours_if_all_get_it(
    point: Point, reply: str
) -> None:
    async with running_smtp_server() as server, a_mailer(server) as mailer:
        server.on(point, reply)
        statuses = await in_a_row(mailer, 4)

    assert statuses == [DeliveryStatus.FAILED] * 2 + [None] * 2


async def test_a_server_that_offers_smtputf8_and_refuses_it_stops_nobody() -> None:
    async with running_smtp_server() as server, a_mailer(server) as mailer:
        server.on("SMTPUTF8", "555 5.5.4 Unsupported option: SMTPUTF8")
        outcomes = [await send(mailer, f"jörg{number}@example.org") for number in range(5)]
        other = await send(mailer)

    assert {outcome.status for outcome in outcomes} == {DeliveryStatus.FAILED}
    assert other.status is DeliveryStatus.SENT


@pytest.mark.parametrize("point", ["MAIL", "RCPT", "DATA"])
async def test_a_mail_at_which_a_healthy_server_hangs_up_stops_no_other(point: Point) -> None:
    async with running_smtp_server() as server, a_mailer(server) as mailer:
        server.on("RCPT" if point == "MAIL" else point, DROP, to="odd@example.org")

        outcome = await send(mailer, "odd@example.org")
        other = await send(mailer)

    assert outcome.status is DeliveryStatus.DEFERRED
    assert other.status is DeliveryStatus.SENT


@pytest.mark.parametrize("action", [DROP, STALL, b"what\r\n", b"999 x\r\n", b"250 ok"])
async def test_a_lost_answer_to_the_text_is_unsure_and_not_tried_again(action: Action) -> None:
    async with running_smtp_server() as server, a_mailer(server) as mailer:
        server.on("TEXT", action)

        outcome = await send(mailer)

    assert outcome.status is DeliveryStatus.UNSURE
    assert len(server.mails) == 1


async def test_a_server_that_is_stopped_is_away_until_it_is_back() -> None:
    async with running_smtp_server() as server, a_mailer(server) as mailer:
        await send(mailer)
        await server.stop()
        with pytest.raises(MailServerUnavailableError, match="No mail was lost"):
            await send(mailer)
        with pytest.raises(MailServerUnavailableError):
            await mailer.ensure()

        await server.start()
        await mailer.ensure()

        assert (await send(mailer)).status is DeliveryStatus.SENT


async def test_a_crowd_finds_out_about_an_outage_with_one_attempt() -> None:
    async with running_smtp_server() as server, a_mailer(server) as mailer:
        server.on("CONNECT", "554 not now")

        results = await asyncio.gather(
            *(mailer.ensure() for _ in range(100)), return_exceptions=True
        )

    assert {type(result) for result in results} == {MailServerUnavailableError}
    assert server.sessions == 1


async def test_mails_that_wait_for_a_connection_need_not_each_find_out() -> None:
    async with running_smtp_server() as server, a_mailer(server, connections=2) as mailer:
        server.on("CONNECT", "554 not now")

        results = await asyncio.gather(*(send(mailer) for _ in range(100)), return_exceptions=True)

    assert {type(result) for result in results} == {MailServerUnavailableError}
    assert server.sessions <= 2


async def test_a_refused_sender_stops_everything_and_loses_nothing() -> None:
    async with running_smtp_server() as server, a_mailer(server) as mailer:
        server.on("MAIL", "553 5.7.1 not your address")

        with pytest.raises(MailServerUnavailableError, match="refuses the sender"):
            await send(mailer)


async def test_an_address_that_the_server_can_not_be_told_fails_with_a_reason() -> None:
    plain = SmtpServer(extensions=["PIPELINING"])
    async with running_smtp_server(plain) as server, a_mailer(server) as mailer:
        outcome = await send(mailer, "jörg@example.org")

        assert outcome.status is DeliveryStatus.FAILED
        assert "SMTPUTF8" in outcome.reason
        assert (await send(mailer)).status is DeliveryStatus.SENT
    assert server.sessions == 1


async def test_a_cancelled_mail_takes_its_connection_with_it() -> None:
    async with running_smtp_server() as server, a_mailer(server, connections=1) as mailer:
        server.on("TEXT", STALL, times=1)
        task = asyncio.create_task(send(mailer))
        await until(lambda: server.mails)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert (await send(mailer)).status is DeliveryStatus.SENT
    assert server.sessions == 2


async def test_readiness_asks_the_server_and_remembers_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running_smtp_server() as server, a_mailer(server) as mailer:
        await mailer.check()
        await mailer.check()
        assert server.commands.count("NOOP") == 1

        await server.stop()
        await mailer.check()  # still remembered
        monkeypatch.setattr(mailer_module, "CHECK_SECONDS", 0.0)
        with pytest.raises(MailServerUnavailableError):
            await mailer.check()

        await server.start()
        await mailer.check()


async def test_readiness_is_not_fooled_by_an_idle_connection_that_was_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mailer_module, "CHECK_SECONDS", 0.0)
    async with running_smtp_server() as server, a_mailer(server) as mailer:
        await mailer.check()
        server.on("NOOP", DROP, times=1)

        await mailer.check()

    assert server.sessions == 2


def mails_begun(server: SmtpServer) -> int:
    return sum(command.startswith("MAIL") for command in server.commands)


@pytest.mark.parametrize("point", ["RCPT", "TEXT"])
async def test_a_server_that_is_there_and_answers_no_mail_is_not_ready(
    monkeypatch: pytest.MonkeyPatch, point: Point
) -> None:
    monkeypatch.setattr(mailer_module, "SILENT_SECONDS", 0.0)
    monkeypatch.setattr(link, "SECONDS", dict.fromkeys(Phase, 3600.0))
    async with running_smtp_server() as server, a_mailer(server, connections=5) as mailer:
        server.on(point, STALL)
        two = [asyncio.create_task(send(mailer, f"ada@{name}.example.org")) for name in "ab"]
        await until(lambda: mails_begun(server) == 2)
        await mailer.check()  # two may be slow
        third = asyncio.create_task(send(mailer, "ada@c.example.org"))
        await until(lambda: mails_begun(server) == 3)
        with pytest.raises(MailServerUnavailableError, match="answered no mail"):
            await mailer.check()

        server.forget()
        await send(mailer, "ada@d.example.org")
        await mailer.check()  # one got through, so the three are slow
        for task in (*two, third):
            task.cancel()
        await asyncio.gather(*two, third, return_exceptions=True)
