"""Messages as no service of ours would write them, each with what must become of it."""

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid5

from pamqp.commands import Basic

from common.amqp.message import FOREIGN_IDS
from common.contracts.base import Contract
from common.contracts.notifications import EmailRequested
from common.contracts.registrations import RegistrationSubmitted
from common.contracts.reports import ReportRequested

ACCEPTED = ""
"""Instead of a reason: strange, but by the specification good work."""

CONTRACTS: tuple[type[Contract], ...] = (RegistrationSubmitted, EmailRequested, ReportRequested)

REQUIRED = {
    RegistrationSubmitted: ("name", "surname", "email"),
    EmailRequested: ("to", "template"),
    ReportRequested: (),
}

NOT_NULL = {
    RegistrationSubmitted: ("name", "surname", "email"),
    EmailRequested: ("to", "template", "data"),
    ReportRequested: ("reportName", "format", "columns"),
}
"""Fields that are never null, and so refuse every value of another type."""

MAX_BODY = 64 * 1024
MAX_MESSAGE = 256 * 1024
"""The largest that the broker takes (rabbitmq.conf)."""

PLACE = b"AAAAAAAA"
TIME_PLACE = b"\0\0\0\0AAAA"
"""In a text property, and in a timestamp, where bytes shall stand that no codec would write."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message, and what is to become of it."""

    kind: str
    contract: type[Contract]
    key: str
    """Routing key, by which it is known again; also in every body that can be read."""
    body: bytes
    reason: str = ACCEPTED
    properties: dict[str, Any] = field(default_factory=dict)
    """For ``pamqp``."""
    bytes_in_place: bytes = b""
    """What stands in place of ``PLACE`` or ``TIME_PLACE`` on the wire, as long as they."""

    @property
    def id(self) -> UUID:
        """The identity of the work, as docs/architecture.md has it."""
        claimed = self.properties.get("message_id")
        if not claimed:
            return uuid5(FOREIGN_IDS, self.body.hex())
        if claimed == PLACE.decode():
            claimed = self.bytes_in_place.decode(errors="backslashreplace")
        try:
            return UUID(claimed)
        except ValueError:
            return uuid5(FOREIGN_IDS, claimed)


def a_message(chance: random.Random, key: str, contract: type[Contract]) -> Message:
    """A good message with the key in it."""
    values = {
        RegistrationSubmitted: {
            "name": "Ada",
            "surname": "Lovelace",
            "email": f"{key}@example.org",
        },
        EmailRequested: {"to": f"{key}@example.org", "template": "welcome"},
        ReportRequested: {"reportName": key, "columns": ["id"], "endDate": "1999-12-31"},
    }
    return Message(
        kind="good",
        contract=contract,
        key=key,
        body=json.dumps(values[contract]).encode(),
        properties={"message_id": _uuid(chance), "content_type": "application/json"},
    )


def a_strange_message(chance: random.Random, number: int, run: str) -> Message:
    """The ``number``-th of a run: all kinds by turns, all routes by turns, values by chance."""
    kinds = list(KINDS)
    kind = kinds[number % len(kinds)]
    contract = CONTRACTS[number // len(kinds) % len(CONTRACTS)]
    good = a_message(chance, f"m-{number}-{run}", contract)
    return replace(KINDS[kind](chance, good), kind=kind)


def _uuid(chance: random.Random) -> str:
    return str(UUID(int=chance.getrandbits(128), version=4))


def _properties(message: Message, **properties: Any) -> Message:
    return replace(message, properties=message.properties | properties)


def _values(message: Message) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(message.body)
    return values


def _json(message: Message, values: object, reason: str = ACCEPTED) -> Message:
    return replace(message, body=json.dumps(values).encode(), reason=reason)


def _malformed(message: Message, body: bytes) -> Message:
    return replace(message, body=body, reason="malformed")


def _empty(_: random.Random, message: Message) -> Message:
    return _malformed(message, b"")


def _truncated(chance: random.Random, message: Message) -> Message:
    return _malformed(message, message.body[: chance.randrange(1, len(message.body))])


def _binary(chance: random.Random, message: Message) -> Message:
    return _malformed(message, b"\x80" + chance.randbytes(chance.randrange(2000)))


def _bit_flipped(chance: random.Random, message: Message) -> Message:
    body = bytearray(message.body)
    body[chance.randrange(len(body))] |= 0x80  # no longer ASCII, nor UTF-8 beside ASCII
    return _malformed(message, bytes(body))


def _no_object(chance: random.Random, message: Message) -> Message:
    text = json.dumps(message.key)
    bodies = ("[]", f"[{text}]", text, "null", "true", "0", "-1e3", f"[[{message.body.decode()}]]")
    return _malformed(message, chance.choice(bodies).encode())


def _other_encoding(chance: random.Random, message: Message) -> Message:
    text = message.body.decode()
    return _malformed(
        message, text.encode(chance.choice(("utf-8-sig", "utf-16", "utf-16-le", "utf-32")))
    )


def _liberties(chance: random.Random, message: Message) -> Message:
    """What Python's reader takes and RFC 8259 forbids, or leaves open."""
    inside = message.body[1:-1]
    surplus = chance.choice(
        (
            b'"x": NaN',
            b'"x": -Infinity',
            b'"x": 1e999',
            b'"x": "\\ud800"',
            b'"x": 1, "x": 1',
            b'"x": ' + b"9" * 5000,
            b'"x": "a\tb"',
            b"'x': 1",
            b'"x": 01',
            b'"x": .5',
            b'"x": 1,',
            b'"x": /* */ 1',
        )
    )
    return _malformed(message, b"{" + inside + b", " + surplus + b"}")


def _deep(chance: random.Random, message: Message) -> Message:
    depth = chance.randrange(5_000, 30_000)
    return _malformed(message, chance.choice((b"[" * depth, b'{"a":' * (depth // 3))))


def _wrong_type(chance: random.Random, message: Message) -> Message:
    name = chance.choice(NOT_NULL[message.contract])
    values: list[Any] = [None, True, 0, -1.5, 2**70, ["Ada"], [[]]]
    # An object is what "data" is, and an empty list is no list of columns.
    values += [] if name == "data" else [{"a": {"b": 1}}, {}]
    return _json(message, _values(message) | {name: chance.choice(values)}, "malformed")


def _wrong_value(chance: random.Random, message: Message) -> Message:
    name = chance.choice(NOT_NULL[message.contract])
    values = ["", "\x00", "a\x1bb", "\u2028" * 300, "x" * 400, "a@b@c", "<b>", "\ud7ff\uffff"]
    return _json(message, _values(message) | {name: chance.choice(values)}, "malformed")


def _field_missing(chance: random.Random, message: Message) -> Message:
    required = REQUIRED[message.contract]
    if not required:
        return _json(message, {})  # every wish may be left out
    values = _values(message)
    del values[chance.choice(required)]
    return _json(message, values, "malformed")


def _one_byte_too_many(_: random.Random, message: Message) -> Message:
    return replace(message, body=message.body.ljust(MAX_BODY + 1), reason="too_large")


def _just_not_too_large(_: random.Random, message: Message) -> Message:
    return replace(message, body=message.body.ljust(MAX_BODY))


def _as_large_as_the_broker_takes(chance: random.Random, message: Message) -> Message:
    # Rarely: all dead letters are kept on disk.
    size = MAX_MESSAGE if chance.random() < 0.1 else MAX_BODY + 1000
    return replace(message, body=message.body.ljust(size), reason="too_large")


def _unknown_version(chance: random.Random, message: Message) -> Message:
    name = message.contract.type_name
    types = (name[:-1] + "2", name + "0", name.upper(), name[:-3], "v1", " " + name, "x" * 255, "✉")
    return replace(
        _properties(message, message_type=chance.choice(types)), reason="unknown_version"
    )


def _replayed(chance: random.Random, message: Message) -> Message:
    """A message of another queue, with its type."""
    other = chance.choice([each for each in CONTRACTS if each is not message.contract])
    body = a_message(chance, message.key, other).body
    moved = _properties(message, message_type=other.type_name)
    return replace(moved, body=body, reason="unknown_version")


def _replayed_without_type(chance: random.Random, message: Message) -> Message:
    other = chance.choice([each for each in CONTRACTS if each is not message.contract])
    body = a_message(chance, message.key, other).body
    # Whoever asks for a report may leave out everything, and unknown fields are ignored.
    reason = ACCEPTED if message.contract is ReportRequested else "malformed"
    return replace(message, body=body, reason=reason)


def _compressed(chance: random.Random, message: Message) -> Message:
    encoding = chance.choice(("gzip", "deflate", "br", "GZIP", "utf-16", "identity, gzip", "\x00"))
    body = chance.choice((gzip.compress(message.body), message.body))
    return _malformed(_properties(message, content_encoding=encoding), body)


def _compressed_in_secret(_: random.Random, message: Message) -> Message:
    return _malformed(message, gzip.compress(message.body))


def _other_content_type(chance: random.Random, message: Message) -> Message:
    types = ("text/plain", "application/xml", "image/png", "///;;;", "x" * 255, "\x00", "")
    return _properties(message, content_type=chance.choice(types))


def _future_fields(chance: random.Random, message: Message) -> Message:
    surplus = {"nickname": "Countess", "tags": [1, [2]], "": None, "__proto__": {"admin": True}}
    names = chance.sample(sorted(surplus), chance.randrange(1, len(surplus)))
    return _json(message, _values(message) | {name: surplus[name] for name in names})


def _no_id(chance: random.Random, message: Message) -> Message:
    properties = {"message_id": chance.choice((None, ""))}
    return replace(message, properties=properties)


def _foreign_id(chance: random.Random, message: Message) -> Message:
    forms = ("order {}", "{}\n", "{}\x00", "../{}", "{{{}}}", "é{}", "'; DROP TABLE users; -- {}")
    return _properties(message, message_id=chance.choice(forms).format(_uuid(chance)[:13]))


def _odd_headers(chance: random.Random, message: Message) -> Message:
    values: list[Any] = [
        "seven", True, -1, 0, 2**40, 1.5, [1], [], {"a": [1]}, None, bytearray(b"\xff\xfe"),
        "x" * 3000, datetime(2026, 1, 31, tzinfo=UTC),
    ]  # fmt: skip
    names = ("x-attempt", "x-first-seen", "traceparent", "x-death", "x-error-code",
             "x-failed-attempts", "x-delivery-count", "x-previous-deliveries", "x-deferrals",
             "x-first-death-queue", "\n", "é", "x" * 100)  # fmt: skip
    headers = {name: chance.choice(values) for name in chance.sample(names, 4)}
    # The last try, or beyond all tries: it changes nothing for what succeeds.
    return _properties(message, headers=headers)


def _odd_headers_on_what_is_none(chance: random.Random, message: Message) -> Message:
    return _truncated(chance, _odd_headers(chance, message))


def _heavy_headers(chance: random.Random, message: Message) -> Message:
    headers = {"x-first-seen": "x" * chance.randrange(50_000, 100_000), "traceparent": ["x"] * 900}
    return _truncated(chance, _properties(message, headers=headers))


def _no_text(name: str) -> Callable[[random.Random, Message], Message]:
    """A property whose bytes are no UTF-8, as 8 bytes that begin like a sequence and are none."""
    reasons = {"message_type": "unknown_version", "content_encoding": "malformed"}

    def make(chance: random.Random, message: Message) -> Message:
        odd = replace(message, bytes_in_place=b"\xff\xc3" + chance.randbytes(6))
        if name == "header":
            return _properties(odd, headers={PLACE.decode(): 1})
        changed = _properties(odd, **{name: PLACE.decode()})
        return replace(changed, reason=reasons.get(name, ACCEPTED))

    return make


def _impossible_time(chance: random.Random, message: Message) -> Message:
    times = (b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\x80" + b"\0" * 7, b"\0\0\0\xff" + b"\xff" * 4)
    place = datetime.fromtimestamp(int.from_bytes(TIME_PLACE, "big"), UTC)
    return replace(_properties(message, timestamp=place), bytes_in_place=chance.choice(times))


def _odd_delivery(chance: random.Random, message: Message) -> Message:
    """Properties that are the broker's business, or somebody else's."""
    odd: list[dict[str, Any]] = [
        {"delivery_mode": 1},
        {"priority": 255},
        {"reply_to": "x" * 255},
        {"app_id": "\x1b[2J", "correlation_id": "\n" * 200},
        {"correlation_id": "x" * 255},
        {"headers": {"CC": ["a", "b"], "BCC": ["c"]}},
    ]
    return _properties(message, **chance.choice(odd))


KINDS: dict[str, Callable[[random.Random, Message], Message]] = {
    "nothing": _empty,
    "truncated JSON": _truncated,
    "binary": _binary,
    "a flipped bit": _bit_flipped,
    "no object": _no_object,
    "another encoding of text": _other_encoding,
    "JSON with liberties": _liberties,
    "nested too deep": _deep,
    "a value of the wrong type": _wrong_type,
    "a value that breaks a rule": _wrong_value,
    "a field is missing": _field_missing,
    "one byte too many": _one_byte_too_many,
    "just not too large": _just_not_too_large,
    "as large as the broker takes": _as_large_as_the_broker_takes,
    "an unknown version": _unknown_version,
    "another queue's message": _replayed,
    "another queue's message, typeless": _replayed_without_type,
    "compressed": _compressed,
    "compressed and not said": _compressed_in_secret,
    "another content type": _other_content_type,
    "fields of the future": _future_fields,
    "no id": _no_id,
    "an id that is no UUID": _foreign_id,
    "headers of odd types": _odd_headers,
    "headers of odd types on no JSON": _odd_headers_on_what_is_none,
    "headers that fill a frame": _heavy_headers,
    "an id that is not UTF-8": _no_text("message_id"),
    "a correlation id that is not UTF-8": _no_text("correlation_id"),
    "a type that is not UTF-8": _no_text("message_type"),
    "an encoding that is not UTF-8": _no_text("content_encoding"),
    "a content type that is not UTF-8": _no_text("content_type"),
    "a header name that is not UTF-8": _no_text("header"),
    "a date that is none": _impossible_time,
    "odd properties of delivery": _odd_delivery,
}
"""Every kind, with what makes one out of a good message."""


def properties_of(message: Message) -> Basic.Properties:
    """Its AMQP properties; persistent unless it says otherwise."""
    return Basic.Properties(**{"delivery_mode": 2, **message.properties})
