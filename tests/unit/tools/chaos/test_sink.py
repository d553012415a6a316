"""The mail server misbehaves by the seed, and keeps count by recipient."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tools.chaos.sink import SHARES, Sink, SmtpFault, hash_of, trick_for

MAIL = b"From: a@example.org\r\nMessage-ID: <one@example.org>\r\n\r\nHello.\r\n.\r\n"


def recipient_with(fault: SmtpFault | None, *, odd: bool = False) -> str:
    """Somebody whose first mail meets that fault."""
    for number in range(10_000):
        address = f"p{number}@example.org"
        if trick_for(1, address, 1) is fault and hash_of(address) % 2 == odd:
            return address
    raise AssertionError(fault)


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    sink = Sink(1)
    await sink.start()
    yield sink
    await sink.stop()


async def send(sink: Sink, recipient: str) -> list[str]:
    """The replies to each command until the server closes or the mail is out."""
    reader, writer = await asyncio.open_connection("127.0.0.1", sink.port)
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


def test_the_same_seed_plays_the_same_tricks() -> None:
    addresses = [f"p{n}@example.org" for n in range(200)]

    assert [trick_for(3, each, 1) for each in addresses] == [
        trick_for(3, each, 1) for each in addresses
    ]
    assert [trick_for(3, each, 1) for each in addresses] != [
        trick_for(4, each, 1) for each in addresses
    ]


def test_tricks_are_as_frequent_as_they_should_be() -> None:
    played = [trick_for(1, f"p{n}@example.org", 1) for n in range(20_000)]

    for fault, share in SHARES:
        assert played.count(fault) / len(played) == pytest.approx(share, abs=0.01)


async def test_some_are_hung_up_on_whenever_they_come(sink: Sink) -> None:
    recipient = recipient_with(SmtpFault.HANG_UP)

    replies = [await send(sink, recipient) for _ in range(3)]

    assert {reply[-1] for reply in replies} == {"421 4.3.2 not now\r\n"}
    assert sink.faulted[SmtpFault.HANG_UP][recipient] == 3
    assert sink.accepted == []
    played = [trick_for(1, f"p{n}@example.org", 1) for n in range(20_000)]
    assert played.count(SmtpFault.HANG_UP) / len(played) == pytest.approx(0.01, abs=0.003)


async def test_a_mail_is_taken_and_known_by_its_id(sink: Sink) -> None:
    recipient = recipient_with(None)

    replies = await send(sink, recipient)

    assert replies[-1].startswith("250")
    assert [(mail.message_id, mail.recipient) for mail in sink.accepted] == [("one", recipient)]


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize(("fault", "code"), [(SmtpFault.DEFER, "451"), (SmtpFault.REFUSE, "550")])
async def test_a_mail_is_put_off_or_refused(
    sink: Sink, fault: SmtpFault, code: str, *, odd: bool
) -> None:
    recipient = recipient_with(fault, odd=odd)

    replies = await send(sink, recipient)

    assert replies[-1].startswith(code)
    assert sink.faulted[fault][recipient] == 1
    assert sink.accepted == []


@pytest.mark.parametrize(
    ("fault", "taken"), [(SmtpFault.DROP_IN_TEXT, 0), (SmtpFault.DROP_AFTER_DOT, 1)]
)
async def test_the_connection_is_dropped(sink: Sink, fault: SmtpFault, taken: int) -> None:
    recipient = recipient_with(fault)

    replies = await send(sink, recipient)

    assert replies[-1] == ""
    assert sink.faulted[fault][recipient] == 1
    assert len(sink.accepted) == taken


async def test_it_behaves_once_it_is_told_to(sink: Sink) -> None:
    sink.misbehaves = False

    replies = await send(sink, recipient_with(SmtpFault.DROP_AFTER_DOT))

    assert replies[-1].startswith("250")
    assert not sink.faults
