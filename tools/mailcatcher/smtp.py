"""Receives mails: aiosmtpd, made fast enough to stand under a load test."""

import asyncio
import logging
import re
from secrets import token_hex
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope, Session

from tools.mailcatcher.headers import Headers, starts_with_header
from tools.mailcatcher.store import MailStore

log = logging.getLogger(__name__)

SIZE_LIMIT = 25 * 1024 * 1024
"""Bytes of a mail: what large providers take (announced as SIZE, RFC 1870)."""

READ_AHEAD = 256 * 1024
"""Bytes of pipelined commands and mail text read before the sender is made to wait."""

_ADDRESS = re.compile(r"<([^\s<>()\[\]\\,;:\"@]+@[^\s<>()\[\]\\,;:\"@]+)>(.*)", re.DOTALL)
"""An address without quotes, comments or routes: all that are met, nearly."""


class CatchingSMTP(SMTP):
    """One connection. What a mail costs here is spent on reading, not on line by line work.

    Mails that break the line length limit of RFC 5322 are taken: a catcher is there to show
    what is wrong with them.
    """

    line_length_limit = READ_AHEAD

    def __init__(self, handler: "MailHandler", *, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            handler,
            data_size_limit=SIZE_LIMIT,
            enable_SMTPUTF8=True,
            hostname="mailcatcher",
            ident="ready",
            loop=loop,
        )
        self._replies: list[bytes] = []

    async def push(self, status: str | bytes) -> None:
        """Answer; answers to commands that came in one packet leave in one packet."""
        reply = status.encode() if isinstance(status, str) else status
        self._replies.append(reply + b"\r\n")
        if not reply.startswith(b"250 "):  # 354 and every refusal: someone waits for it
            self._flush()
            await self._writer.drain()
        elif len(self._replies) == 1:
            # Runs once no buffered command is left and the connection waits for its client.
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._replies and self.transport is not None:
            self._writer.write(b"".join(self._replies))
        self._replies.clear()

    async def smtp_DATA(self, arg: str | None) -> None:  # noqa: N802 - aiosmtpd finds it by name
        """Receive a mail in as few reads as it has packets, then hand it to the handler."""
        if await self.check_helo_needed():
            return
        if self.envelope is None or not self.envelope.rcpt_tos:
            await self.push("503 5.5.1 Error: need RCPT command")
            return
        if arg:
            await self.push("501 5.5.4 Syntax: DATA")
            return
        await self.push("354 End data with <CR><LF>.<CR><LF>")
        if (text := await self._receive_text()) is None:
            await self.push("552 5.3.4 Error: too much mail data")
        else:
            self.envelope.content = text
            await self.push(await self.event_handler.handle_DATA(self, self.session, self.envelope))
        self.envelope = self._create_envelope()

    async def _receive_text(self) -> bytes | None:
        """Read up to the lone dot and undo dot-stuffing; None where it is over the limit."""
        parts: list[bytes] = []
        size, end = 0, b"\r\n"
        while not end.endswith(b"\r\n.\r\n"):
            part = await self._read_part()
            size += len(part)
            end = (end + part)[-5:]
            if size <= SIZE_LIMIT + 3:
                parts.append(part)
            else:
                parts.clear()  # keep reading, so that the refusal is read too
        if size > SIZE_LIMIT + 3:
            return None
        text = b"".join(parts)[:-3]
        return text.replace(b"\r\n.", b"\r\n")[1 if text.startswith(b".") else 0 :]

    async def _read_part(self) -> bytes:
        # Few lines end with a dot, so this finds the end of most mails in one search.
        try:
            return await self._reader.readuntil(b".\r\n")
        except asyncio.LimitOverrunError as overrun:
            return await self._reader.readexactly(overrun.consumed)

    def _getaddr(self, arg: str) -> tuple[str | None, str | None]:
        # aiosmtpd parses addresses by the full grammar, which takes longer than all the rest.
        if match := _ADDRESS.fullmatch(arg):
            return match[1], match[2]
        return super()._getaddr(arg)


class MailHandler:
    """Keeps every mail, with its envelope written into its headers as Mailpit does."""

    def __init__(self, store: MailStore) -> None:
        self._store = store

    async def handle_EHLO(  # noqa: N802 - aiosmtpd finds it by name
        self, _server: Any, session: Session, _envelope: Envelope, hostname: str, answers: list[str]
    ) -> list[str]:
        """Announce PIPELINING and ENHANCEDSTATUSCODES beside what aiosmtpd does."""
        session.host_name = hostname
        return [*answers[:-1], "250-PIPELINING", "250-ENHANCEDSTATUSCODES", *answers[-1:]]

    async def handle_DATA(  # noqa: N802 - aiosmtpd finds it by name
        self, _server: Any, _session: Session, envelope: Envelope
    ) -> str:
        """Answer 250 only when the mail is in its file."""
        raw, headers = _with_envelope(envelope)
        try:
            mail_id = self._store.add(raw, headers)
        except OSError as error:
            log.error("mail not kept, the sender was told to try again: %s", error.strerror)  # noqa: TRY400 - the trace says nothing more
            return f"452 4.3.1 Mail not kept: {error.strerror}; make room, then send it again"
        log.info("mail %s kept, %d bytes", mail_id, len(raw))
        return f"250 2.0.0 Ok: queued as {mail_id}"


def _with_envelope(envelope: Envelope) -> tuple[bytes, Headers]:
    """Put in front what the envelope knows and the mail does not say.

    Return-Path is the server's to add (RFC 5321, 4.4). Recipients named in no header become
    Bcc. A mail without Message-ID gets one.
    """
    raw = envelope.content if isinstance(envelope.content, bytes) else b""
    headers = Headers.scan(raw)
    added = [f"Return-Path: <{(envelope.mail_from or '').strip('<>')}>"]
    if unnamed := [to for to in envelope.rcpt_tos if not headers.names_recipient(to)]:
        added.append(f"Bcc: {', '.join(unnamed)}")
    if not headers.message_id:
        added.append(f"Message-ID: <{token_hex(16)}@mailcatcher>")
    if not starts_with_header(raw):
        added.append("")  # so that a mail without headers stays all body
    whole = "\r\n".join([*added, ""]).encode("utf-8", "surrogateescape") + raw
    return whole, headers if len(added) == 1 else Headers.scan(whole)
