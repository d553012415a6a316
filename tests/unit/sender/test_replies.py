import asyncio
import random

import pytest

from sender.smtp.replies import MalformedReplyError, Reply, ReplyProtocol


async def read_all(*packets: bytes, count: int) -> list[str]:
    protocol = ReplyProtocol()
    for packet in packets:
        protocol.data_received(packet)
    return [str(await protocol.read(1)) for _ in range(count)]


async def test_replies_come_out_in_the_order_they_came_in() -> None:
    replies = await read_all(b"250 one\r\n250 two\r\n354 go\r\n", count=3)

    assert replies == ["250 one", "250 two", "354 go"]


async def test_a_line_means_the_same_whatever_it_meant_before() -> None:
    packet = b"250 ok\r\n250-ok\r\n250 ok\r\n250 ok\r\n250-ok\r\n250 ok\r\n"

    assert await read_all(packet, count=4) == ["250 ok", "250 ok ok", "250 ok", "250 ok ok"]


async def test_a_reply_may_come_in_pieces_and_span_lines() -> None:
    reply = b"250-first\r\n250-second\r\n250 third\r\n"
    in_pieces = [reply[place : place + 1] for place in range(len(reply))]

    assert await read_all(*in_pieces, count=1) == ["250 first second third"]


@pytest.mark.parametrize(
    ("bytes_", "expected"),
    [
        (b"250\r\n", "250"),
        (b"250 \r\n", "250"),
        (b"250 no carriage return\n", "250 no carriage return"),
        (b"550 caf\xe9 \x00\x1b[31mred\r\n", "550 caf\ufffd  [31mred"),
        (b"421-\r\n421 \r\n", "421"),
        (b"250 " + b"x" * 10_000 + b"\r\n", "250 " + "x" * 10_000),
    ],
)
async def test_what_can_be_understood_is(bytes_: bytes, expected: str) -> None:
    assert await read_all(bytes_, count=1) == [expected]


@pytest.mark.parametrize(
    "bytes_",
    [
        b"\r\n",
        b"OK\r\n",
        b"999 what\r\n",
        b"199 what\r\n",
        b"25\r\n",
        b"2500 what\r\n",
        b"250x\r\n",
        b"-250 what\r\n",
        b"\xff\xfe\x00\r\n",
        b"250-one\r\n550 two\r\n",
        b"250-one\r\nwhat\r\n",
        b"x" * 70_000,
        b"250-more\r\n" * 10_000,
    ],
)
async def test_what_is_no_reply_ends_the_reading(bytes_: bytes) -> None:
    protocol = ReplyProtocol()
    protocol.data_received(bytes_)
    protocol.data_received(b"250 too late\r\n")

    with pytest.raises(MalformedReplyError):
        await protocol.read(1)
    assert protocol.ended


async def test_any_bytes_are_a_reply_or_an_error() -> None:
    dice = random.Random(5321)  # noqa: S311 - to be repeated, not to be secret
    alphabet = b"2345019 -\r\n\x00\xffok"
    for _ in range(1000):
        protocol = ReplyProtocol()
        protocol.data_received(bytes(dice.choices(alphabet, k=dice.randrange(1, 60))))
        protocol.eof_received()
        try:
            reply = await protocol.read(1)
        except (MalformedReplyError, ConnectionError):
            continue
        assert 200 <= reply.code <= 599


async def test_waiting_ends_with_the_link() -> None:
    protocol = ReplyProtocol()
    waiting = asyncio.create_task(protocol.read(5))
    await asyncio.sleep(0)
    protocol.connection_lost(None)

    with pytest.raises(ConnectionError):
        await waiting


async def test_what_came_before_the_end_is_still_read() -> None:
    protocol = ReplyProtocol()
    protocol.data_received(b"550 no\r\n")
    protocol.connection_lost(None)

    assert (await protocol.read(1)).code == 550
    with pytest.raises(ConnectionError):
        await protocol.read(1)


async def test_half_a_reply_is_not_a_reply() -> None:
    protocol = ReplyProtocol()
    protocol.data_received(b"250 ok")
    protocol.eof_received()

    with pytest.raises(ConnectionError):
        await protocol.read(1)


@pytest.mark.parametrize(
    ("text", "summary"),
    [
        ("5.1.1 <ada@example.org>: no such user", "550 5.1.1"),
        ("<ada@example.org>: no such user", "550"),
        ("5.1.1", "550 5.1.1"),
        ("5.1.1ada@example.org", "550"),
    ],
)
def test_the_summary_of_a_reply_names_nobody(text: str, summary: str) -> None:
    assert Reply(550, text).summary == summary
