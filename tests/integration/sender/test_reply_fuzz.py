"""Mails to a server that says odd things: each is settled, and none is called sent that is not."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from unittest.mock import patch

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from common.contracts.notifications import DeliveryStatus
from common.errors import MailServerUnavailableError
from sender.mailer import Outcome, SmtpMailer
from sender.smtp import transport as link
from sender.smtp.connection import Mail
from sender.smtp.handshake import Security, Server
from sender.smtp.replies import Phase
from tests.odd_replies import OddReply, odd_replies

USUAL = {
    "CONNECT": b"220 test ESMTP\r\n",
    "EHLO": b"250-test\r\n250 PIPELINING\r\n",
    "MAIL": b"250 2.1.0 ok\r\n",
    "RCPT": b"250 2.1.5 ok\r\n",
    "DATA": b"354 go on\r\n",
    "TEXT": b"250 2.0.0 queued\r\n",
    "RSET": b"250 ok\r\n",
    "QUIT": b"221 bye\r\n",
}

POINTS = ("CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "TEXT", "RSET")

MAILS = 3

SECONDS = 0.5
"""Longest wait for a reply: some of what is said leaves both sides waiting."""


@dataclass
class OddServer:
    """Says what it is told to, once each; takes a mail only with a 2yz after the final dot."""

    odd: list[tuple[str, OddReply]]
    pipelining: bool
    accepted: list[bytes] = field(default_factory=list)
    """Texts of which the first whole reply after their final dot was positive."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            with suppress(ConnectionError, EOFError):
                await self._converse(reader, writer)
        finally:
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._say(writer, "CONNECT")
        while line := await reader.readline():
            verb = line[:4].decode("latin-1").upper()
            code = await self._say(writer, verb)
            if verb == "DATA" and code == 354:
                text = await _read_text(reader)
                if 200 <= (await self._say(writer, "TEXT", text) or 0) < 300:
                    assert text in self.accepted

    async def _say(
        self, writer: asyncio.StreamWriter, point: str, text: bytes | None = None
    ) -> int | None:
        """Reply; the code of the first reply in it. Hangs up by raising."""
        reply = self._next(point)
        if text is not None and 200 <= (reply.code or 0) < 300:
            self.accepted.append(text)  # before it is said: then the client may know
        for part in reply.parts:
            writer.write(part)
            await asyncio.sleep(0)
        if reply.hangs_up:
            raise EOFError
        return reply.code

    def _next(self, point: str) -> OddReply:
        for place, (where, reply) in enumerate(self.odd):
            if where == point:
                del self.odd[place]
                return reply
        content = USUAL.get(point, b"500 what\r\n")
        if point == "EHLO" and not self.pipelining:
            content = b"250 test\r\n"
        return OddReply((content,), int(content[:3]), hangs_up=False)


async def _read_text(reader: asyncio.StreamReader) -> bytes:
    text = b""
    while (line := await reader.readline()) != b".\r\n":
        if not line:
            raise EOFError
        text += line
    return text


@asynccontextmanager
async def a_mailer(server: OddServer) -> AsyncIterator[SmtpMailer]:
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    target = Server(
        host="127.0.0.1",
        port=listening.sockets[0].getsockname()[1],
        security=Security.NONE,
        tls=ssl.create_default_context(),
    )
    async with listening, SmtpMailer.open(target, connections=1) as mailer:
        yield mailer


async def send(mailer: SmtpMailer, text: bytes) -> DeliveryStatus | None:
    """What became of it; None where the server as a whole is not to be used."""
    mail = Mail(sender="us@example.com", recipient="ada@example.org", content=text)
    try:
        outcome = await mailer.send(mail, before_text=lambda: None)
    except MailServerUnavailableError:
        return None
    assert isinstance(outcome, Outcome)
    assert outcome.summary.isprintable()
    return outcome.status


async def conversation(server: OddServer) -> None:
    texts = [b"Subject: mail %d\r\n\r\nHello.\r\n" % number for number in range(MAILS)]
    async with a_mailer(server) as mailer:
        statuses = await asyncio.gather(*(send(mailer, text) for text in texts))

    assert len(server.accepted) == len(set(server.accepted))
    assert set(server.accepted) <= set(texts), "the server took what is no mail of ours"
    for text, status in zip(texts, statuses, strict=True):
        if status is DeliveryStatus.SENT:
            assert text in server.accepted, "called sent, and the server has not taken it"
        if text in server.accepted:
            assert status in (DeliveryStatus.SENT, DeliveryStatus.UNSURE), status


@st.composite
def odd_points(draw: st.DrawFn) -> tuple[str, OddReply]:
    """A point of the conversation, and what is said there."""
    point = draw(st.sampled_from(POINTS))
    return point, draw(odd_replies(int(USUAL[point][:3])))


def said(text: bytes) -> OddReply:
    """One packet."""
    return OddReply((text,), int(text[:3]), hangs_up=False)


@given(odd=st.lists(odd_points(), min_size=1, max_size=4), pipelining=st.booleans())
# The answer to a text that has not been sent yet, and the answer to the one that was.
@example(
    odd=[("DATA", said(b"354 go\r\n250 queued\r\n")), ("TEXT", said(b"550 no\r\n"))],
    pipelining=True,
)
@example(
    odd=[("MAIL", said(b"250 ok\r\n250 ok\r\n")), ("DATA", said(b"550 no\r\n"))],
    pipelining=False,
)
@example(odd=[("TEXT", OddReply((b"199 what\r\n",), None, hangs_up=False))], pipelining=True)
# A refusal that is none: the server waits for a text.
@example(odd=[("MAIL", said(b"250 ok\r\n250 ok\r\n"))], pipelining=True)
@example(odd=[("RCPT", said(b"250 ok\r\n250 ok\r\n"))], pipelining=True)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_a_server_says_a_mail_is_sent_only_if_it_was_taken(
    odd: list[tuple[str, OddReply]], *, pipelining: bool
) -> None:
    with patch.object(link, "SECONDS", dict.fromkeys(Phase, SECONDS)):
        asyncio.run(conversation(OddServer(odd, pipelining)))
