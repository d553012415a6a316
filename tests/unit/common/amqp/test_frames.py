"""What we write is what pamqp reads, and the other way round."""

import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import body, commands, header, heartbeat
from pamqp import frame as pamqp_frame

from common.amqp import frames, lenient

MICROSECONDS = struct.pack(">Q", 1_790_000_000_000_000)
NAMES = {"message_type": "type"}
"""What pamqp calls otherwise than AMQP."""


@pytest.fixture(autouse=True, scope="module")
def _tolerant() -> None:
    lenient.install()


def short_texts(*, min_size: int = 0, most_bytes: int = 255) -> st.SearchStrategy[str]:
    return st.text(
        st.characters(exclude_categories=["Cs"]), min_size=min_size, max_size=most_bytes
    ).filter(lambda text: len(text.encode()) <= most_bytes)


moments = st.integers(0, 4_000_000_000).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))

properties_of_ours = st.fixed_dictionaries(
    {},
    optional={
        **{
            name: short_texts(min_size=1)
            for name in (
                *("message_id", "correlation_id", "type", "app_id", "reply_to"),
                *("content_type", "content_encoding", "cluster_id"),
            )
        },
        "timestamp": moments,
        "user_id": st.none(),
    },
)

# pamqp cuts names of headers at 128 bytes when it writes them.
header_names = short_texts(most_bytes=128)
header_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | moments,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(header_names, values, max_size=3),
    max_leaves=5,
)
header_tables = st.dictionaries(header_names, header_values, max_size=5)


def read_by_pamqp(stream: bytes) -> Iterator[tuple[int, Any]]:
    while stream:
        consumed, channel, read = pamqp_frame.unmarshal(stream)
        yield channel, read
        stream = stream[consumed:]


def properties_by_pamqp(read: header.ContentHeader) -> dict[str, Any]:
    """What pamqp read, as ``Content.properties`` has it."""
    return {
        NAMES.get(name, name): value
        for name, value in read.properties
        if value is not None
        and name != "delivery_mode"
        and (name, value) != ("cluster_id", "")  # there or not, it says
    }


def a_header(flags: int, values: bytes, size: int = 0) -> bytes:
    """A content header by hand."""
    return struct.pack(">HHQH", 60, 0, size, flags) + values


def both_read(payload: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The properties as we read them, and as pamqp does, without those that are None."""
    ours = frames.read_content_header(payload).properties
    theirs = header.ContentHeader()
    theirs.unmarshal(payload)
    return (
        {name: value for name, value in ours.items() if value is not None},
        properties_by_pamqp(theirs),
    )


# -- writing --------------------------------------------------------------------------------


@settings(max_examples=100)
@given(
    exchange=short_texts(),
    routing_key=short_texts(),
    content=st.binary(max_size=50),
    max_payload=st.integers(1, 20),
    channel=st.integers(1, 65535),
)
def test_a_publish_is_read_back(
    exchange: str, routing_key: str, content: bytes, max_payload: int, channel: int
) -> None:
    head = frames.content_header(len(content), {"message_id": "m"}, {})

    stream = frames.publish(channel, exchange, routing_key, head, content, max_payload=max_payload)

    (on, method), (_, read_header), *bodies = list(read_by_pamqp(stream))
    assert on == channel
    assert isinstance(method, commands.Basic.Publish)
    assert (method.exchange, method.routing_key) == (exchange, routing_key)
    assert (method.mandatory, method.immediate) == (True, False)
    assert read_header.body_size == len(content)
    assert all(number == channel for number, _ in bodies)
    assert all(isinstance(read, body.ContentBody) for _, read in bodies)
    assert all(1 <= len(read.value) <= max_payload for _, read in bodies)
    assert b"".join(read.value for _, read in bodies) == content


@pytest.mark.parametrize(
    ("size", "lengths"), [(0, []), (1, [1]), (7, [7]), (8, [8]), (9, [8, 1]), (16, [8, 8])]
)
def test_a_body_is_cut_at_the_frame_size(size: int, lengths: list[int]) -> None:
    head = frames.content_header(size, {}, {})

    stream = frames.publish(1, "e", "k", head, bytes(size), max_payload=8)

    assert [len(read.value) for _, read in list(read_by_pamqp(stream))[2:]] == lengths


@settings(max_examples=150)
@given(
    size=st.integers(0, 2**64 - 1),
    properties=properties_of_ours,
    headers=header_tables,
    expires=st.booleans(),
)
def test_a_content_header_is_read_back(
    size: int, properties: dict[str, Any], headers: dict[str, Any], *, expires: bool
) -> None:
    expiration = timedelta(seconds=1.5) if expires else None

    written = frames.content_header(size, properties, headers, expiration)

    expected = {name: value for name, value in properties.items() if value is not None}
    if headers:
        expected["headers"] = headers
    if expiration:
        expected["expiration"] = "1500"
    ((channel, read),) = read_by_pamqp(frames.frame(frames.HEADER, 7, written))
    assert (channel, read.body_size, read.properties.delivery_mode) == (7, size, 2)
    assert properties_by_pamqp(read) == expected
    assert frames.read_content_header(written) == (size, expected)


@given(channel=st.integers(1, 65535), tag=st.integers(1, 2**63 - 1), multiple=st.booleans())
def test_an_acknowledgement_is_read_back(channel: int, tag: int, *, multiple: bool) -> None:
    stream = frames.acknowledgement(channel, tag, multiple=multiple)

    ((on, read),) = read_by_pamqp(stream)
    assert isinstance(read, commands.Basic.Ack)
    assert (on, read.delivery_tag, read.multiple) == (channel, tag, multiple)


def test_the_heartbeat_is_one() -> None:
    assert heartbeat.Heartbeat().marshal() == frames.A_HEARTBEAT


def test_a_text_that_is_too_long_is_refused() -> None:
    assert frames.short_text("é" * 127 + "x") == b"\xff" + ("é" * 127 + "x").encode()
    with pytest.raises(ValueError, match="range"):
        frames.short_text("é" * 128)


# -- reading --------------------------------------------------------------------------------


def payload(method: Any, before: bytes) -> tuple[bytes, int]:
    """The frame of a method somewhere in a stream, and where its arguments begin."""
    stream = before + pamqp_frame.marshal(method, 1) + b"what follows"
    start = len(before) + frames.HEAD.size
    return stream, start + frames.METHOD_ID.size


@pytest.mark.parametrize(
    ("number", "method"),
    [
        (frames.DELIVER, commands.Basic.Deliver),
        (frames.RETURN, commands.Basic.Return),
        (frames.ACK, commands.Basic.Ack),
        (frames.NACK, commands.Basic.Nack),
    ],
)
def test_methods_are_known_by_their_numbers(number: int, method: Any) -> None:
    assert number == method.index


@given(
    before=st.binary(max_size=20),
    consumer=short_texts(),
    tag=st.integers(1, 2**63 - 1),
    redelivered=st.booleans(),
    exchange=st.text("aZ9-_.:", max_size=127),  # pamqp takes no others
    routing_key=short_texts(),
)
def test_a_delivery_of_the_broker_is_read(
    before: bytes, consumer: str, tag: int, *, redelivered: bool, exchange: str, routing_key: str
) -> None:
    data, at = payload(
        commands.Basic.Deliver(consumer, tag, redelivered, exchange, routing_key), before
    )

    assert frames.read_delivery(data, at) == (tag, routing_key)


def test_a_routing_key_that_is_no_text_stays_distinct() -> None:
    def delivered(key: bytes) -> bytes:
        return b"\1c" + struct.pack(">QB", 5, 0) + b"\1e" + bytes([len(key)]) + key + b"\xce"

    assert frames.read_delivery(delivered(b"a\xff"), 0) == (5, "a\\xff")
    assert frames.read_delivery(delivered(b"a\xfe"), 0) == (5, "a\\xfe")


@given(before=st.binary(max_size=20), tag=st.integers(1, 2**63 - 1), multiple=st.booleans())
def test_a_confirm_of_the_broker_is_read(before: bytes, tag: int, *, multiple: bool) -> None:
    for method in (commands.Basic.Ack(tag, multiple), commands.Basic.Nack(tag, multiple)):
        data, at = payload(method, before)

        assert frames.read_confirm(data, at) == (tag, multiple)


@settings(max_examples=150)
@given(
    size=st.integers(0, 2**64 - 1),
    texts=st.fixed_dictionaries(
        {},
        optional={
            name: short_texts(min_size=1)
            for name in (
                *("content_type", "content_encoding", "correlation_id", "reply_to"),
                *("expiration", "message_id", "message_type", "user_id", "app_id", "cluster_id"),
            )
        },
    ),
    numbers=st.fixed_dictionaries(
        {},
        optional={
            "delivery_mode": st.integers(1, 2),
            "priority": st.integers(0, 255),
            "timestamp": moments,
            "headers": header_tables.filter(bool),
        },
    ),
)
def test_a_content_header_of_anybody_is_read(
    size: int, texts: dict[str, Any], numbers: dict[str, Any]
) -> None:
    properties = commands.Basic.Properties()
    for name, value in (texts | numbers).items():
        setattr(properties, name, value)
    written = header.ContentHeader(0, size, properties).marshal()

    read = frames.read_content_header(written)

    expected = {NAMES.get(name, name): value for name, value in (texts | numbers).items()}
    expected.pop("delivery_mode", None)
    assert read == (size, expected)


def test_bytes_that_are_no_text_are_read_as_pamqp_now_reads_them() -> None:
    ours, theirs = both_read(a_header(1 << 7 | 1 << 3, b"\2\xff\xfe" + b"\5other"))

    assert ours == theirs == {"message_id": "\\xff\\xfe", "app_id": "other"}


@pytest.mark.parametrize("moment", [MICROSECONDS, b"\xff" * 8])
def test_a_time_that_is_none_is_nothing(moment: bytes) -> None:
    ours, theirs = both_read(a_header(1 << 6 | 1 << 3, moment + b"\5other"))

    assert ours == theirs == {"app_id": "other"}


@pytest.mark.parametrize(
    "table",
    [
        b"\0\0\0\4\1\xfft\1",  # a name that is no text
        b"\0\0\0\4\1a?\1",  # a type that does not exist
        b"\0\0\0\4\xffat\1",  # a name longer than the table
        b"\0\0\0\0",
    ],
)
def test_headers_that_can_not_be_read_are_empty(table: bytes) -> None:
    ours, theirs = both_read(a_header(1 << 13 | 1 << 3, table + b"\5other"))

    assert ours == theirs == {"headers": {}, "app_id": "other"}


@settings(max_examples=200)
@given(table=st.binary(max_size=40), text=st.binary(max_size=255), moment=st.binary(min_size=8))
def test_odd_bytes_are_read_as_pamqp_now_reads_them(
    table: bytes, text: bytes, moment: bytes
) -> None:
    flags = 1 << 13 | 1 << 7 | 1 << 6 | 1 << 5
    values = struct.pack(">I", len(table)) + table
    values += bytes([len(text)]) + text + moment[:8] + b"\4type"

    ours, theirs = both_read(a_header(flags, values))

    assert ours == theirs
    assert ours["type"] == "type"


def test_headers_that_reach_past_their_frame_take_nothing_from_the_next() -> None:
    truncated = a_header(1 << 13, b"\0\0\0\x08" + b"\1at\1")

    assert frames.read_content_header(truncated).properties == {"headers": {}}
