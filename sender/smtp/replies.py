"""Reads a mail server's replies from the bytes it sends (RFC 5321, 4.2)."""

import asyncio
import re
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

REPLY_LIMIT = 64 * 1024
"""Bytes of one reply. RFC 5321, 4.5.3.1.5 allows 512 per line; some servers write essays."""

COMMON_LENGTH = 60
"""Longest reply, in bytes, that is remembered: MAIL, RCPT and DATA get the same ones each time."""

_LINE = re.compile(rb"([2-5][0-9]{2})(?:([ -])(.*))?", re.DOTALL)
"""Replies of 1yz and above 5yz do not exist: to act on them would be to guess."""

_ENHANCED = re.compile(r"#?([245]\.\d{1,3}\.\d{1,3})(?=[ :;,]|$)")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


class Phase(StrEnum):
    """How far the session had come; the order is that of time."""

    CONNECT = "connect"
    GREETING = "greeting"
    HELLO = "EHLO"
    STARTTLS = "STARTTLS"
    LOGIN = "AUTH"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    TEXT = "text"
    """The mail and its final dot are on their way: from here on it may be accepted."""

    IDLE = "idle"
    """Between mails."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply."""

    code: int
    """200 to 599."""

    text: str
    """The server's text on one line, without control characters. May name the recipient."""

    lines: tuple[str, ...] = ()
    """The same, line by line: the extensions, after EHLO."""

    @property
    def positive(self) -> bool:
        """2yz: done."""
        return self.code < 300  # noqa: PLR2004 - 2yz

    @property
    def permanent(self) -> bool:
        """5yz: the same again would be refused again."""
        return self.code >= 500  # noqa: PLR2004 - 5yz

    @property
    def status(self) -> str:
        """The enhanced status code (RFC 3463), empty where there is none."""
        enhanced = _ENHANCED.match(self.text)
        return enhanced[1] if enhanced else ""

    @property
    def summary(self) -> str:
        """Code and enhanced status code (RFC 3463) only: fit for logs, without names."""
        return f"{self.code} {self.status}".rstrip()

    def __str__(self) -> str:
        return f"{self.code} {self.text}".rstrip()


class MalformedReplyError(ValueError):
    """What came is not an SMTP reply."""


class ReplyProtocol(asyncio.Protocol):
    """Collects replies in the order in which they come, so that commands can be pipelined.

    aiosmtplib knows one outstanding command and drops what comes beyond its reply.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._lines: list[tuple[int, str]] = []
        self._size = 0
        self._replies: deque[Reply] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._end: Exception | None = None

    @property
    def ended(self) -> bool:
        """Whether no more replies will come."""
        return self._end is not None

    @property
    def has_input(self) -> bool:
        """Whether something came that was not read: a reply, or a part of one."""
        return bool(self._replies or self._lines or self._buffer)

    async def read(self, seconds: float) -> Reply:
        """Wait for the next reply.

        Raises:
            TimeoutError: None came within ``seconds``.
            ConnectionError: The connection ended first.
            MalformedReplyError: What came is not a reply.
        """
        if not self._replies and self._end is None:
            await self._wait(seconds)
        if self._replies:
            return self._replies.popleft()
        raise self._end or ConnectionResetError("the connection ended")

    async def _wait(self, seconds: float) -> None:
        # By hand: ``asyncio.timeout`` costs more than all the rest of a reply.
        self._waiter = self._loop.create_future()
        timer = self._loop.call_later(seconds, self._time_out)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None

    def _time_out(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(TimeoutError())

    def data_received(self, data: bytes) -> None:
        """Called by the loop with bytes in chunks of any size."""
        if self._end is not None:
            return
        self._buffer += data
        try:
            self._take_lines()
        except MalformedReplyError as error:
            self._finish(error)
        else:
            if self._replies:
                self._wake()

    def eof_received(self) -> bool:
        """Called by the loop: the server closed its side. False closes ours too."""
        self._finish(ConnectionResetError("the server closed the connection"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop when the connection is gone."""
        self._finish(exc or ConnectionResetError("the connection ended"))

    def give_up(self) -> None:
        """End, and discard the replies to an announced mail, if the mail before it failed."""
        self._replies.clear()
        self.connection_lost(None)

    def _take_lines(self) -> None:
        *lines, rest = self._buffer.split(b"\n")
        for line in lines:
            self._take_line(bytes(line.removesuffix(b"\r")))
        self._buffer = rest
        if self._size + len(rest) > REPLY_LIMIT:
            raise MalformedReplyError("a reply without end")

    def _take_line(self, line: bytes) -> None:
        if not self._lines and len(line) <= COMMON_LENGTH and (reply := _reply_of(line)):
            self._replies.append(reply)
            return
        match = _LINE.fullmatch(line)
        code = int(match[1]) if match else 0
        if not match or (self._lines and self._lines[0][0] != code):
            raise MalformedReplyError("not an SMTP reply")
        self._lines.append((code, _text(match)))
        self._size += len(line)
        if match[2] != b"-":
            self._replies.append(_reply(code, [text for _, text in self._lines]))
            self._lines.clear()
            self._size = 0
        elif self._size > REPLY_LIMIT:
            raise MalformedReplyError("a reply without end")

    def _finish(self, reason: Exception) -> None:
        self._end = self._end or reason
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


@lru_cache(64)
def _reply_of(line: bytes) -> Reply | None:
    """The reply that a line is by itself."""
    match = _LINE.fullmatch(line)
    if match is None or match[2] == b"-":
        return None
    return _reply(int(match[1]), [_text(match)])


def _text(match: re.Match[bytes]) -> str:
    return (match[3] or b"").decode("utf-8", "replace")


def _reply(code: int, lines: list[str]) -> Reply:
    texts = tuple(_UNPRINTABLE.sub(" ", line).strip() for line in lines)
    return Reply(code, " ".join(filter(None, texts)), texts)
