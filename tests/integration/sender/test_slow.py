"""Recipients for whom the server takes its time, beside others: they hold up nobody else."""

import asyncio

import pytest

from common.contracts.notifications import DeliveryStatus
from common.errors import DestinationBusyError, MailServerUnavailableError
from sender import mailer as mailer_module
from sender.mailer import Outcome, SmtpMailer
from sender.smtp import pool
from sender.smtp import transport as link
from sender.smtp.errors import BusyDestinationError
from sender.smtp.replies import Phase
from tests.amqp import eventually
from tests.integration.sender.test_mailer import a_mailer, send
from tests.polling import until
from tools.testing.smtp_server import STALL, Hold, Point, SmtpServer, running_smtp_server

SIZE = 4
MOST = SIZE * pool.MOST_PER_PLACE
SHARE = int(MOST * pool.SHARE)


@pytest.fixture(autouse=True)
def other_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server may take its time; what is slow is so soon."""
    monkeypatch.setattr(link, "SECONDS", dict.fromkeys(Phase, 3600.0))
    monkeypatch.setattr(pool, "SLOW_SECONDS", 0.2)
    monkeypatch.setattr(pool, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(pool, "SLOW_REPLY_SECONDS", 0.4)


def started(
    mailer: SmtpMailer, count: int, domain: str, prefix: str = "a"
) -> list[asyncio.Task[Outcome]]:
    return [
        asyncio.create_task(send(mailer, f"{prefix}{number}@{domain}")) for number in range(count)
    ]


async def all_sent(tasks: list[asyncio.Task[Outcome]]) -> None:
    async with asyncio.timeout(60):
        outcomes = await asyncio.gather(*tasks)
    assert {outcome.status for outcome in outcomes} == {DeliveryStatus.SENT}


@pytest.mark.parametrize("point", ["RCPT", "TEXT"])
@pytest.mark.parametrize("count", [4, 20, 200])
async def test_slow_recipients_hold_up_nobody_else(point: Point, count: int) -> None:
    async with running_smtp_server() as server, a_mailer(server, connections=SIZE) as mailer:
        held = Hold("250 ok")
        server.on(point, held, to="@slow.example")
        slow = started(mailer, count, "slow.example")
        good = started(mailer, 20, "example.org", "b")

        await all_sent(good)
        is_any_sent = any(task.done() and not task.exception() for task in slow)
        assert server.most_seen <= MOST
        held.released.set()
        results = await asyncio.gather(*slow, return_exceptions=True)

    assert point != "TEXT" or not is_any_sent
    for result in results:  # none is lost, none counted as refused
        if isinstance(result, Outcome):
            assert result.status in (DeliveryStatus.SENT, DeliveryStatus.DEFERRED)
        else:
            assert isinstance(result, DestinationBusyError)
    sent = [result for result in results if isinstance(result, Outcome)]
    assert len(sent) == count or len(sent) >= SHARE


@pytest.mark.parametrize("count", [4, 20])
async def test_slow_recipients_hold_up_nobody_at_their_own_domain(count: int) -> None:
    async with running_smtp_server() as server, a_mailer(server, connections=SIZE) as mailer:
        held = Hold("250 ok")
        for number in range(count):
            server.on("TEXT", held, to=f"a{number}@example.org")
        slow = started(mailer, count, "example.org")
        await all_sent(started(mailer, 20, "example.org", "b"))

        assert not any(task.done() for task in slow)
        held.released.set()
        await all_sent(slow)
    assert len(server.mails) == count + 20


async def test_slow_recipients_of_many_domains_are_put_off_before_their_texts() -> None:
    async with running_smtp_server() as server, a_mailer(server, connections=SIZE) as mailer:
        held = Hold("250 ok")
        for number in range(100):
            server.on("RCPT", held, to=f"a0@slow{number}.example")
        slow = [
            task for number in range(100) for task in started(mailer, 1, f"slow{number}.example")
        ]
        await all_sent(started(mailer, 20, "example.org", "b"))
        held.released.set()
        outcomes = await asyncio.gather(*slow)

    put_off = [outcome for outcome in outcomes if outcome.status is DeliveryStatus.DEFERRED]
    assert put_off
    assert {"It took too long" in outcome.reason for outcome in put_off} == {True}
    assert len(server.mails) == 120 - len(put_off)


async def test_slow_recipients_of_many_domains_are_not_put_off_after_their_texts() -> None:
    """The server may have them: they would go out twice."""
    async with running_smtp_server() as server, a_mailer(server, connections=SIZE) as mailer:
        held = Hold("250 ok")
        for number in range(MOST + 10):
            server.on("TEXT", held, to=f"a0@slow{number}.example")
        slow = [
            task
            for number in range(MOST + 10)
            for task in started(mailer, 1, f"slow{number}.example")
        ]
        await until(lambda: server.most_seen == MOST, "all connections")
        done, _ = await asyncio.wait(
            slow, timeout=5 * pool.SLOW_REPLY_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )

        assert not done
        held.released.set()
        await all_sent(slow)
    recipients = [recipient for mail in server.mails for recipient in mail.recipients]
    assert len(recipients) == len(set(recipients)) == MOST + 10


async def test_a_server_that_wants_no_more_connections_is_not_away() -> None:
    limited = SmtpServer(most_sessions=SIZE + 1)
    async with running_smtp_server(limited) as server, a_mailer(server, connections=SIZE) as mailer:
        held = Hold("250 ok")
        server.on("TEXT", held, to="@slow.example")
        slow = started(mailer, SIZE, "slow.example")
        await all_sent(started(mailer, 20, "example.org", "b"))

        assert not any(task.done() for task in slow)
        held.released.set()
        await all_sent(slow)


async def test_a_mail_that_is_slow_for_once_leaves_no_more_connections_behind() -> None:
    async with running_smtp_server() as server, a_mailer(server, connections=SIZE) as mailer:
        held = Hold("250 ok")
        server.on("TEXT", held, to="@slow.example")
        slow = started(mailer, SIZE, "slow.example")
        await all_sent(started(mailer, 20, "example.org", "b"))
        held.released.set()
        await all_sent(slow)
        before = server.sessions
        await all_sent(started(mailer, 200, "example.org", "c"))

        assert server.sessions == before
    assert server.most_seen <= 2 * SIZE + 1


@pytest.mark.parametrize("busy", [0, 1, SIZE])
async def test_a_server_that_hangs_is_not_ready_however_busy_it_is(
    monkeypatch: pytest.MonkeyPatch, busy: int
) -> None:
    monkeypatch.setattr(mailer_module, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(mailer_module, "CHECK_SECONDS", 0.0)
    async with running_smtp_server() as server, a_mailer(server, connections=SIZE) as mailer:
        await mailer.check()
        points: tuple[Point, ...] = ("CONNECT", "MAIL", "NOOP")
        for point in points:
            server.on(point, STALL)
        in_progress = started(mailer, busy, "example.org")
        await until(lambda: server.commands.count("MAIL FROM:<us@example.com>") >= min(busy, 1))

        for _ in range(3):
            with pytest.raises(MailServerUnavailableError, match="no answer within"):
                await mailer.check()
        server.forget()
        server.hang_up()

        async def ready() -> bool:
            try:
                await mailer.check()
            except MailServerUnavailableError:
                return False
            return True

        await eventually(ready, "the mailer being ready")
        await asyncio.gather(*in_progress, return_exceptions=True)


async def test_a_server_that_is_slow_with_a_mail_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailer_module, "CHECK_SECONDS", 0.0)
    async with running_smtp_server() as server, a_mailer(server, connections=SIZE) as mailer:
        held = Hold("250 ok")
        server.on("TEXT", held)
        slow = started(mailer, SIZE, "slow.example")
        await until(lambda: len(server.mails) == SIZE)

        await mailer.check()
        held.released.set()
        await all_sent(slow)


async def test_a_mail_that_is_called_off_as_it_is_sent_elsewhere_is_called_off() -> None:
    async with running_smtp_server() as server, a_mailer(server, connections=1) as mailer:
        held = Hold("250 ok")
        server.on("RCPT", held, to="@slow.example")
        slow = started(mailer, 1, "slow.example")
        waiting = asyncio.create_task(send(mailer, "b@slow.example"))
        queue = mailer._pool._waiting
        await until(lambda: bool(queue), "waiting for the connection")

        queue[0].turn.set_exception(BusyDestinationError())
        waiting.cancel()

        with pytest.raises(asyncio.CancelledError):
            await waiting
        held.released.set()
        await all_sent(slow)
