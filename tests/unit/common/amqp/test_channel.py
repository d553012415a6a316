"""What a channel writes, and what it makes of the broker's answers; against a broker of paper."""

import asyncio
import gc
import math
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiormq.channel import Channel as AiormqChannel
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import body, commands, header
from pamqp import frame as pamqp_frame

from common.amqp import channel as channel_module
from common.amqp import confirms
from common.amqp.channel import Channel
from common.amqp.confirms import Confirmation
from common.amqp.frame_filter import FrameFilter
from common.amqp.frames import A_HEARTBEAT, HEADER, frame
from common.amqp.message import Delivery
from common.errors import BrokerUnavailableError, UnroutableError

CHANNEL = 3
FRAME_MAX = 4096


class FakeTransport(asyncio.Transport):
    """Remembers every write; like the real ones it takes none after the end."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.unsent = 0
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.closing:
            raise RuntimeError("Cannot call write() after write_eof()")
        self.writes.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return self.closing

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol


class FakeReader(asyncio.Protocol):
    """Stands for aiormq's end of the connection."""

    def __init__(self) -> None:
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data.replace(A_HEARTBEAT, b"")


class FakeAiormqChannel:
    """As much of aiormq's channel as ours uses."""

    def __init__(self, *, frame_max: int = FRAME_MAX) -> None:
        self.number = CHANNEL
        self.connection = SimpleNamespace(connection_tune=SimpleNamespace(frame_max=frame_max))
        self.closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.consumes: list[tuple[str, str, dict[str, Any]]] = []

    @property
    def is_closed(self) -> bool:
        return self.closing.done()

    async def basic_consume(
        self, queue: str, _callback: object, *, consumer_tag: str, arguments: dict[str, Any]
    ) -> None:
        self.consumes.append((queue, consumer_tag, arguments))


class Paper:
    """A channel, and the broker at its other end."""

    def __init__(self, *, frame_max: int = FRAME_MAX) -> None:
        self.transport, self.reader = FakeTransport(), FakeReader()
        self.transport.set_protocol(self.reader)
        self.filter = FrameFilter()
        self.filter.install(self.transport)
        self.underlying = FakeAiormqChannel(frame_max=frame_max)
        self.channel = Channel(cast("AiormqChannel", self.underlying), self.filter)
        self.deliveries: list[tuple[int, Delivery]] = []
        self._read = 0

    def publish(self, message_id: str = "m", content: bytes = b"{}") -> Confirmation:
        return self.channel.publish(
            "exchange", "key", content, properties={"message_id": message_id}, headers={}
        )

    async def consume(self) -> None:
        await self.channel.consume(
            "queue", "consumer", lambda tag, delivery: self.deliveries.append((tag, delivery))
        )

    def says(self, *words: Any) -> None:
        """The broker sends frames, in one write."""
        self.filter.data_received(b"".join(marshalled(word) for word in words))

    def delivers(self, tag: int, content: bytes = b"{}", **properties: Any) -> None:
        deliver = commands.Basic.Deliver("consumer", tag, exchange="exchange", routing_key="key")
        self.says(deliver, *a_message(content, **properties))

    def returns(self, message_id: str | None, content: bytes = b"{}") -> None:
        self.says(
            commands.Basic.Return(312, "NO_ROUTE", "exchange", "key"),
            *a_message(content, message_id=message_id),
        )

    def turn(self, message_id: str) -> asyncio.Future[None]:
        return asyncio.ensure_future(self.channel.confirms.wait_until_resolved(message_id))

    def read(self) -> list[Any]:
        """What the broker has read since it was last asked."""
        new, self._read = self.transport.writes[self._read :], len(self.transport.writes)
        return list(unmarshalled(b"".join(new)))

    def loses_the_channel(self) -> None:
        self.underlying.closing.set_exception(ConnectionResetError())
        self.underlying.closing.exception()


def a_message(content: bytes, *, chunk: int = 1000, **properties: Any) -> list[Any]:
    return [
        header.ContentHeader(0, len(content), commands.Basic.Properties(**properties)),
        *(
            body.ContentBody(content[start : start + chunk])
            for start in range(0, len(content), chunk)
        ),
    ]


def marshalled(word: Any) -> bytes:
    return pamqp_frame.marshal(word, CHANNEL)


def unmarshalled(stream: bytes) -> Iterator[Any]:
    while stream:
        consumed, channel, read = pamqp_frame.unmarshal(stream)
        assert channel == CHANNEL
        yield read
        stream = stream[consumed:]


async def a_turn() -> None:
    """Let everything run that is due."""
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.fixture
async def paper() -> Paper:
    return Paper()


# -- writing --------------------------------------------------------------------------------


async def test_what_is_published_in_one_turn_leaves_in_one_write(paper: Paper) -> None:
    for number in range(5):
        paper.publish(str(number))
    assert paper.transport.writes == []

    await a_turn()

    assert len(paper.transport.writes) == 1
    heads = [read for read in paper.read() if isinstance(read, header.ContentHeader)]
    assert [head.properties.message_id for head in heads] == ["0", "1", "2", "3", "4"]


async def test_the_next_turn_writes_what_is_new_alone(paper: Paper) -> None:
    paper.publish("first")
    await a_turn()
    await a_turn()
    paper.publish("second")
    await a_turn()

    assert len(paper.transport.writes) == 2
    assert b"first" not in paper.transport.writes[1]


async def test_publishes_and_acks_of_one_turn_leave_together(paper: Paper) -> None:
    await paper.consume()
    paper.delivers(1)

    paper.channel.acknowledge(1)
    paper.publish()
    await a_turn()

    assert len(paper.transport.writes) == 1
    assert [type(read).__name__ for read in paper.read()] == [
        *("Publish", "ContentHeader", "ContentBody"),
        "Ack",
    ]


async def test_flush_writes_at_once_and_nothing_twice(paper: Paper) -> None:
    paper.publish()

    paper.channel.flush()
    assert len(paper.transport.writes) == 1
    paper.channel.flush()
    await a_turn()

    assert len(paper.transport.writes) == 1


@pytest.mark.parametrize(("agreed", "payload"), [(5000, 4992), (0, 4088)])
async def test_bodies_are_cut_to_the_frames_that_were_agreed(agreed: int, payload: int) -> None:
    paper = Paper(frame_max=agreed)

    paper.publish(content=bytes(payload + 1))
    await a_turn()

    bodies = [read for read in paper.read() if isinstance(read, body.ContentBody)]
    assert [len(read.value) for read in bodies] == [payload, 1]


async def test_what_can_not_be_written_raises_and_counts_for_nothing(paper: Paper) -> None:
    with pytest.raises(ValueError, match="range"):
        paper.publish("x" * 256)
    assert not paper.channel.confirms.is_unconfirmed("x" * 256)

    confirmation = paper.publish("fits")
    paper.says(commands.Basic.Ack(1))
    await confirmation


async def test_a_broker_that_does_not_read_gets_no_more_until_it_does(paper: Paper) -> None:
    paper.transport.unsent = channel_module.UNSENT_BYTES + 1
    with pytest.raises(BrokerUnavailableError, match="not reading"):
        paper.publish("refused")
    paper.transport.unsent = channel_module.UNSENT_BYTES
    taken = paper.publish("taken")
    await a_turn()

    assert not paper.channel.confirms.is_unconfirmed("refused")
    heads = [read for read in paper.read() if isinstance(read, header.ContentHeader)]
    assert [head.properties.message_id for head in heads] == ["taken"]
    paper.says(commands.Basic.Ack(1))
    await taken


# -- confirms -------------------------------------------------------------------------------


async def test_a_confirm_is_for_its_message_alone(paper: Paper) -> None:
    first, second, third = (paper.publish(name) for name in "abc")

    paper.says(commands.Basic.Ack(2))

    assert [each.done() for each in (first, second, third)] == [False, True, False]
    assert [paper.channel.confirms.is_unconfirmed(name) for name in "abc"] == [True, False, True]
    await second


async def test_one_confirm_stands_for_all_before_it(paper: Paper) -> None:
    confirmations = [paper.publish(str(number)) for number in range(5)]

    paper.says(commands.Basic.Ack(2), commands.Basic.Ack(4, multiple=True))

    assert [each.done() for each in confirmations] == [True] * 4 + [False]
    assert all(each.exception() is None for each in confirmations[:4])


async def test_a_refusal_stands_for_all_before_it_too(paper: Paper) -> None:
    confirmations = [paper.publish(str(number)) for number in range(3)]

    paper.says(commands.Basic.Nack(2, multiple=True), commands.Basic.Ack(3))

    for refused in confirmations[:2]:
        with pytest.raises(BrokerUnavailableError, match="refused"):
            await refused
    await confirmations[2]


async def test_a_single_refusal_is_for_its_message_alone(paper: Paper) -> None:
    first, second = paper.publish("a"), paper.publish("b")

    paper.says(commands.Basic.Nack(2))

    assert not first.done()
    with pytest.raises(BrokerUnavailableError, match="refused"):
        await second


async def test_a_confirm_of_nothing_we_know_is_ignored(paper: Paper) -> None:
    confirmation = paper.publish()

    paper.says(commands.Basic.Ack(1), commands.Basic.Ack(1), commands.Basic.Nack(7))

    await confirmation
    following = paper.publish("next")
    paper.says(commands.Basic.Ack(2))
    await following


async def test_what_comes_back_has_failed_though_its_confirm_follows(paper: Paper) -> None:
    first, second = paper.publish("first"), paper.publish("second")

    paper.returns("first", content=b"x" * 2500)
    assert paper.channel.confirms.is_unconfirmed("first")
    paper.says(commands.Basic.Ack(2, multiple=True))

    with pytest.raises(UnroutableError):
        await first
    await second
    assert not paper.channel.confirms.is_unconfirmed("first")


@pytest.mark.parametrize("message_id", ["unknown", None])
async def test_what_comes_back_and_is_not_ours_is_ignored(
    paper: Paper, message_id: str | None
) -> None:
    confirmation = paper.publish()

    paper.returns(message_id, content=b"")
    paper.says(commands.Basic.Ack(1))

    await confirmation


async def test_a_confirm_that_is_late_changes_nothing(
    paper: Paper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confirms, "CONFIRM_SECONDS", 0.01)
    first, second = paper.publish("first"), paper.publish("second")
    with pytest.raises(BrokerUnavailableError, match=r"within 0\.01 s"):
        await asyncio.wait_for(first, timeout=10)
    with pytest.raises(BrokerUnavailableError):
        await asyncio.wait_for(second, timeout=10)
    assert paper.channel.confirms.is_unconfirmed("first")

    paper.says(commands.Basic.Ack(2, multiple=True))

    assert not paper.channel.confirms.is_unconfirmed("first")
    third = paper.publish("third")
    paper.says(commands.Basic.Ack(3))
    await third


async def test_a_deadline_holds_behind_ones_that_were_met(
    paper: Paper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confirms, "CONFIRM_SECONDS", 0.05)
    met, missed = paper.publish("met"), paper.publish("missed")
    paper.says(commands.Basic.Ack(1))
    await met
    with pytest.raises(BrokerUnavailableError):
        await asyncio.wait_for(missed, timeout=10)

    later = paper.publish("later")

    with pytest.raises(BrokerUnavailableError):
        await asyncio.wait_for(later, timeout=10)


async def test_each_confirmation_has_its_own_deadline(
    paper: Paper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confirms, "CONFIRM_SECONDS", 0.01)
    soon = paper.publish("soon")
    monkeypatch.setattr(confirms, "CONFIRM_SECONDS", 0.5)
    later = paper.publish("later")

    with pytest.raises(BrokerUnavailableError):
        await asyncio.wait_for(soon, timeout=10)
    assert not later.done()

    with pytest.raises(BrokerUnavailableError):
        await asyncio.wait_for(later, timeout=10)


async def test_failures_that_nobody_waits_for_are_not_reported_as_forgotten(
    paper: Paper,
) -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    paper.publish("refused")
    paper.publish("lost")

    paper.says(commands.Basic.Nack(1))
    paper.loses_the_channel()
    await a_turn()
    gc.collect()

    assert reported == []


async def test_nobody_waits_any_more_and_nothing_breaks(paper: Paper) -> None:
    confirmed, refused, returned, lost = (paper.publish(name) for name in "abcd")
    for confirmation in (confirmed, refused, returned, lost):
        confirmation.cancel()
    assert paper.channel.confirms.is_unconfirmed("a")

    paper.returns("c")
    paper.says(commands.Basic.Ack(1), commands.Basic.Nack(2), commands.Basic.Ack(3))
    paper.loses_the_channel()
    await a_turn()

    assert not any(paper.channel.confirms.is_unconfirmed(name) for name in "abcd")


async def test_the_oldest_without_the_brokers_word_is_known_though_its_deadline_passed(
    paper: Paper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confirms, "CONFIRM_SECONDS", 0.01)
    loop = asyncio.get_running_loop()
    assert paper.channel.confirms.waiting_since == math.inf

    start = loop.time()
    first = paper.publish("first")
    between = loop.time()
    with pytest.raises(BrokerUnavailableError):
        await asyncio.wait_for(first, timeout=10)
    paper.publish("second")

    assert start <= paper.channel.confirms.waiting_since <= between
    paper.says(commands.Basic.Ack(1))
    assert between < paper.channel.confirms.waiting_since <= loop.time()
    paper.says(commands.Basic.Ack(2))
    assert paper.channel.confirms.waiting_since == math.inf


async def test_refusals_count_as_waiting_until_one_is_confirmed(paper: Paper) -> None:
    loop = asyncio.get_running_loop()
    start = loop.time()
    refused = paper.publish("refused")
    between = loop.time()
    paper.publish("refused, too")

    paper.says(commands.Basic.Nack(2), commands.Basic.Nack(1))

    with pytest.raises(BrokerUnavailableError, match="full"):
        await refused
    assert start <= paper.channel.confirms.waiting_since <= between
    paper.publish("taken")
    paper.says(commands.Basic.Ack(3))
    assert paper.channel.confirms.waiting_since == math.inf


# -- the same id twice ----------------------------------------------------------------------


async def test_the_same_id_waits_for_its_turn(paper: Paper) -> None:
    paper.publish("same")
    turns = [paper.turn("same") for _ in range(2)]
    paper.publish("other")
    paper.says(commands.Basic.Ack(2))
    await a_turn()
    assert not any(turn.done() for turn in turns)

    paper.says(commands.Basic.Ack(1))

    await asyncio.wait_for(asyncio.gather(*turns), timeout=10)
    await paper.channel.confirms.wait_until_resolved("never seen")


async def test_the_second_in_turn_waits_for_the_first(paper: Paper) -> None:
    published: list[Confirmation] = []

    async def in_turn() -> None:
        await paper.channel.confirms.wait_until_resolved("same")
        published.append(paper.publish("same"))

    published.append(paper.publish("same"))
    waiting = [asyncio.ensure_future(in_turn()) for _ in range(2)]
    for number in (1, 2, 3):
        await a_turn()
        assert len(published) == number
        paper.says(commands.Basic.Ack(number))

    await asyncio.gather(*published, *waiting)


async def test_the_end_of_one_message_does_not_end_another_of_its_id(paper: Paper) -> None:
    paper.publish("same")
    paper.publish("same")

    paper.says(commands.Basic.Ack(1))
    assert paper.channel.confirms.is_unconfirmed("same")
    paper.says(commands.Basic.Ack(2))

    assert not paper.channel.confirms.is_unconfirmed("same")


@pytest.mark.parametrize("end", ["returned", "cancelled", "failed"])
async def test_a_turn_sleeps_until_the_brokers_word_though_the_confirmation_is_done(
    paper: Paper, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    sleeps: list[object] = []
    wait = asyncio.wait

    def counted_wait(futures: list[Confirmation]) -> Any:
        sleeps.append(futures)
        return wait(futures)

    monkeypatch.setattr(asyncio, "wait", counted_wait)
    confirmation = paper.publish("same")
    if end == "returned":
        paper.returns("same")
    elif end == "cancelled":
        confirmation.cancel()
    else:
        confirmation.set_exception(BrokerUnavailableError("The broker did not confirm."))
        confirmation.exception()

    turn = paper.turn("same")
    for _ in range(10):
        await a_turn()
    assert not turn.done()
    assert len(sleeps) == 1

    paper.says(commands.Basic.Ack(1))
    await asyncio.wait_for(turn, timeout=10)


async def test_a_turn_that_was_given_up_leaves_the_others_waiting(paper: Paper) -> None:
    paper.publish("same")
    given_up, patient = (paper.turn("same") for _ in range(2))
    await a_turn()
    given_up.cancel()
    await a_turn()
    assert not patient.done()

    paper.says(commands.Basic.Ack(1))

    await asyncio.wait_for(patient, timeout=10)


# -- loss -----------------------------------------------------------------------------------


async def test_what_is_unconfirmed_fails_with_the_channel(paper: Paper) -> None:
    confirmations = [paper.publish(str(number)) for number in range(3)]
    turn = paper.turn("0")
    await a_turn()

    paper.loses_the_channel()

    for confirmation in confirmations:
        with pytest.raises(BrokerUnavailableError, match="connection broke"):
            await asyncio.wait_for(confirmation, timeout=10)
    await asyncio.wait_for(turn, timeout=10)


async def test_nothing_is_written_after_the_loss(paper: Paper) -> None:
    await paper.consume()
    paper.delivers(1)
    before = paper.publish("before")
    paper.channel.acknowledge(1)

    paper.loses_the_channel()
    await a_turn()
    with pytest.raises(BrokerUnavailableError, match="was not sent"):
        paper.publish("after")
    await a_turn()

    assert paper.channel.closed
    assert paper.transport.writes == []
    with pytest.raises(BrokerUnavailableError, match="connection broke"):
        await before
    assert not paper.channel.confirms.is_unconfirmed("after")


async def test_a_transport_that_closes_takes_no_more_though_the_channel_is_open(
    paper: Paper,
) -> None:
    await paper.consume()
    paper.delivers(1)
    before = paper.publish("before")

    paper.transport.closing = True
    paper.channel.acknowledge(1)
    paper.channel.flush()

    assert paper.channel.closed
    with pytest.raises(BrokerUnavailableError, match="was not sent"):
        paper.publish("after")
    paper.loses_the_channel()
    with pytest.raises(BrokerUnavailableError, match="connection broke"):
        await asyncio.wait_for(before, timeout=10)


@pytest.mark.parametrize(
    "word",
    [
        commands.Channel.Close(406, "PRECONDITION_FAILED", 60, 80),
        commands.Channel.CloseOk(),
        commands.Connection.Close(320, "CONNECTION_FORCED", 0, 0),
    ],
    ids=lambda word: word.name,
)
async def test_nothing_counts_after_the_broker_said_that_it_closes(paper: Paper, word: Any) -> None:
    await paper.consume()
    paper.delivers(1)
    before = paper.publish("before")
    paper.channel.acknowledge(1)
    on_channel = 0 if isinstance(word, commands.Connection.Close) else CHANNEL

    paper.filter.data_received(pamqp_frame.marshal(word, on_channel))
    paper.delivers(2)
    with pytest.raises(BrokerUnavailableError, match="was not sent"):
        paper.publish("after")
    await a_turn()

    assert not paper.underlying.is_closed
    assert paper.channel.closed
    assert paper.transport.writes == []
    assert [tag for tag, _ in paper.deliveries] == [1]
    with pytest.raises(BrokerUnavailableError, match="connection broke"):
        await asyncio.wait_for(before, timeout=10)
    assert not paper.channel.confirms.is_unconfirmed("before")


# -- receiving ------------------------------------------------------------------------------


async def test_a_delivery_is_handed_over_with_all_it_says(paper: Paper) -> None:
    moment = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
    await paper.consume()

    paper.delivers(
        7,
        b"body",
        message_id="m",
        correlation_id="c",
        message_type="t",
        content_type="application/json",
        content_encoding="utf-8",
        app_id="a",
        timestamp=moment,
        headers={"x-attempt": 2},
        priority=3,
        delivery_mode=2,
    )

    assert paper.underlying.consumes == [("queue", "consumer", {})]
    assert paper.deliveries == [
        (
            7,
            Delivery(
                body=b"body",
                routing_key="key",
                message_id="m",
                correlation_id="c",
                type="t",
                content_type="application/json",
                content_encoding="utf-8",
                app_id="a",
                timestamp=moment,
                priority=3,
                headers={"x-attempt": 2},
            ),
        )
    ]
    assert paper.reader.received == b""


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 3500])
async def test_a_message_is_put_together_from_its_frames(paper: Paper, size: int) -> None:
    await paper.consume()
    content = bytes(number % 251 for number in range(size))

    paper.delivers(1, content)
    paper.delivers(2, b"next")

    assert [(tag, each.body) for tag, each in paper.deliveries] == [(1, content), (2, b"next")]
    assert paper.deliveries[0][1].headers == {}


async def test_a_message_of_which_the_end_is_missing_is_not_handed_over(paper: Paper) -> None:
    await paper.consume()
    deliver = commands.Basic.Deliver("consumer", 1, exchange="exchange", routing_key="key")
    head, first, second = a_message(b"x" * 2000)

    paper.says(deliver, head, first)
    assert paper.deliveries == []
    paper.says(second)

    assert [each.body for _, each in paper.deliveries] == [b"x" * 2000]


async def test_headers_that_reach_past_their_frame_take_nothing_from_the_body(
    paper: Paper,
) -> None:
    await paper.consume()
    deliver = commands.Basic.Deliver("consumer", 1, exchange="exchange", routing_key="key")
    # One header, then: the end of the frame as a length (206), 7 bytes of the next frame's head
    # and 199 of the body as a name, and a value.
    content = b"k" * 199 + b"t\1" + b" " * 99
    too_long = struct.pack(">I", 4 + 1 + 206 + 2) + b"\1at\1"
    head = struct.pack(">HHQH", 60, 0, len(content), 1 << 13) + too_long

    paper.filter.data_received(
        marshalled(deliver) + frame(HEADER, CHANNEL, head) + marshalled(body.ContentBody(content))
    )

    assert [(each.headers, each.body) for _, each in paper.deliveries] == [({}, content)]


async def test_the_answer_to_a_get_is_left_to_aiormq(paper: Paper) -> None:
    await paper.consume()
    answer = [
        commands.Basic.GetOk(5, exchange="exchange", routing_key="key", message_count=0),
        *a_message(b"got"),
    ]

    paper.delivers(1)
    paper.says(*answer)
    paper.delivers(2)

    assert paper.reader.received == b"".join(map(marshalled, answer))
    assert [tag for tag, _ in paper.deliveries] == [1, 2]


@pytest.mark.parametrize(
    "word",
    [
        commands.Basic.Cancel("consumer"),
        commands.Basic.CancelOk("consumer"),
        commands.Basic.ConsumeOk("consumer"),
        commands.Basic.QosOk(),
        commands.Channel.Close(406, "PRECONDITION_FAILED", 60, 80),
        commands.Channel.CloseOk(),
        commands.Queue.DeclareOk("queue", 1, 1),
    ],
    ids=lambda word: word.name,
)
async def test_all_other_words_are_left_to_aiormq(paper: Paper, word: Any) -> None:
    paper.says(word)

    assert paper.reader.received == marshalled(word)


async def test_arguments_of_a_subscription_reach_the_broker(paper: Paper) -> None:
    await paper.channel.consume(
        "stream", "consumer", lambda _tag, _delivery: None, arguments={"x-stream-offset": 7}
    )

    assert paper.underlying.consumes == [("stream", "consumer", {"x-stream-offset": 7})]


# -- acknowledging --------------------------------------------------------------------------


async def test_acks_reach_no_further_than_what_is_in_flight(paper: Paper) -> None:
    await paper.consume()
    for tag in range(1, 8):
        paper.delivers(tag)

    for tag in (2, 1, 6, 4):
        paper.channel.acknowledge(tag)
    await a_turn()

    acks = [(read.delivery_tag, read.multiple) for read in paper.read()]
    assert acks == [(2, True), (6, False), (4, False)]


async def test_an_ack_of_what_is_not_in_flight_hurts_no_other(paper: Paper) -> None:
    await paper.consume()
    paper.delivers(1)
    paper.delivers(2)
    paper.channel.acknowledge(1)

    for tag in (1, 9):
        with pytest.raises(KeyError):
            paper.channel.acknowledge(tag)
    paper.channel.acknowledge(2)
    await a_turn()

    assert [(read.delivery_tag, read.multiple) for read in paper.read()] == [(2, True)]


class Unacknowledged:
    """What a broker keeps of a channel's deliveries, and how it reads acks."""

    def __init__(self) -> None:
        self.tags: list[int] = []
        self.acknowledged: set[int] = set()

    def hear(self, ack: commands.Basic.Ack) -> None:
        tag = ack.delivery_tag
        assert tag in self.tags, f"unknown delivery tag {tag}: the broker closes the channel"
        gone = {each for each in self.tags if each <= tag} if ack.multiple else {tag}
        self.tags = [each for each in self.tags if each not in gone]
        self.acknowledged |= gone


steps = st.lists(
    st.tuples(st.just("deliver"), st.integers(1, 4))
    | st.tuples(st.just("finish"), st.integers(0, 1000))
    | st.tuples(st.just("turn"), st.just(0)),
    max_size=40,
)


@settings(max_examples=200)
@given(steps=steps)
async def test_exactly_what_is_done_is_acknowledged_in_whatever_order(
    steps: list[tuple[str, int]],
) -> None:
    paper, broker = Paper(), Unacknowledged()
    await paper.consume()
    in_flight: list[int] = []
    done: set[int] = set()
    last = 0

    for step, number in [*steps, ("turn", 0)]:
        if step == "deliver":
            for _ in range(number):
                last += 1
                broker.tags.append(last)
                paper.delivers(last)
                in_flight.append(last)
        elif step == "finish" and in_flight:
            tag = in_flight.pop(number % len(in_flight))
            paper.channel.acknowledge(tag)
            done.add(tag)
        elif step == "turn":
            await a_turn()
            for ack in paper.read():
                broker.hear(ack)
            assert broker.acknowledged == done
            assert broker.tags == in_flight


async def test_one_ack_is_enough_when_nothing_is_left_in_flight(paper: Paper) -> None:
    await paper.consume()
    for tag in range(1, 101):
        paper.delivers(tag)
    for tag in range(100, 0, -1):
        paper.channel.acknowledge(tag)

    paper.channel.flush()

    assert [(read.delivery_tag, read.multiple) for read in paper.read()] == [(100, True)]
