"""The mail server misbehaves by the seed, and keeps count by recipient."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tools.chaos.mail_server import SHARES, FaultyMailServer, SmtpFault, fault_for, is_odd
from tools.testing.smtp_server import running_smtp_server

MAIL = b"From: a@example.org\r\nMessage-ID: <one@example.org>\r\n\r\nHello.\r\n.\r\n"


def recipient_with(fault: SmtpFault | None, *, odd: bool = False) -> str:
    """Somebody whose first mail meets that fault."""
    for number in range(10_000):
        address = f"p{number}@example.org"
        if fault_for(1, address, 1) is fault and is_odd(address) == odd:
            return address
    raise AssertionError(fault)


@pytest.fixture
async def server() -> AsyncIterator[FaultyMailServer]:
    server = FaultyMailServer(seed=1)
    async with running_smtp_server(server):
        yield server


async def send(server: FaultyMailServer, recipient: str) -> list[str]:
    """The replies to each command until the server closes or the mail is out."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    replies = [(await reader.readline()).decode()]
    for command in (
        b"MAIL FROM:<a@example.org>",
        b"RCPT TO:<" + recipient.encode() + b">",
        b"DATA",
    ):
        writer.write(command + b"\r\n")
        replies.append((await reader.readline()).decode())
        if replies[-1][:1] in "45":
            break
    else:
        writer.write(MAIL)
        replies.append((await asyncio.wait_for(reader.readline(), 10)).decode())
    writer.close()
    return replies


def test_the_same_seed_plays_the_same_faults() -> None:
    addresses = [f"p{n}@example.org" for n in range(200)]

    assert [fault_for(3, each, 1) for each in addresses] == [
        fault_for(3, each, 1) for each in addresses
    ]
    assert [fault_for(3, each, 1) for each in addresses] != [
        fault_for(4, each, 1) for each in addresses
    ]


def test_faults_are_as_frequent_as_they_should_be() -> None:
    played = [fault_for(1, f"p{n}@example.org", 1) for n in range(20_000)]

    for fault, share in SHARES:
        assert played.count(fault) / len(played) == pytest.approx(share, abs=0.01)


async def test_some_are_hung_up_on_whenever_they_come(server: FaultyMailServer) -> None:
    recipient = recipient_with(SmtpFault.HANG_UP)

    replies = [await send(server, recipient) for _ in range(3)]

    assert {reply[-1] for reply in replies} == {"421 4.3.2 not now\r\n"}
    assert server.faulted[SmtpFault.HANG_UP][recipient] == 3
    assert server.taken == []
    played = [fault_for(1, f"p{n}@example.org", 1) for n in range(20_000)]
    assert played.count(SmtpFault.HANG_UP) / len(played) == pytest.approx(0.01, abs=0.003)


async def test_a_mail_is_taken_and_known_by_its_id(server: FaultyMailServer) -> None:
    recipient = recipient_with(None)

    replies = await send(server, recipient)

    assert replies[-1].startswith("250")
    assert [(mail.message_id, mail.recipient) for mail in server.taken] == [("one", recipient)]


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize(("fault", "code"), [(SmtpFault.DEFER, "451"), (SmtpFault.REFUSE, "550")])
async def test_a_mail_is_put_off_or_refused(
    server: FaultyMailServer, fault: SmtpFault, code: str, *, odd: bool
) -> None:
    recipient = recipient_with(fault, odd=odd)

    replies = await send(server, recipient)

    assert replies[-1].startswith(code)
    assert server.faulted[fault][recipient] == 1
    assert server.taken == []


@pytest.mark.parametrize(
    ("fault", "taken"), [(SmtpFault.DROP_IN_TEXT, 0), (SmtpFault.DROP_AFTER_DOT, 1)]
)
async def test_the_connection_is_dropped(
    server: FaultyMailServer, fault: SmtpFault, taken: int
) -> None:
    recipient = recipient_with(fault)

    replies = await send(server, recipient)

    assert replies[-1] == ""
    assert server.faulted[fault][recipient] == 1
    assert len(server.taken) == taken


async def test_it_behaves_once_it_is_told_to(server: FaultyMailServer) -> None:
    server.misbehaves = False

    replies = await send(server, recipient_with(SmtpFault.DROP_AFTER_DOT))

    assert replies[-1].startswith("250")
    assert not server.faults
