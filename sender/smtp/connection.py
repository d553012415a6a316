"""A session with a mail server, and how one mail goes through it.

MAIL, RCPT and DATA travel in one packet where the server offers PIPELINING (RFC 2920): two
round trips for a mail instead of four.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, Self

from sender.smtp.errors import LinkDroppedError, Utf8AddressError
from sender.smtp.link import Link
from sender.smtp.opening import Extensions, Server, open_session
from sender.smtp.replies import Phase, Reply

SERVICE_CLOSING = 421
START_TEXT = 354

_PATH = re.compile(r"[^\x00-\x20\x7f<>]+")

Commands = tuple[tuple[Phase, bytes], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """A mail in its envelope."""

    sender: str
    recipient: str
    content: bytes
    """Headers and body; lines end with CRLF, the last one too. Dots are not yet doubled."""

    @property
    def needs_utf8(self) -> bool:
        """Whether an address can only be said with SMTPUTF8 (RFC 6531)."""
        return not (self.recipient.isascii() and self.sender.isascii())


class Answer(NamedTuple):
    """The reply that decided about a mail, and what it was an answer to."""

    phase: Phase
    reply: Reply

    @property
    def refuses(self) -> bool:
        """Whether the mail can not go on after it."""
        if self.phase is Phase.DATA:
            return self.reply.code != START_TEXT
        return not self.reply.positive


class Connection:
    """A session that is ready for mails; used by one task at a time."""

    def __init__(self, link: Link, extensions: Extensions) -> None:
        self._link = link
        self._extensions = extensions

    @classmethod
    async def open(cls, server: Server) -> Self:
        """Connect, secure the link, log in.

        Raises:
            NotConnectedError: Any of it failed.
        """
        return cls(*await open_session(server))

    @property
    def usable(self) -> bool:
        """Whether the next mail can go this way, as far as can be told without asking."""
        return self._link.usable

    async def send(self, mail: Mail, *, before_text: Callable[[], None]) -> Answer:
        """Send one mail.

        Args:
            mail: The mail.
            before_text: Called just before the text and its final dot are written, where
                nothing can be called back any more; may raise to prevent it.

        Raises:
            LinkDroppedError: With phase ``TEXT`` the mail may have been accepted, else not.
            Utf8AddressError: The server can not be told this address.
        """
        if mail.needs_utf8 and "SMTPUTF8" not in self._extensions:
            raise Utf8AddressError("the server does not offer SMTPUTF8")
        commands = _commands(mail)
        try:
            refusal = await self._announce(commands)
            if refusal is None:
                before_text()
                self._link.write(_stuffed(mail.content))
                return Answer(Phase.TEXT, await self._final_reply())
        except BaseException:
            self._link.abort()
            raise
        await self._recover(refusal)
        return refusal

    async def check(self) -> None:
        """Ask whether the server is still there.

        Raises:
            LinkDroppedError: It is not.
        """
        await self._link.command(Phase.IDLE, "NOOP")

    async def quit(self) -> None:
        """Say goodbye and close."""
        try:
            with suppress(LinkDroppedError):  # the link was going to end anyway
                await self._link.command(Phase.IDLE, "QUIT")
        finally:
            self._link.abort()

    def abort(self) -> None:
        """Close without a word."""
        self._link.abort()

    async def _announce(self, commands: Commands) -> Answer | None:
        """Say from whom and to whom; the first refusal, if there is one."""
        if "PIPELINING" in self._extensions:
            return await self._announce_at_once(commands)
        for phase, command in commands:
            self._link.write(command)
            answer = Answer(phase, await self._link.read(phase))
            if answer.refuses:
                return answer
        return None

    async def _announce_at_once(self, commands: Commands) -> Answer | None:
        self._link.write(b"".join(command for _, command in commands))
        refusal: Answer | None = None
        for phase, _ in commands:
            try:
                answer = Answer(phase, await self._link.read(phase))
            except LinkDroppedError:
                if refusal is None:
                    raise
                return refusal  # said why, then hung up
            if answer.refuses:
                refusal = refusal or answer
            elif refusal and phase is Phase.DATA:
                # RFC 2920, 3.1 would have us send a lone dot and hope it is no mail to anybody.
                self._link.abort()
            if answer.reply.code == SERVICE_CLOSING:
                break
        return refusal

    async def _final_reply(self) -> Reply:
        reply = await self._link.read(Phase.TEXT)
        if 300 <= reply.code < 400:  # noqa: PLR2004 - neither yes nor no
            raise LinkDroppedError(Phase.TEXT, f"an answer without meaning: {reply.summary}")
        return reply

    async def _recover(self, refusal: Answer) -> None:
        """Make the session fit for the next mail after a refusal, or end it."""
        if refusal.reply.code == SERVICE_CLOSING:
            self._link.abort()
        elif self.usable:
            with suppress(LinkDroppedError):  # the refusal stands; the pool sees the rest
                await self._link.command(Phase.IDLE, "RSET")


def _commands(mail: Mail) -> Commands:
    parameters = " SMTPUTF8" if mail.needs_utf8 else ""
    return (
        (Phase.MAIL, f"MAIL FROM:<{_path(mail.sender)}>{parameters}\r\n".encode()),
        (Phase.RCPT, f"RCPT TO:<{_path(mail.recipient)}>\r\n".encode()),
        (Phase.DATA, b"DATA\r\n"),
    )


def _path(address: str) -> str:
    """An address that ends where it ends; the contracts have checked it before."""
    if not _PATH.fullmatch(address):
        raise ValueError("an address with a space, bracket or control character")
    return address


def _stuffed(content: bytes) -> bytes:
    """The text as it travels: lines that start with a dot get a second one (4.5.2)."""
    first = b"." if content.startswith(b".") else b""
    return first + content.replace(b"\r\n.", b"\r\n..") + b".\r\n"
