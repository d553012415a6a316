import struct
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, decode, encode

from common.amqp import lenient

MICROSECONDS = struct.pack(">Q", 1_790_000_000_000_000)


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    lenient.install()
    lenient.install()  # twice does no harm


def read(name: str, value: bytes) -> Any:
    """The property as it is read from the wire, where it is the only one."""
    properties: Any = commands.Basic.Properties()
    properties.unmarshal(properties.flags[name], value)
    return getattr(properties, name)


def test_good_properties_are_read_as_before() -> None:
    moment = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
    table: Any = {"x-attempt": 2, "traceparent": "00-é", "deep": {"at": moment}}

    assert read("message_id", b"\x03abc") == "abc"
    assert read("timestamp", encode.timestamp(moment)) == moment
    assert read("headers", encode.field_table(table)) == table


def test_an_id_that_is_no_text_stays_distinct() -> None:
    assert read("message_id", b"\x02\xff\xfe") != read("message_id", b"\x02\xff\xfd")


def test_a_time_that_is_none_is_nothing() -> None:
    assert read("timestamp", MICROSECONDS) is None
    assert read("timestamp", b"\xff" * 8) is None


def test_headers_that_can_not_be_read_are_empty() -> None:
    assert read("headers", b"\0\0\0\4\1\xfft\1") == {}
    assert read("headers", b"\0\0\0\x0b\1aT" + MICROSECONDS) == {"a": None}


def test_what_follows_an_odd_property_is_still_read() -> None:
    both: Any = commands.Basic.Properties()
    flags = both.flags["timestamp"] | both.flags["app_id"]

    both.unmarshal(flags, MICROSECONDS + b"\x05other")

    assert both.app_id == "other"


@given(st.binary(max_size=255))
def test_any_bytes_are_read_as_some_text(value: bytes) -> None:
    consumed, text = decode.by_type(bytes([len(value)]) + value + b"rest", "shortstr")

    assert consumed == len(value) + 1
    assert isinstance(text, str)
