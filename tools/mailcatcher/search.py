"""Mailpit's search language: what a query means, and whether a mail matches it.

``to:``, ``from:``, ``cc:``, ``bcc:``, ``reply-to:``, ``addressed:`` (any of them),
``subject:``, ``message-id:``, ``after:``, ``before:``, ``is:read``, ``is:unread``,
``has:attachment``, and plain words, which are looked for in headers and body. Quotes keep
words together, a leading ``-`` or ``!`` turns a term around. All terms must match; case does
not count.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from tools.mailcatcher.headers import Headers, decode_words
from tools.mailcatcher.message import Content, read_content, squeeze
from tools.mailcatcher.store import Entry, MailStore

_ARGUMENT = re.compile(r'(?:[^\s"]|"[^"]*(?:"|\Z))+')
_NOISE = re.compile(r'[<>",;()]')

_FIELDS: dict[str, Callable[[Headers], str]] = {
    "to": lambda headers: headers.to,
    "from": lambda headers: headers.sender,
    "cc": lambda headers: headers.cc,
    "bcc": lambda headers: headers.bcc,
    "reply-to": lambda headers: headers.reply_to,
    "addressed": lambda headers: headers.addresses,
    "subject": lambda headers: headers.subject,
    "message-id": lambda headers: headers.message_id,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One condition of a query."""

    kind: str
    """A field's name, ``is``, ``has``, ``after``, ``before``, or ``word``."""
    value: str
    """Lower case, without the characters ``normalise`` removes."""
    exclude: bool = False

    @property
    def needs_content(self) -> bool:
        """Whether only the whole mail tells."""
        return self.kind in {"word", "has"}


@dataclass(frozen=True, slots=True)
class Query:
    """All terms of a search, the cheap ones first."""

    terms: tuple[Term, ...]

    @classmethod
    def parse(cls, text: str) -> "Query":
        """Read a query; what has no alphanumeric character is left out."""
        terms = (_parse_term(match[0]) for match in _ARGUMENT.finditer(text))
        return cls(tuple(sorted(filter(None, terms), key=lambda term: term.needs_content)))

    def search(self, store: MailStore, ids: Iterable[str]) -> Iterator[str]:
        """Yield the ids that match, in the order given; reads files where it must."""
        for mail_id in ids:
            if (entry := store.entry(mail_id)) and self._matches(entry, store):
                yield mail_id

    def _matches(self, entry: Entry, store: MailStore) -> bool:
        content: Content | None = None
        for term in self.terms:
            if term.needs_content and content is None:
                raw = store.read(entry.id)
                if raw is None:
                    return False
                content = read_content(raw)
            if _holds(term, entry, content, read=store.is_read(entry.id)) is term.exclude:
                return False
        return True


def normalise(text: str) -> str:
    """What mails and queries are compared as: lower case, no brackets or quotes, one blank."""
    return squeeze(_NOISE.sub(" ", text)).lower()


def _parse_term(argument: str) -> Term | None:
    argument = argument.replace('"', "")
    exclude = len(argument) > 1 and argument[0] in "-!"
    argument = argument[1:] if exclude else argument
    if not any(map(str.isalnum, argument)):
        return None
    kind, colon, value = argument.partition(":")
    kind, value = kind.lower(), normalise(value)
    if not colon or not _is_known(kind, value):
        return Term(kind="word", value=normalise(argument), exclude=exclude)
    return Term(kind=kind, value=value, exclude=exclude) if value else None


def _is_known(kind: str, value: str) -> bool:
    match kind:
        case "is":
            return value in {"read", "unread"}
        case "has":
            return value in {"attachment", "attachments"}
        case "after" | "before":
            return _parse_time(value) is not None
        case _:
            return kind in _FIELDS


def _holds(term: Term, entry: Entry, content: Content | None, *, read: bool) -> bool:
    match term.kind:
        case "is":
            return read is (term.value == "read")
        case "has":
            return content is not None and any(not part.inline for part in content.attachments)
        case "after" | "before":
            return _compare_time(term, entry.received)
        case "word":
            return term.value in normalise(_everything(entry.headers, content))
        case field:
            return term.value in normalise(decode_words(_FIELDS[field](entry.headers)))


def _compare_time(term: Term, received: datetime) -> bool:
    moment = _parse_time(term.value)
    if moment is None:
        return True
    return received >= moment if term.kind == "after" else received <= moment


def _parse_time(value: str) -> datetime | None:
    with suppress(ValueError):
        moment = datetime.fromisoformat(value.upper())
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return None


def _everything(headers: Headers, content: Content | None) -> str:
    parts = [decode_words(headers.addresses), decode_words(headers.subject)]
    if content is not None:
        parts += [content.words, *(part.file_name for part in content.attachments)]
    return " ".join(parts)
