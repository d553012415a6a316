"""The few AMQP 0-9-1 frames of a busy channel, as bytes: what is published, delivered, confirmed.

Chapters and figures are those of the specification, "AMQP 0-9-1".
"""

import struct
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

from pamqp import encode

from common.amqp import lenient

HEAD = struct.Struct(">BHI")
"""What every frame begins with: type, channel, bytes of what follows (4.2.3)."""

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
"""Types of frames."""

OVERHEAD = 8
"""Bytes around what a frame carries: the head, and one octet at the end."""

MIN_FRAME = 4096
"""Bytes of a frame that every broker takes."""

END = b"\xce"
A_HEARTBEAT = HEAD.pack(HEARTBEAT, 0, 0) + END

METHOD_ID = struct.Struct(">I")
RETURN, DELIVER, ACK, NACK = ((60 << 16) + number for number in (50, 60, 80, 120))
"""Methods of the class "basic"; 120 is RabbitMQ's own."""

CONNECTION_CLOSE, CHANNEL_CLOSE, CHANNEL_CLOSE_OK = (
    (kind << 16) + number for kind, number in ((10, 50), (20, 40), (20, 41))
)
"""After these nothing that is published or acknowledged counts any more (1.4.2.7, 1.5.2.5)."""

_PUBLISH = struct.pack(">HHH", 60, 40, 0)  # and a reserved number
_MANDATORY = b"\x01"
_ACK_FRAME = struct.Struct(">BHIHHQ?B")  # head, method, tag, multiple, end
_TAG = struct.Struct(">QB")  # and one octet of flags
_CONTENT = struct.Struct(">HHQH")  # class, weight, size of the body, flags of the properties
_SECONDS = struct.Struct(">Q")
_LENGTH = struct.Struct(">I")
_SHORT_NAME = 64  # characters: of any script, they fit in the 255 bytes of a short text
_PERSISTENT = b"\x02"

_FLAGS = {
    "content_type": 1 << 15,
    "content_encoding": 1 << 14,
    "headers": 1 << 13,
    "delivery_mode": 1 << 12,
    "priority": 1 << 11,
    "correlation_id": 1 << 10,
    "reply_to": 1 << 9,
    "expiration": 1 << 8,
    "message_id": 1 << 7,
    "timestamp": 1 << 6,
    "type": 1 << 5,
    "user_id": 1 << 4,
    "app_id": 1 << 3,
    "cluster_id": 1 << 2,
}
"""Properties come in this order, each with its flag (4.2.6.1)."""


class Content(NamedTuple):
    """A content header: what is known of a message before its body."""

    size: int
    """Bytes of the body."""

    properties: dict[str, Any]
    """Texts by name; ``timestamp`` as a datetime, ``headers`` as a dict, ``priority`` as a number;
    only those there are."""


# -- writing --------------------------------------------------------------------------------


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    """One frame."""
    return HEAD.pack(kind, channel, len(payload)) + payload + END


def publish(
    channel: int, exchange: str, routing_key: str, header: bytes, body: bytes, *, max_payload: int
) -> bytes:
    """A message to publish, mandatory, its body in frames of at most ``max_payload`` bytes."""
    method = _PUBLISH + short_text(exchange) + short_text(routing_key) + _MANDATORY
    frames = frame(METHOD, channel, method) + frame(HEADER, channel, header)
    if len(body) <= max_payload:
        return frames + frame(BODY, channel, body) if body else frames
    return frames + b"".join(
        frame(BODY, channel, body[start : start + max_payload])
        for start in range(0, len(body), max_payload)
    )


def content_header(
    size: int,
    properties: Mapping[str, Any],
    headers: Mapping[str, Any],
    expiration: timedelta | None = None,
) -> bytes:
    """The content header of a persistent message.

    Args:
        size: Bytes of the body.
        properties: Short strings by name, ``timestamp`` and ``priority``; None is left out.
        headers: The header table.
        expiration: How long the message may wait in a queue.
    """
    values: dict[str, bytes] = {"delivery_mode": _PERSISTENT}
    if headers:
        values["headers"] = _table(headers)
    if expiration is not None:
        values["expiration"] = short_text(str(round(expiration.total_seconds() * 1000)))
    for name, value in properties.items():
        if isinstance(value, str):
            values[name] = short_text(value)
        elif isinstance(value, datetime):
            values[name] = _SECONDS.pack(int(value.timestamp()))
        elif value is not None:
            values[name] = bytes((value,))
    flags, names = _order(frozenset(values))
    return _CONTENT.pack(60, 0, size, flags) + b"".join([values[name] for name in names])


def _table(headers: Mapping[str, Any]) -> bytes:
    """A header table (4.2.5.5); the usual one, texts under short names, in half of pamqp's time."""
    if not all(type(text) is str and len(name) < _SHORT_NAME for name, text in headers.items()):
        return encode.field_table(dict(headers))
    fields = b"".join([short_text(name) + _long_text(text) for name, text in headers.items()])
    return _LENGTH.pack(len(fields)) + fields


def _long_text(text: str) -> bytes:
    """A text as a field of a table, its type in front."""
    data = text.encode()
    return b"S" + _LENGTH.pack(len(data)) + data


@lru_cache(64)
def _order(present: frozenset[str]) -> tuple[int, list[str]]:
    names = [name for name in _FLAGS if name in present]
    return sum(_FLAGS[name] for name in names), names


def acknowledgement(channel: int, tag: int, *, multiple: bool) -> bytes:
    """An acknowledgement; ``multiple`` means "and all before"."""
    return _ACK_FRAME.pack(METHOD, channel, 13, 60, 80, tag, multiple, END[0])


def short_text(text: str) -> bytes:
    """A text of at most 255 bytes."""
    data = text.encode()
    return bytes((len(data),)) + data


# -- reading --------------------------------------------------------------------------------


def read_delivery(data: bytes, at: int) -> tuple[int, str]:
    """Tag and routing key of a delivery whose arguments begin at ``at``."""
    at += 1 + data[at]  # the consumer's tag
    tag: int = _TAG.unpack_from(data, at)[0]
    at += _TAG.size
    at += 1 + data[at]  # the exchange
    return tag, _text(data, at)


def read_confirm(data: bytes, at: int) -> tuple[int, bool]:
    """Tag of an ack or nack, and whether it stands for all before it too."""
    tag, flags = _TAG.unpack_from(data, at)
    return tag, bool(flags & 1)


def read_content_header(data: bytes) -> Content:
    """The content header that ``data`` is, no byte more; what cannot be read is left out.

    Any program may have written it, see ``common.amqp.lenient``.
    """
    _, _, size, flags = _CONTENT.unpack_from(data)
    at = _CONTENT.size
    properties: dict[str, Any] = {}
    for name in _present(flags):
        if name == "headers":
            consumed, properties[name] = lenient.table(data[at:])
        elif name == "timestamp":
            consumed, properties[name] = lenient.timestamp(data[at : at + 8])
        elif name == "priority":
            consumed, properties[name] = 1, data[at]
        elif name == "delivery_mode":
            consumed = 1
        else:
            consumed = 1 + data[at]
            properties[name] = _text(data, at)
        at += consumed
    return Content(size, properties)


@lru_cache(256)
def _present(flags: int) -> list[str]:
    return [name for name, flag in _FLAGS.items() if flags & flag]


def _text(data: bytes, at: int) -> str:
    """A short text; bytes that are none become escapes, so that ids stay distinct."""
    return data[at + 1 : at + 1 + data[at]].decode("utf-8", "backslashreplace")
