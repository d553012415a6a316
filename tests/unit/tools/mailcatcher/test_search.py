from pathlib import Path

import pytest

from tools.mailcatcher.headers import Headers
from tools.mailcatcher.search import Query, Term
from tools.mailcatcher.store import MailStore


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("", []),
        ("   ", []),
        ("-", []),
        ("to:", []),
        ("welcome", [Term(kind="word", value="welcome")]),
        ("To:Ada@Example.org", [Term(kind="to", value="ada@example.org")]),
        ('to:"Ada Lovelace"', [Term(kind="to", value="ada lovelace")]),
        ('"two words"', [Term(kind="word", value="two words")]),
        ('subject:"not closed', [Term(kind="subject", value="not closed")]),
        ("-from:x", [Term(kind="from", value="x", exclude=True)]),
        ("!is:read", [Term(kind="is", value="read", exclude=True)]),
        ("colour:red", [Term(kind="word", value="colour:red")]),
        ("after:yesterday", [Term(kind="word", value="after:yesterday")]),
        ("Привет", [Term(kind="word", value="привет")]),
        ("word to:x", [Term(kind="to", value="x"), Term(kind="word", value="word")]),
    ],
)
def test_parse_reads_mailpits_language(text: str, terms: list[Term]) -> None:
    assert Query.parse(text).terms == tuple(terms)


@pytest.fixture
def store(tmp_path: Path) -> MailStore:
    store = MailStore(tmp_path, keep=10)
    store.open()
    return store


def keep(store: MailStore, raw: str) -> str:
    return store.add(raw.encode(), Headers.scan(raw.encode()))


def found(store: MailStore, query: str) -> list[str]:
    return list(Query.parse(query).search(store, store.ids()))


@pytest.mark.parametrize(
    ("query", "matches"),
    [
        ("to:ada@example.org", True),
        ("to:ADA", True),
        ("to:lovelace", True),
        ("to:grace@example.org", False),
        ("from:no-reply", True),
        ("subject:schön", True),
        ('subject:"schön, dass"', True),
        ("bcc:hidden@example.org", True),
        ("addressed:hidden@example.org", True),
        ("message-id:one@example.org", True),
        ("is:unread", True),
        ("is:read", False),
        ("-is:read", True),
        ("has:attachment", False),
        ("after:2020-01-01", True),
        ("before:2020-01-01", False),
        ("confirmation", True),
        ("hidden@example.org confirmation", True),
        ("to:ada missing", False),
        ("-confirmation", False),
        ("100%", False),
    ],
)
def test_search_matches_headers_decoded_and_the_body(
    store: MailStore, query: str, *, matches: bool
) -> None:
    mail_id = keep(
        store,
        "Bcc: hidden@example.org\nFrom: UserStream <no-reply@example.org>\n"
        "To: Ada Lovelace <ada@example.org>\nMessage-ID: <one@example.org>\n"
        "Subject: =?utf-8?q?Sch=C3=B6n=2C_dass_du_da_bist?=\n\nYour Confirmation link\n",
    )

    assert found(store, query) == ([mail_id] if matches else [])


def test_search_yields_the_newest_first(store: MailStore) -> None:
    first = keep(store, "To: ada@example.org\n\n")
    keep(store, "To: grace@example.org\n\n")
    second = keep(store, "To: ada@example.org\n\n")

    assert found(store, "to:ada@example.org") == [second, first]
