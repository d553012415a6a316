"""Finds the parts of a mail, line by line: each line is read once, whatever it holds.

Not with the standard library's parser: that recurses with each part, parses a header in quadratic
time, and loses what does not follow the standard.
"""

import binascii
import quopri
import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_PARTS = 100
"""Of one mail that are read; a report has three or four."""

MAX_DEPTH = 10
"""Multiparts open at the same time."""

MAX_DECODINGS = 4
"""Encoded mails within each other."""

HEADER_LENGTH = 2_000
"""Characters of a header that are kept."""

MAILS = ("message/rfc822", "message/global")
HEADERS = ("text/rfc822-headers", "message/global-headers", "message/rfc822-headers")

_HEADER = re.compile(r"([!-9;-~]+)[ \t]*:[ \t]*(.*)", re.DOTALL)
_BOUNDARY = re.compile(r'boundary\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))', re.IGNORECASE)

Headers = dict[str, str]
"""Names in lower case to values on one line; of several of a name, the first."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part without others in it, or the headers of a mail."""

    kind: str
    """Its type in lower case; of a mail's headers, ``headers``."""

    headers: Headers
    """Of the mail, where the part is the headers of one; else of the part."""

    lines: list[str]
    """Its text, decoded; empty for headers."""


def read_parts(raw: bytes, wanted: tuple[str, ...]) -> Iterator[Part]:
    """Yield the parts of the types ``wanted``, and the headers of each mail, in their order.

    The first ones are those of the whole mail.
    """
    yield from _Reader(_lines(raw), wanted, MAX_DECODINGS).read()


class _Reader:
    def __init__(self, lines: list[str], wanted: tuple[str, ...], decodings: int) -> None:
        self._lines = lines
        self._wanted = wanted
        self._decodings = decodings
        self._place = 0
        self._boundaries: list[str] = []

    def read(self) -> Iterator[Part]:
        """Yield the parts of a mail that begins with the first line."""
        while self._place < len(self._lines) and not self._lines[self._place].strip():
            self._place += 1
        is_mail = True
        for _ in range(MAX_PARTS):
            headers = self._read_headers()
            kind = _kind_of(headers)
            if is_mail:
                yield Part("headers", headers, [])
            is_mail = kind in MAILS and _encoding_of(headers) == ""
            if is_mail:
                continue  # its headers come next
            if kind.startswith("multipart/"):
                self._open(headers)
                self._skip()
            else:
                yield from self._leaf(kind, headers)
            if not self._enter():
                return

    def _leaf(self, kind: str, headers: Headers) -> Iterator[Part]:
        if kind not in (*self._wanted, *HEADERS, *MAILS):
            self._skip()
            return
        lines = _decoded(self._lines[self._place : self._skip()], _encoding_of(headers))
        if kind in MAILS:
            if self._decodings:
                yield from _Reader(lines, self._wanted, self._decodings - 1).read()
        elif kind in HEADERS:
            yield Part("headers", _Reader(lines, (), 0)._read_headers(), [])  # noqa: SLF001
        else:
            yield Part(kind, headers, lines)

    def _read_headers(self) -> Headers:
        headers: Headers = {}
        name = ""
        while self._place < len(self._lines):
            line = self._lines[self._place]
            if self._boundary_of(line) is not None:
                break  # where the part has no text
            self._place += 1
            if not line.strip():
                break
            if line[0] in " \t":
                if name and len(headers[name]) < HEADER_LENGTH:
                    headers[name] += " " + line.strip()[:HEADER_LENGTH]
            elif match := _HEADER.fullmatch(line[:HEADER_LENGTH]):
                name = match[1].lower()
                name = "" if name in headers else name
                if name:
                    headers[name] = match[2].strip()
        return headers

    def _open(self, headers: Headers) -> None:
        boundary = _BOUNDARY.search(headers["content-type"])
        if boundary and len(self._boundaries) < MAX_DEPTH:
            quoted = re.sub(r"\\(.)", r"\1", boundary[1] or "")
            self._boundaries.append("--" + (quoted or boundary[2] or ""))

    def _skip(self) -> int:
        """Go to the next boundary; return its place."""
        while self._place < len(self._lines):
            if self._boundary_of(self._lines[self._place]) is not None:
                break
            self._place += 1
        return self._place

    def _enter(self) -> bool:
        """Go to the part that begins next; False at the end."""
        while self._skip() < len(self._lines):
            line = self._lines[self._place]
            self._place += 1
            level = self._boundary_of(line)
            assert level is not None  # noqa: S101 - _skip stops nowhere else
            is_end = line.rstrip() != self._boundaries[level]
            del self._boundaries[level if is_end else level + 1 :]
            if not is_end:
                return True
        return False

    def _boundary_of(self, line: str) -> int | None:
        """Return the level of the open multipart whose boundary the line is."""
        if not line.startswith("--"):
            return None
        line = line.rstrip()
        for level in range(len(self._boundaries) - 1, -1, -1):
            if line in (self._boundaries[level], self._boundaries[level] + "--"):
                return level
        return None


def _kind_of(headers: Headers) -> str:
    return headers.get("content-type", "text/plain").partition(";")[0].strip().lower()


def _encoding_of(headers: Headers) -> str:
    encoding = headers.get("content-transfer-encoding", "").partition(";")[0].strip().lower()
    return encoding if encoding in ("base64", "quoted-printable") else ""


def _decoded(lines: list[str], encoding: str) -> list[str]:
    if not encoding:
        return lines
    text = "\n".join(lines).encode()
    if encoding == "quoted-printable":
        return _lines(quopri.decodestring(text))
    try:
        return _lines(binascii.a2b_base64(text))
    except binascii.Error:  # cut off, or not encoded at all
        return lines


def _lines(raw: bytes) -> list[str]:
    text = raw.decode("utf-8", "replace")
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
