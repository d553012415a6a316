import json

import pytest

from common.amqp.message import Delivery
from queue_receiver.dead_letters.masking import redacted_body, shown_headers, unmasked_body


def test_fields_are_shown_and_values_redacted() -> None:
    body = {
        "name": "Ada",
        "email": "ada@example.org",
        "phone": 12345,
        "template": "welcome",
        "registrationId": "0192f7a4-5b7c-7c3e-9f10-2b6d1c3a4e5f",
        "data": {"city": "London", "known": True},
    }

    masked = json.loads(redacted_body(json.dumps(body).encode()))

    assert masked == {
        "name": "••• (3 characters)",
        "email": "••• (15 characters)",
        "phone": "•••",
        "template": "welcome",
        "registrationId": "0192f7a4-5b7c-7c3e-9f10-2b6d1c3a4e5f",
        "data": {"city": "••• (6 characters)", "known": True},
    }


@pytest.mark.parametrize(
    "body",
    [
        b'{"ada@example.org": 1}',
        b'{"template": "ada@example.org"}',
        b'["ada@example.org"]',
        b'"ada@example.org"',
        b"ada@example.org",
        b'{"a":{"a":{"a":{"a":{"a":"ada@example.org"}}}}}',
        b'{"columns": ["ada@example.org"]}',
    ],
)
def test_an_address_is_redacted_wherever_it_stands(body: bytes) -> None:
    assert "ada" not in redacted_body(body)


@pytest.mark.parametrize("body", [b"", b"\xff\x00", b"[" * 60_000, b"x" * 70_000, b"{}" * 2])
def test_of_what_is_no_json_the_size_is_shown(body: bytes) -> None:
    assert f"{len(body)} bytes" in redacted_body(body)


def test_what_is_unmasked_is_text_and_not_too_long() -> None:
    assert unmasked_body(b"caf\xc3\xa9 \xff") == "café \N{REPLACEMENT CHARACTER}"
    assert unmasked_body(b"x" * 70_000).endswith("… and 4464 bytes more")


def test_headers_of_others_are_redacted() -> None:
    headers = {"x-error-code": "malformed", "x-failed-attempts": 4, "x-user": "ada@example.org"}
    delivery = Delivery(body=b"", routing_key="", headers=headers)

    assert shown_headers(delivery, unmask=False) == {
        "x-error-code": "malformed",
        "x-failed-attempts": "4",
        "x-user": "•••",
    }
    assert shown_headers(delivery, unmask=True)["x-user"] == "ada@example.org"
