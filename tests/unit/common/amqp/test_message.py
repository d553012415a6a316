from datetime import UTC, datetime
from typing import Any, ClassVar
from uuid import UUID, uuid4, uuid5

import pytest

from common.amqp.message import FOREIGN_IDS, MAX_BODY_BYTES, Delivery, Envelope, read
from common.contracts.base import Contract
from common.contracts.encoding import is_plain_text
from common.contracts.registrations import RegistrationSubmitted
from common.contracts.topology import Route
from common.errors import MalformedError, TooLargeError, UnknownVersionError

BODY = b'{"name": "Ada", "surname": "Lovelace", "email": "ada@example.org"}'
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class SecondVersion(Contract):
    type_name: ClassVar[str] = "user.registration.submitted.v2"
    route: ClassVar[Route] = Route(name="test.only", retry_steps=1)

    full_name: str


def a_delivery(body: bytes = BODY, **changes: Any) -> Delivery:
    return Delivery(**{"routing_key": "anything", "headers": {}, "body": body, **changes})


def read_registration(delivery: Delivery) -> RegistrationSubmitted:
    data = read(delivery, [RegistrationSubmitted], max_retries=3).data
    assert isinstance(data, RegistrationSubmitted)
    return data


def test_a_message_written_by_hand_is_read() -> None:
    envelope = read(a_delivery(), [RegistrationSubmitted], max_retries=3)

    assert envelope.data == RegistrationSubmitted(
        name="Ada", surname="Lovelace", email="ada@example.org"
    )
    assert envelope.attempt == 1
    assert envelope.published_at is None
    assert envelope.correlation_id == str(envelope.id)


def test_what_the_message_says_of_itself_is_taken_over() -> None:
    message_id = uuid4()
    published_at = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)

    envelope = read(
        a_delivery(
            message_id=str(message_id),
            correlation_id="c-7",
            type="user.registration.submitted.v1",
            content_type="application/json",
            content_encoding="utf-8",
            timestamp=published_at,
            headers={"x-attempt": 2, "traceparent": TRACE},
        ),
        [RegistrationSubmitted],
        max_retries=3,
    )

    assert envelope.id == message_id
    assert envelope.correlation_id == "c-7"
    assert envelope.attempt == 2
    assert envelope.published_at == published_at


@pytest.mark.parametrize(
    "coding",
    [None, "", "utf-8", "UTF-8", "UTF8", "utf8", "Utf_8", " utf8 ", b"UTF8", "identity", "us-ascii",
     "8bit", "binary"],
)  # fmt: skip
def test_a_character_set_is_no_encoding(coding: object) -> None:
    assert is_plain_text(coding)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "utf-16", "base64", b"gzip", 7, {}])
def test_what_would_have_to_be_decoded_is_an_encoding(coding: object) -> None:
    assert not is_plain_text(coding)


@pytest.mark.parametrize(
    "odd",
    [datetime(9999, 12, 31, tzinfo=UTC), datetime(2026, 1, 31), "2026", 7],  # noqa: DTZ001
)
def test_a_time_that_no_clock_can_have_said_is_dropped(odd: object) -> None:
    assert read(a_delivery(timestamp=odd), [RegistrationSubmitted], 3).published_at is None


def test_fields_that_are_not_known_are_ignored() -> None:
    data = read_registration(a_delivery(BODY[:-1] + b', "utm": {"source": [1, null]}}'))

    assert data.name == "Ada"


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "too large": ({"body": b" " * (MAX_BODY_BYTES + 1)}, TooLargeError, "65537 bytes"),
    "another version": (
        {"type": "user.registration.submitted.v2"},
        UnknownVersionError,
        "user.registration.submitted.v1",
    ),
    "another contract": ({"type": "report.requested.v1"}, UnknownVersionError, "Supported: "),
    "a type of odd type": ({"type": 7}, UnknownVersionError, "Supported: "),
    "compressed": ({"content_encoding": "gzip"}, MalformedError, "UTF-8"),
    "an encoding of odd type": ({"content_encoding": b"gzip"}, MalformedError, "UTF-8"),
    "not JSON": ({"body": b"name=Ada"}, MalformedError, "not valid JSON"),
    "an array": ({"body": b"[]"}, MalformedError, "the whole body"),
    "null": ({"body": b"null"}, MalformedError, "the whole body"),
    "fields are missing": ({"body": b'{"name": "Ada"}'}, MalformedError, "email, surname"),
    "wrong types": (
        {"body": b'{"name": 1, "surname": [], "email": {}}'},
        MalformedError,
        "email, name, surname",
    ),
    "a value breaks a rule": (
        {"body": BODY.replace(b"Lovelace", b"<script>")},
        MalformedError,
        "surname",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_the_contract_is_refused_with_its_reason(kind: str) -> None:
    changes, error, words = REFUSED[kind]

    with pytest.raises(error, match=words):
        read(a_delivery(**changes), [RegistrationSubmitted], max_retries=3)


def test_the_largest_body_is_read() -> None:
    assert read_registration(a_delivery(BODY.ljust(MAX_BODY_BYTES))).name == "Ada"


def test_the_reason_names_fields_but_not_what_was_typed() -> None:
    body = b'{"name": "Grace", "surname": "Hopper7", "email": "nobody"}'

    with pytest.raises(MalformedError) as caught:
        read(a_delivery(body), [RegistrationSubmitted], max_retries=3)

    assert caught.value.detail.endswith("email, surname.")
    assert not any(typed in caught.value.detail for typed in ("Grace", "Hopper7", "nobody"))
    assert caught.value.__cause__ is None  # pydantic's text quotes its input


def test_the_type_chooses_among_versions_and_the_default_stands_for_none() -> None:
    contracts: list[type[Contract]] = [SecondVersion, RegistrationSubmitted]
    second = a_delivery(b'{"fullName": "Ada"}', type="user.registration.submitted.v2")

    assert type(read(second, contracts, 3).data) is SecondVersion
    assert type(read(a_delivery(), contracts, 3).data) is RegistrationSubmitted
    assert type(read(a_delivery(type=""), contracts, 3).data) is RegistrationSubmitted
    with pytest.raises(UnknownVersionError, match="Supported: "):
        read(a_delivery(), [SecondVersion], 3)


def test_the_identity_is_the_message_id_or_follows_from_it_or_from_the_body() -> None:
    message_id = uuid4()

    assert a_delivery(message_id=str(message_id)).id == message_id
    assert a_delivery(message_id=f"{{{message_id}}}").id == message_id
    assert a_delivery(message_id="order-7").id == a_delivery(b"{}", message_id="order-7").id
    assert a_delivery(message_id="order-7").id != a_delivery(message_id="order-8").id
    assert a_delivery().id == a_delivery(message_id="").id == a_delivery(message_id=7).id
    assert a_delivery().id != a_delivery(b"{}").id


def test_the_ids_of_foreign_messages_never_change() -> None:
    assert a_delivery(message_id="order-7").id == UUID("dca985b7-99e9-57a0-bf82-4037a264ca1f")
    assert a_delivery(b"{}").id == UUID("aa10d484-1728-5526-8668-4b998a47a9ff")


@pytest.mark.parametrize("attempt", [None, 0, -1, True, "2", 2.0, [2], b"2"])
def test_an_attempt_that_is_no_count_is_the_first(attempt: object) -> None:
    assert a_delivery(headers={"x-attempt": attempt}).attempt == 1


@pytest.mark.parametrize(("attempt", "last"), [(1, False), (3, False), (4, True), (9, True)])
def test_the_last_attempt_is_the_one_after_all_retries(attempt: int, last: bool) -> None:  # noqa: FBT001
    delivery = a_delivery(headers={"x-attempt": attempt})

    assert read(delivery, [RegistrationSubmitted], max_retries=3).last_attempt is last


@pytest.mark.parametrize("odd", [None, "", "a b", "x" * 129, "c\n", "é", 7, b"c"])
def test_a_correlation_id_that_may_not_be_logged_is_replaced(odd: object) -> None:
    delivery = a_delivery(message_id=str(uuid4()), correlation_id=odd)

    assert delivery.valid_correlation_id == str(delivery.id)


@pytest.mark.parametrize(
    "odd", [None, 5, "", TRACE.upper(), TRACE[1:], TRACE + "\n", "ff" + TRACE[2:]]
)
def test_a_trace_context_of_odd_form_is_dropped(odd: object) -> None:
    assert a_delivery(headers={"traceparent": TRACE}).traceparent == TRACE
    assert a_delivery(headers={"traceparent": odd}).traceparent == ""


@pytest.mark.parametrize(
    ("message_id", "is_derived"),
    [
        (None, True),
        ("", True),
        (str(uuid5(FOREIGN_IDS, b"{}".hex())), True),  # a copy, which names what it had not
        ("order-17", False),
        ("10c87afa-a10a-48db-879b-f8f0cd06569b", False),
        (str(uuid5(FOREIGN_IDS, "order-17")), False),
    ],
)
def test_an_id_that_follows_from_the_body_is_known_as_one(
    message_id: str | None, *, is_derived: bool
) -> None:
    delivery = Delivery(body=b"{}", routing_key="", message_id=message_id, headers={})
    data = read_registration(a_delivery())
    envelope = Envelope(id=delivery.id, correlation_id="", data=data, body=delivery.body)

    assert envelope.is_id_derived == is_derived
