"""A session with a mail server, and how one mail goes through it.

MAIL, RCPT and DATA are sent in one packet where the server offers PIPELINING (RFC 2920): two
round trips for a mail instead of four. If another mail waits as the text of one leaves, its
commands leave in the same packet (section 3.1 allows it): one packet per mail.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, Self

import structlog

from sender.smtp.errors import LinkDroppedError, Utf8AddressError
from sender.smtp.handshake import Extensions, Learned, Server, open_session
from sender.smtp.replies import Phase, Reply
from sender.smtp.transport import Transport

log = structlog.get_logger()

SERVICE_CLOSING = 421
START_TEXT = 354

OUT_OF_PLACE = frozenset({500, 502, 503})
"""How a server answers commands whose beginning it has lost."""

ANNOUNCED_SECONDS = 10.0
"""A server that has read an announcement answers MAIL sooner, once it has answered the text."""

_PATH = re.compile(r"[^\x00-\x20\x7f<>\ud800-\udfff]+")
"""An address that ends where it ends, and can be written as UTF-8."""

_ANNOUNCEMENT = (Phase.MAIL, Phase.RCPT, Phase.DATA)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """A mail in its envelope.

    Raises:
        ValueError: An address would end early, and what follows be a command.
    """

    sender: str
    recipient: str
    content: bytes
    """Headers and body; lines end with CRLF, the last one too. Dots are not yet doubled."""

    def __post_init__(self) -> None:
        """Check the addresses once more: another mail may leave in the same packet."""
        if not (_PATH.fullmatch(self.sender) and _PATH.fullmatch(self.recipient)):
            raise ValueError("an address with a space, bracket or control character")

    @property
    def needs_utf8(self) -> bool:
        """Whether an address needs SMTPUTF8 (RFC 6531)."""
        return not (self.recipient.isascii() and self.sender.isascii())


class Answer(NamedTuple):
    """The reply that decided about a mail, and what it was an answer to."""

    phase: Phase
    reply: Reply

    @property
    def refuses(self) -> bool:
        """Whether the mail cannot go on after it."""
        if self.phase is Phase.DATA:
            return self.reply.code != START_TEXT
        return not self.reply.positive


class Connection:
    """A session that is ready for mails; used by one task at a time."""

    def __init__(self, transport: Transport, extensions: Extensions, learned: Learned) -> None:
        self._transport = transport
        self._pipelining = "PIPELINING" in extensions
        self._utf8 = "SMTPUTF8" in extensions
        self._learned = learned
        self._announced: Mail | None = None
        self.is_committed = False
        """Whether a text has left to which there is no reply yet."""

    @classmethod
    async def open(cls, server: Server) -> Self:
        """Connect, secure the connection, log in.

        Raises:
            NotConnectedError: Any of it failed.
        """
        return cls(*await open_session(server), server.learned)

    @property
    def usable(self) -> bool:
        """Whether any mail can be sent next, as far as is known without asking the server."""
        return self._announced is None and self._transport.usable

    def can_announce(self, mail: Mail) -> bool:
        """Whether the mail may be announced behind another one's text."""
        return self._pipelining and not self._learned.forgets and self._can_say(mail)

    async def send(
        self,
        mail: Mail,
        *,
        before_text: Callable[[], None],
        next_mail: Callable[[], Mail | None] = lambda: None,
    ) -> Answer:
        """Send one mail.

        Args:
            mail: The mail.
            before_text: Called just before the text and its final dot are written, after which
                the mail cannot be withdrawn; may raise to prevent it.
            next_mail: Called after that: a mail that waits for this connection and that it
                ``can_announce``. Its commands leave with the text. Only that one can be sent
                next, whatever comes of this one; if it is not, the connection is unusable.

        Raises:
            LinkDroppedError: With phase ``TEXT`` the mail may have been accepted, else not.
            Utf8AddressError: The server does not accept such an address.
        """
        if not self._can_say(mail):
            raise Utf8AddressError("the server does not offer SMTPUTF8")
        try:
            refusal = await self._announce(mail)
            if refusal is None:
                self._transport.require(Phase.DATA)  # else nothing of the text goes out
                before_text()
                self.is_committed = True
                self._write_text(mail, next_mail())
                reply = await self._final_reply()
                self.is_committed = False
                return Answer(Phase.TEXT, reply)
        except BaseException:
            self._transport.abort()
            raise
        await self._recover(refusal)
        return refusal

    async def check(self) -> None:
        """Ask whether the server is still there.

        Raises:
            LinkDroppedError: It is not.
        """
        await self._transport.command(Phase.IDLE, "NOOP")

    async def quit(self) -> None:
        """Say goodbye and close."""
        try:
            with suppress(LinkDroppedError):  # it was going to end anyway
                await self._transport.command(Phase.IDLE, "QUIT")
        finally:
            self._transport.abort()

    def abort(self) -> None:
        """Close at once, without QUIT."""
        self._transport.abort()

    def _can_say(self, mail: Mail) -> bool:
        return self._utf8 or not mail.needs_utf8

    async def _announce(self, mail: Mail) -> Answer | None:
        """Send sender and recipient, unless they were sent; return the first refusal, if any."""
        if self._pipelining:
            if self._announced is mail:
                self._announced = None
                return await self._announcement_behind_text()
            self._transport.require(Phase.MAIL)
            self._transport.write(b"".join(_commands(mail)))
            self._announced = None
            return await self._announcement_refusal()
        for phase, command in zip(_ANNOUNCEMENT, _commands(mail), strict=True):
            self._transport.require(phase)
            self._transport.write(command)
            answer = Answer(phase, await self._transport.read(phase))
            if answer.refuses:
                return answer
        return None

    async def _announcement_behind_text(self) -> Answer | None:
        """Return the first refusal of what was sent behind another mail's text, if any.

        Some servers lose what they have read behind the final dot. From then on they are sent
        nothing there, and this mail goes out on a new connection.
        """
        try:
            refusal = await self._announcement_refusal(within=ANNOUNCED_SECONDS)
        except LinkDroppedError as error:
            if isinstance(error.__cause__, TimeoutError) and error.phase is Phase.MAIL:
                self._learn_that_it_forgets()
            raise
        if refusal is not None and refusal.reply.code in OUT_OF_PLACE:
            self._learn_that_it_forgets()
            raise LinkDroppedError(refusal.phase, f"it has lost commands: {refusal.reply.summary}")
        return refusal

    def _learn_that_it_forgets(self) -> None:
        if not self._learned.forgets:
            self._learned.forgets = True
            log.warning("smtp.commands_lost")

    async def _announcement_refusal(self, *, within: float | None = None) -> Answer | None:
        """Return the first refusal; wait ``within`` seconds for MAIL and after a refusal."""
        refusal: Answer | None = None
        for phase in _ANNOUNCEMENT:
            try:
                soon = within if refusal or phase is Phase.MAIL else None
                answer = Answer(phase, await self._transport.read(phase, within=soon))
            except LinkDroppedError:
                if refusal is None:
                    raise
                return refusal  # it gave the reason, then hung up
            if answer.refuses:
                refusal = refusal or answer
            elif refusal and phase is Phase.DATA:
                # RFC 2920, 3.1 suggests a lone dot, which might be taken for an empty mail.
                self._transport.abort()
            if answer.reply.code == SERVICE_CLOSING:
                break
        return refusal

    def _write_text(self, mail: Mail, next_mail: Mail | None) -> None:
        self._announced = next_mail
        announcement = _commands(next_mail) if next_mail else ()
        self._transport.write(b"".join((*_stuffed(mail.content), *announcement)))

    async def _final_reply(self) -> Reply:
        reply = await self._transport.read(Phase.TEXT)
        if reply.code == SERVICE_CLOSING:
            self._transport.abort()
        if 300 <= reply.code < 400:  # noqa: PLR2004 - neither yes nor no
            raise LinkDroppedError(
                Phase.TEXT, f"a reply that is neither yes nor no: {reply.summary}"
            )
        return reply

    async def _recover(self, refusal: Answer) -> None:
        """Reset the session for the next mail after a refusal, or end it."""
        if refusal.reply.code == SERVICE_CLOSING:
            self._transport.abort()
        elif self.usable:
            with suppress(LinkDroppedError):  # the refusal stands; the pool sees the rest
                if not (await self._transport.command(Phase.IDLE, "RSET")).positive:
                    self._transport.abort()  # the server may be waiting for a text


def _commands(mail: Mail) -> tuple[bytes, bytes, bytes]:
    """Return the commands that announce a mail, in the order of ``_ANNOUNCEMENT``."""
    parameters = " SMTPUTF8" if mail.needs_utf8 else ""
    return (
        f"MAIL FROM:<{mail.sender}>{parameters}\r\n".encode(),
        f"RCPT TO:<{mail.recipient}>\r\n".encode(),
        b"DATA\r\n",
    )


def _stuffed(content: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the text as it is sent: lines that start with a dot get a second one (4.5.2)."""
    first = b"." if content.startswith(b".") else b""
    return first, content.replace(b"\r\n.", b"\r\n.."), b".\r\n"
