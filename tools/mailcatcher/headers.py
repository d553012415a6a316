"""Finds a mail's headers in its raw bytes, and what their values mean.

The index needs seven headers of every mail, thousands of times a second, so they are
searched for directly: parsing the MIME structure costs fifty times as much and waits until
someone opens the mail.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.utils import getaddresses
from typing import Self

HEADER_LIMIT = 64 * 1024
"""Bytes at the start of a mail that are searched for headers."""

VALUE_LIMIT = 2000
"""Characters of one header kept in the index, so that its memory stays bounded."""

_END_OF_HEADERS = re.compile(rb"\r?\n\r?\n|\A\r?\n")
_HEADER = re.compile(rb"^([!-9;-~]+)[ \t]*:[ \t]*([^\r\n]*(?:\r?\n[ \t][^\r\n]*)*)", re.MULTILINE)
_FOLD = re.compile(r"\s*[\r\n]\s*")
_ADDRESS_LIKE = re.compile(r"[^\s<>(),;:\"]+")
_RECIPIENTS = frozenset({"to", "cc", "bcc"})
_INDEXED = {
    b"message-id": "message_id",
    b"from": "sender",
    b"to": "to",
    b"cc": "cc",
    b"bcc": "bcc",
    b"reply-to": "reply_to",
    b"subject": "subject",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Headers:
    """The headers that lists show and searches read, unfolded but still encoded (RFC 2047)."""

    message_id: str = ""
    """Without its angle brackets."""
    sender: str = ""
    to: str = ""
    cc: str = ""
    bcc: str = ""
    reply_to: str = ""
    subject: str = ""

    @classmethod
    def scan(cls, raw: bytes) -> Self:
        """Read them from the start of a mail; recipients given in several headers are joined."""
        found: dict[str, str] = {}
        for name, value in _scan(raw):
            if field := _INDEXED.get(name.lower()):
                if field not in found:
                    found[field] = _text(value)
                elif field in _RECIPIENTS:
                    found[field] += ", " + _text(value)
        found["message_id"] = found.get("message_id", "").strip("<> ")
        return cls(**found)

    def cut(self) -> Self:
        """The same with every value short enough to stay in memory."""
        long = {
            name: value[:VALUE_LIMIT]
            for name in self.__slots__
            if len(value := getattr(self, name)) > VALUE_LIMIT
        }
        return replace(self, **long) if long else self

    @property
    def addresses(self) -> str:
        """Everyone the mail names, in one line."""
        return f"{self.sender} {self.to} {self.cc} {self.bcc} {self.reply_to}"

    def names_recipient(self, address: str) -> bool:
        """Whether one of the headers says that the mail goes to this address."""
        recipients = f"{self.to} {self.cc} {self.bcc}".lower()
        return address.lower() in _ADDRESS_LIKE.findall(recipients)


@dataclass(frozen=True, slots=True)
class Address:
    """A mailbox: an address and, where one was given, the name shown for it."""

    name: str
    address: str

    def __str__(self) -> str:
        if self.name and self.address:
            return f"{self.name} <{self.address}>"
        return self.name or self.address


def all_headers(raw: bytes) -> list[tuple[str, str]]:
    """Every header in order, unfolded, still encoded (RFC 2047)."""
    return [(name.decode("ascii"), _text(value)) for name, value in _scan(raw)]


def starts_with_header(raw: bytes) -> bool:
    """Whether a mail begins as it should; one that does not is all body."""
    return _HEADER.match(raw, 0, HEADER_LIMIT) is not None


def decode_words(value: str) -> str:
    """Read encoded words (RFC 2047); what cannot be read stays as it came."""
    if "=?" not in value:
        return value
    try:
        return clean(str(make_header(decode_header(value))))
    except (HeaderParseError, LookupError, ValueError):
        return value


def parse_addresses(value: str) -> list[Address]:
    """The mailboxes of an address header; of nonsense, its text as a name without address."""
    try:
        pairs = getaddresses([value])
    except RecursionError:  # comments in comments in comments
        pairs = []
    # The names are decoded after the list is split: a comma in a name is no separator.
    found = [Address(decode_words(name), address) for name, address in pairs if address]
    if not found and value.strip():
        return [Address(decode_words(value).strip(), "")]
    return found


def clean(text: str) -> str:
    """Replace what UTF-8 cannot carry, so that every answer can be written."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _scan(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    end = _END_OF_HEADERS.search(raw, 0, HEADER_LIMIT)
    for match in _HEADER.finditer(raw, 0, end.start() if end else min(len(raw), HEADER_LIMIT)):
        yield match[1], match[2]


def _text(value: bytes) -> str:
    text = value.decode("utf-8", "replace")
    return _FOLD.sub(" ", text).strip() if "\n" in text or "\r" in text else text.strip()
