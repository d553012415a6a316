"""Whatever way the bytes come: handlers get their frames, aiormq all the others."""

import asyncio
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, cast

import pytest
from aiormq.abc import AbstractChannel
from hypothesis import given, settings
from hypothesis import strategies as st
from yarl import URL

from common.amqp import frame_filter, frames
from common.amqp.frame_filter import KEEPALIVE_SECONDS, FrameFilter, FrameFilterFactory

Frame = tuple[int, int, bytes]
"""Type, channel, payload."""


class FakeReader(asyncio.Protocol):
    """Stands for aiormq's end of the connection."""

    def __init__(self) -> None:
        self.received = b""
        self.heard: list[object] = []

    def data_received(self, data: bytes) -> None:
        self.received += data

    def eof_received(self) -> bool:
        self.heard.append("eof")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.heard.append(("lost", exc))

    def pause_writing(self) -> None:
        self.heard.append("pause")

    def resume_writing(self) -> None:
        self.heard.append("resume")

    @property
    def frames(self) -> list[Frame]:
        return [read for read in split(self.received) if read != HEARTBEAT]


class FakeTransport(asyncio.Transport):
    def __init__(self, protocol: asyncio.BaseProtocol) -> None:
        super().__init__()
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol


class FakeHandler:
    """Takes the frames that ``wants`` says."""

    def __init__(self, wants: Callable[[bytes], bool] = lambda _payload: True) -> None:
        self.wants = wants
        self.taken: list[tuple[int, bytes]] = []

    def feed_frame(self, kind: int, data: bytes, start: int, stop: int) -> bool:
        if wanted := self.wants(data[start:stop]):
            self.taken.append((kind, data[start:stop]))
        return wanted

    def end(self) -> None:
        raise AssertionError("The broker has not closed the connection.")


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class FakeChannel:
    def __init__(self, number: int) -> None:
        self.number = number


HEARTBEAT: Frame = (frames.HEARTBEAT, 0, b"")


def split(stream: bytes) -> Iterator[Frame]:
    while stream:
        kind, channel, size = frames.HEAD.unpack_from(stream)
        end = frames.OVERHEAD + size
        yield kind, channel, stream[frames.HEAD.size : end - 1]
        stream = stream[end:]


def joined(sent: list[Frame]) -> bytes:
    return b"".join(frames.frame(*each) for each in sent)


def chunks(stream: bytes, cuts: list[int]) -> Iterator[bytes]:
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    for start, end in pairwise(edges):
        yield stream[start:end]


def installed(**handlers: FakeHandler) -> tuple[FrameFilter, FakeReader]:
    """A filter and aiormq's end behind it; ``c1=`` takes from channel 1."""
    reader, filtered = FakeReader(), FrameFilter()
    transport = FakeTransport(reader)
    filtered.install(transport)
    assert transport.get_protocol() is filtered
    assert filtered.transport is transport
    for name, handler in handlers.items():
        filtered.attach(cast("AbstractChannel", FakeChannel(int(name[1:]))), handler)
    return filtered, reader


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fake = FakeClock()
    monkeypatch.setattr(frame_filter, "time", fake)
    return fake


any_frame = st.tuples(
    st.sampled_from([frames.METHOD, frames.HEADER, frames.BODY]),
    st.integers(0, 3),
    st.binary(max_size=20),
)
any_cuts = st.lists(st.integers(0, 10_000), max_size=30)


@settings(max_examples=200)
@given(sent=st.lists(any_frame, max_size=15), cuts=any_cuts)
def test_each_gets_its_frames_in_order_however_the_stream_is_cut(
    sent: list[Frame], cuts: list[int]
) -> None:
    choosy, greedy = FakeHandler(lambda payload: payload[:1] > b"\x60"), FakeHandler()
    filtered, reader = installed(c1=choosy, c2=greedy)

    for chunk in chunks(joined(sent), cuts):
        filtered.data_received(chunk)

    assert choosy.taken == [
        (kind, payload) for kind, number, payload in sent if number == 1 and payload[:1] > b"\x60"
    ]
    assert greedy.taken == [(kind, payload) for kind, number, payload in sent if number == 2]
    assert reader.frames == [
        (kind, number, payload)
        for kind, number, payload in sent
        if number in (0, 3) or (number == 1 and payload[:1] <= b"\x60")
    ]


def test_one_byte_at_a_time_is_enough() -> None:
    handler = FakeHandler()
    filtered, reader = installed(c1=handler)

    for byte in joined([(1, 1, b"abc"), (2, 7, b""), (3, 1, b"")]):
        filtered.data_received(bytes([byte]))

    assert handler.taken == [(1, b"abc"), (3, b"")]
    assert reader.frames == [(2, 7, b"")]


def test_a_frame_is_taken_as_soon_as_it_is_whole() -> None:
    handler = FakeHandler()
    filtered, reader = installed(c1=handler)

    filtered.data_received(joined([(1, 1, b"a"), (1, 2, b"b")]) + b"\1\0\1")

    assert handler.taken == [(1, b"a")]
    assert reader.frames == [(1, 2, b"b")]


# -- keepalive ------------------------------------------------------------------------------


def test_aiormq_hears_of_taken_frames_once_a_second(clock: FakeClock) -> None:
    filtered, reader = installed(c1=FakeHandler())

    def heartbeats_after(seconds: float) -> int:
        clock.now += seconds
        reader.received = b""
        filtered.data_received(joined([(1, 1, b"a"), (3, 1, b"b")]))
        return list(split(reader.received)).count(HEARTBEAT)

    assert heartbeats_after(0) == 1
    assert heartbeats_after(0) == 0
    assert heartbeats_after(KEEPALIVE_SECONDS - 0.25) == 0
    assert heartbeats_after(0.25) == 1
    assert heartbeats_after(0.5) == 0


def test_nothing_is_added_while_nothing_is_taken(clock: FakeClock) -> None:
    filtered, reader = installed(c1=FakeHandler(lambda _payload: False))

    for _ in range(3):
        clock.now += 10
        filtered.data_received(joined([(1, 1, b"a"), HEARTBEAT]) + b"\1")

    assert reader.received == joined([(1, 1, b"a"), HEARTBEAT])


def test_the_heartbeats_of_the_broker_reach_aiormq() -> None:
    handler = FakeHandler()
    filtered, reader = installed(c1=handler)

    filtered.data_received(frames.A_HEARTBEAT)

    assert reader.received == frames.A_HEARTBEAT
    assert not handler.taken


# -- what is no AMQP ------------------------------------------------------------------------


@settings(max_examples=200)
@given(
    sent=st.lists(any_frame, max_size=3),
    first=st.integers(0, 255).filter(lambda byte: byte not in (1, 2, 3, 8)),
    rest=st.binary(max_size=60),
    cuts=any_cuts,
)
def test_what_is_no_amqp_reaches_aiormq_whole(
    sent: list[Frame], first: int, rest: bytes, cuts: list[int]
) -> None:
    foreign = bytes([first]) + rest
    filtered, reader = installed(c1=FakeHandler(), c2=FakeHandler())

    for chunk in chunks(joined(sent) + foreign, cuts):
        filtered.data_received(chunk)
    if len(foreign) >= frames.OVERHEAD:  # fewer may be the beginning of a frame
        assert reader.received.endswith(foreign)
    filtered.eof_received()

    assert reader.received.endswith(foreign)
    before = split(reader.received[: -len(foreign)])
    assert [read for read in before if read != HEARTBEAT] == [
        each for each in sent if each[1] in (0, 3)
    ]


def test_a_frame_without_its_end_is_not_taken_nor_anything_after_it() -> None:
    handler = FakeHandler()
    filtered, reader = installed(c1=handler)
    broken = joined([(1, 1, b"second")])[:-1] + b"\0" + joined([(1, 1, b"third")])

    filtered.data_received(joined([(1, 1, b"first")]) + broken)
    filtered.data_received(joined([(1, 1, b"fourth")]))

    assert handler.taken == [(1, b"first")]
    assert reader.received.removeprefix(frames.A_HEARTBEAT) == broken + joined([(1, 1, b"fourth")])


# -- the life of the connection -------------------------------------------------------------


def test_the_beginning_of_a_frame_reaches_aiormq_when_no_more_comes() -> None:
    filtered, reader = installed(c1=FakeHandler())

    filtered.data_received(b"\1\0\1")
    assert reader.received == b""
    filtered.eof_received()
    filtered.connection_lost(None)

    assert reader.received == b"\1\0\1"


def test_all_that_the_loop_says_is_handed_on() -> None:
    filtered, reader = installed()
    failure = ConnectionResetError()

    filtered.pause_writing()
    filtered.resume_writing()
    assert filtered.eof_received() is True
    filtered.connection_lost(failure)

    assert reader.heard == ["pause", "resume", "eof", ("lost", failure)]


async def test_the_factory_puts_it_between_the_socket_and_aiormq() -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(joined([(1, 5, b"taken"), (1, 0, b"left")]))
        writer.close()

    handler, filtered = FakeHandler(), FrameFilter()
    filtered.attach(cast("AbstractChannel", FakeChannel(5)), handler)
    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        options: dict[str, Any] = {"ssl_context_provider": None}

        reader, writer = await FrameFilterFactory(filtered).create(
            URL(f"amqp://127.0.0.1:{port}"), **options
        )
        received = await asyncio.wait_for(reader.read(-1), timeout=10)
        writer.close()
        await writer.wait_closed()

    assert handler.taken == [(1, b"taken")]
    assert [read for read in split(received) if read != HEARTBEAT] == [(1, 0, b"left")]
    assert filtered.transport is writer.transport
