"""A thousand odd replies: what is one is read, what is none is an error, however it comes."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sender.smtp.replies import MalformedReplyError, Reply, ReplyProtocol
from tests.odd_replies import OddReply, cut, nonsense, odd_replies, replies

pytestmark = pytest.mark.slow  # thousands of examples

A_THOUSAND = settings(max_examples=1_000, deadline=None)
SOME = settings(max_examples=300, deadline=None)


def read(packets: tuple[bytes, ...]) -> tuple[list[Reply], type[Exception]]:
    """All replies, and how the reading ended when the server hung up after them."""

    async def reading() -> tuple[list[Reply], type[Exception]]:
        protocol = ReplyProtocol()
        for packet in packets:
            if packet:  # as a transport does
                protocol.data_received(packet)
        protocol.eof_received()
        found: list[Reply] = []
        while True:
            try:
                found.append(await protocol.read(1))
            except (MalformedReplyError, ConnectionError) as error:
                return found, type(error)

    return asyncio.run(reading())


@given(odd_replies())
@A_THOUSAND
def test_an_odd_reply_is_a_reply_or_an_error(odd: OddReply) -> None:
    found, _ = read(odd.parts)

    assert (found[0].code if found else None) == odd.code
    for reply in found:
        assert 200 <= reply.code <= 599
        assert reply.text.isprintable() or "\ufffd" in reply.text or not reply.text.isascii()
        assert "\n" not in reply.text
        assert str(reply.code) in reply.summary


@st.composite
def any_pieces(draw: st.DrawFn) -> tuple[bytes, ...]:
    """Any bytes in parts."""
    return cut(draw, draw(st.binary(max_size=200)))


@st.composite
def conversations(
    draw: st.DrawFn, *, odd: st.SearchStrategy[bytes]
) -> tuple[list[int], tuple[bytes, ...]]:
    """Codes of replies, and those in parts with something odd behind them."""
    said = draw(st.lists(replies(), max_size=5))
    content = b"".join(reply for _, reply in said) + draw(odd)
    return [code for code, _ in said], cut(draw, content)


@given(conversations(odd=st.just(b"")))
@SOME
def test_replies_in_one_packet_or_many_come_out_one_by_one(
    said: tuple[list[int], tuple[bytes, ...]],
) -> None:
    codes, packets = said

    found, end = read(packets)

    assert [reply.code for reply in found] == codes
    assert end is ConnectionResetError


@st.composite
def nonsense_and_more(draw: st.DrawFn) -> bytes:
    """What is no reply, and a good one behind it."""
    return draw(nonsense()) + b"250 ok\r\n"


@given(conversations(odd=nonsense_and_more()))
@SOME
def test_after_nonsense_nothing_is_read_any_more(
    said: tuple[list[int], tuple[bytes, ...]],
) -> None:
    codes, packets = said

    found, end = read(packets)

    assert [reply.code for reply in found] == codes
    assert end is MalformedReplyError


@given(any_pieces())
@SOME
def test_how_bytes_are_cut_makes_no_difference(packets: tuple[bytes, ...]) -> None:
    assert read((b"".join(packets),)) == read(packets)
