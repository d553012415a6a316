"""Reads what is inside a mail: its text, its HTML and what hangs on it."""

import email
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message as Part
from html import unescape

from tools.mailcatcher.headers import VALUE_LIMIT, clean, decode_words

_SPACE = re.compile(r"[\s\ufeff]+")
SNIPPET_SOURCE = 50_000
"""Characters of a mail that are read for its line in a list."""

_NESTING_LIMIT = 50
"""Parts within parts; the parser compares each line with the ends of all of them."""

_PART_LIMIT = 1000
"""Parts looked at; a mail of more is an attack or a test."""


_PARAMETER_LIMIT = 200
"""In one header: at each semicolon within quotes the parser counts all quotes before it anew."""

_WITH_PARAMETERS = re.compile(
    rb"(?:^|[\r\n])content-(?:type|disposition):[^\r\n]*(?:(?:\r\n|\r|\n)[ \t][^\r\n]*)*",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A part of a mail that is neither its text nor its HTML."""

    part_id: str
    """Its place in the walk through the mail, from 1."""
    file_name: str
    content_type: str
    content_id: str
    inline: bool
    """Shown within the HTML, not offered beside it."""
    content: bytes

    def checksum(self, algorithm: str) -> str:
        """Hexadecimal digest of the content."""
        return hashlib.new(algorithm, self.content, usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A mail, decoded."""

    text: str
    """The plain text; where the mail has none, the words of its HTML."""
    html: str
    attachments: tuple[Attachment, ...] = ()

    @property
    def words(self) -> str:
        """What a reader sees, on one line: for searches and snippets."""
        return squeeze(strip_html(self.html) if self.html else self.text)

    def snippet(self, limit: int = 200) -> str:
        """The first ``limit`` characters of ``words``, from the beginning of the mail."""
        begin = Content(text=self.text[:SNIPPET_SOURCE], html=self.html[:SNIPPET_SOURCE])
        words = begin.words
        return words if len(words) <= limit else f"{words[:limit]}..."


def read_content(raw: bytes) -> Content:
    """Decode a mail. Of one that makes no sense, whatever can be shown: never an error."""
    if raw.lower().count(b"multipart/") > _NESTING_LIMIT or _has_endless_header(raw):
        return _unreadable(raw)
    try:
        return _read_parts(email.message_from_bytes(raw))
    except Exception:  # noqa: BLE001 - broken MIME makes the parser raise nearly anything
        return _unreadable(raw)


def _has_endless_header(raw: bytes) -> bool:
    headers = _WITH_PARAMETERS.finditer(raw)
    return any(header[0].count(b";") > _PARAMETER_LIMIT for header in headers)


def _unreadable(raw: bytes) -> Content:
    return Content(text=clean(_body_of(raw).decode("utf-8", "replace")), html="")


def squeeze(text: str) -> str:
    """Make every run of white space one blank."""
    return _SPACE.sub(" ", text).strip()


def strip_html(html: str) -> str:
    """The words of a page, without its scripts and styles.

    Reads every character once, whatever it is given: ``html.parser`` looks for the end of each
    comment and tag anew, which takes minutes where there are 100,000 without an end.
    """
    words: list[str] = []
    silent_until, position = "", 0
    for markup in _MARKUP.finditer(html):
        if not silent_until:
            words.append(html[position : markup.start()])
        position = markup.end()
        is_end, name = markup[1] == "/", (markup[2] or "").lower()
        if not name:
            continue
        if not silent_until:
            words.append(" ")
            silent_until = name if name in _SILENT and not is_end else ""
        elif is_end and name == silent_until:
            silent_until = ""
    if not silent_until:
        words.append(html[position:])
    return unescape("".join(words))


_MARKUP = re.compile(
    r"<!--.*?(?:--!?>|\Z)"
    r"|<(?:script|style)\b[^>]*(?:>.*?(?:</(?:script|style)\b[^>]*(?:>|\Z)|\Z)|\Z)"
    r"|<(/?)([a-z][^\s/>]*)[^>]*(?:>|\Z)"
    r"|<[!?/][^>]*(?:>|\Z)",
    re.DOTALL | re.IGNORECASE,
)
"""A comment, a script or style with all it holds, a tag, or a declaration; what has no end goes on
to the end of the text."""

_SILENT = frozenset({"head", "title"})
"""Elements whose text is not shown."""


def _read_parts(mail: Part) -> Content:
    texts: list[str] = []
    pages: list[str] = []
    attachments: list[Attachment] = []
    for number, part in _leaves(mail):
        shown = _shown_as(part)
        if shown == "text/plain":
            texts.append(_decode(part))
        elif shown == "text/html":
            pages.append(_decode(part))
        else:
            attachments.append(_attachment(number, part))
    html = "\n".join(pages)
    return Content(
        text="\n".join(texts) if texts else squeeze(strip_html(html)),
        html=html,
        attachments=tuple(attachments),
    )


def _shown_as(part: Part) -> str | None:
    """The type of a part that is the mail's own text; None of one that hangs on it."""
    if part.get_content_disposition() == "attachment" or part.get_filename():
        return None
    return part.get_content_type()


def _leaves(mail: Part) -> Iterator[tuple[int, Part]]:
    for number, part in zip(range(_PART_LIMIT), mail.walk(), strict=False):
        if not part.is_multipart():
            yield number, part


def _attachment(number: int, part: Part) -> Attachment:
    content_id = str(part.get("Content-ID", "")).strip("<> ")
    payload = part.get_payload(decode=True)
    return Attachment(
        part_id=str(number),
        file_name=clean(decode_words((part.get_filename() or "")[:VALUE_LIMIT])),
        content_type=clean(part.get_content_type()),
        content_id=clean(content_id),
        inline=part.get_content_disposition() == "inline"
        or (bool(content_id) and part.get_content_disposition() is None),
        content=payload if isinstance(payload, bytes) else b"",
    )


def _decode(part: Part) -> str:
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes):
        return ""
    try:
        return clean(payload.decode(part.get_content_charset() or "utf-8", "replace"))
    except (LookupError, ValueError):  # a charset that does not exist, or is no charset
        return payload.decode("utf-8", "replace")


def _body_of(raw: bytes) -> bytes:
    head, separator, body = raw.partition(b"\r\n\r\n")
    return body if separator else head
