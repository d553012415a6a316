import pytest

from tools.mailcatcher.headers import (
    VALUE_LIMIT,
    Address,
    Headers,
    all_headers,
    decode_words,
    parse_addresses,
    starts_with_header,
)


def test_scan_reads_folded_headers_whatever_their_case() -> None:
    raw = (
        b"FROM: UserStream\r\n <no-reply@example.org>\r\n"
        b"to: ada@example.org\r\nMessage-Id: <one@example.org>\r\n"
        b"Subject: Hello\r\n\tthere\r\n\r\nTo: not-a-header@example.org\r\n"
    )

    headers = Headers.scan(raw)

    assert headers == Headers(
        sender="UserStream <no-reply@example.org>",
        to="ada@example.org",
        message_id="one@example.org",
        subject="Hello there",
    )


def test_scan_joins_recipients_of_repeated_headers_and_takes_the_first_subject() -> None:
    raw = b"Bcc: a@example.org\nBcc: b@example.org\nSubject: one\nSubject: two\n\n"

    headers = Headers.scan(raw)

    assert headers.bcc == "a@example.org, b@example.org"
    assert headers.subject == "one"


@pytest.mark.parametrize(
    "raw", [b"", b"\r\n", b"no header at all", b": x\n\n", b"\x00\xff\r\n\r\n"]
)
def test_scan_finds_nothing_in_what_is_no_mail(raw: bytes) -> None:
    assert Headers.scan(raw) == Headers()
    assert not starts_with_header(raw)


def test_cut_bounds_every_value_and_leaves_short_ones() -> None:
    headers = Headers(to="x" * (VALUE_LIMIT + 1), subject="Hello").cut()

    assert len(headers.to) == VALUE_LIMIT
    assert headers.subject == "Hello"


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("ada@example.org", True),
        ("ADA@EXAMPLE.ORG", True),
        ("grace@example.org", True),
        ("da@example.org", False),
        ("hidden@example.org", False),
    ],
)
def test_names_recipient_compares_whole_addresses(address: str, named: bool) -> None:  # noqa: FBT001
    headers = Headers(to="Ada <ada@example.org>, grace@example.org", cc='"X" <x@example.org>')

    assert headers.names_recipient(address) is named


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain", "plain"),
        ("=?utf-8?q?sch=C3=B6n?=", "schön"),
        ("=?utf-8?b?TmfGsOG7nWk=?= dort", "Người dort"),
    ],
)
def test_decode_words_reads_encoded_words(value: str, expected: str) -> None:
    assert decode_words(value) == expected


@pytest.mark.parametrize(
    "value",
    ["=?no-such-charset?q?x?=", "=?utf-8?b?!?=", "=?utf-7?q?+2AA-?=", "=?utf-8?q?=FF?=", "=?=?=?"],
)
def test_decode_words_makes_of_nonsense_something_that_can_be_written(value: str) -> None:
    decode_words(value).encode("utf-8")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", []),
        ("ada@example.org", [Address("", "ada@example.org")]),
        ('"Lovelace, Ada" <ada@example.org>', [Address("Lovelace, Ada", "ada@example.org")]),
        (
            "=?utf-8?q?Doe=2C_J=C3=B6?= <j@example.org>, b@example.org",
            [Address("Doe, Jö", "j@example.org"), Address("", "b@example.org")],
        ),
    ],
)
def test_parse_addresses_splits_before_it_decodes(value: str, expected: list[Address]) -> None:
    assert parse_addresses(value) == expected


def test_all_headers_keeps_order_and_repeats() -> None:
    raw = b"B: 1\r\nA: 2\r\nB: 3\r\n\r\nbody"

    assert all_headers(raw) == [("B", "1"), ("A", "2"), ("B", "3")]


@pytest.mark.parametrize("value", ["(" * 2000, "(" * 60_000 + ")" * 60_000, "<" * 5000, '"' * 5000])
def test_a_list_of_addresses_that_makes_no_sense_stays_text(value: str) -> None:
    """Or one such mail would take the whole list with it."""
    shown = parse_addresses(value)

    assert [str(address) for address in shown] in ([value], [])
