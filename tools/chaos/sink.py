"""A mail server that misbehaves as mail servers do, and keeps count of it by mail.

What it does to a mail follows from the seed, the recipient and how often that mail has come.
"""

import asyncio
import random
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from tools.launcher.ports import HOST

MESSAGE_ID = re.compile(rb"(?im)^message-id:\s*<([^@>]+)@")

END_OF_TEXT = b"\r\n.\r\n"

STALL_SECONDS = 3.0
"""Short of every deadline of a mail server's client, long enough to hold up a connection."""


class SmtpFault(StrEnum):
    """What the server does to a mail instead of taking it."""

    DEFER = "deferred"
    """4yz, to the recipient or to the text: come again."""
    REFUSE = "refused"
    """5yz: never come again."""
    STALL = "stalled"
    """Says nothing for some seconds, then takes it."""
    DROP_IN_TEXT = "dropped_in_text"
    """Closes the connection while the text is on its way: not taken."""
    DROP_AFTER_DOT = "dropped_after_dot"
    """Takes the mail and closes without the 250: nobody can know."""
    HANG_UP = "hung_up"
    """421 to the recipient and the end of the session, whenever that one comes."""


SHARES = (
    (SmtpFault.DEFER, 0.20),
    (SmtpFault.REFUSE, 0.02),
    (SmtpFault.STALL, 0.05),
    (SmtpFault.DROP_IN_TEXT, 0.05),
    (SmtpFault.DROP_AFTER_DOT, 0.02),
)
"""How many of the mails meet which fault."""


HUNG_UP_SHARE = 0.01
"""How many of the recipients are hung up on for as long as the server misbehaves."""


def trick_for(seed: int, recipient: str, time_seen: int) -> SmtpFault | None:
    """What happens to this mail, the ``time_seen``-th time that it comes; None: it is taken."""
    if random.Random(f"{seed} {recipient}").random() < HUNG_UP_SHARE:
        return SmtpFault.HANG_UP
    dice = random.Random(f"{seed} {recipient} {time_seen}").random()
    for fault, share in SHARES:
        if dice < share:
            return fault
        dice -= share
    return None


@dataclass(frozen=True, slots=True)
class Accepted:
    """A mail that the server has taken, whether or not it said so."""

    message_id: str
    """What stands before the @ in Message-ID: the identity of the mail."""
    recipient: str
    at: float
    """Seconds since 1970."""


@dataclass(slots=True)
class Sink:
    """The server, and everything it did."""

    seed: int
    misbehaves: bool = True
    port: int = 0
    accepted: list[Accepted] = field(default_factory=list)
    faults: Counter[SmtpFault] = field(default_factory=Counter)
    faulted: dict[SmtpFault, Counter[str]] = field(default_factory=dict)
    """SmtpFault to recipients, and how often each met it."""
    _seen: Counter[str] = field(default_factory=Counter)
    _server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen; the port is known afterwards."""
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Listen no more."""
        if self._server:
            self._server.close()

    def next_trick(self, recipient: str) -> SmtpFault | None:
        """What to do to the mail that comes now."""
        self._seen[recipient] += 1
        if not self.misbehaves:
            return None
        return trick_for(self.seed, recipient, self._seen[recipient])

    def note(self, fault: SmtpFault, recipient: str) -> None:
        """Count a fault that was played."""
        self.faults[fault] += 1
        self.faulted.setdefault(fault, Counter())[recipient] += 1

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _Session(self, reader, writer).run()
        except (OSError, EOFError, asyncio.LimitOverrunError):
            pass  # the client, or a link, went away
        finally:
            writer.close()


@dataclass(slots=True)
class _Session:
    """One client's connection."""

    sink: Sink
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    recipient: str = ""
    fault: SmtpFault | None = None

    async def run(self) -> None:
        await self._say("220 sink ESMTP")
        while line := await self.reader.readline():
            verb, _, argument = line.strip().partition(b" ")
            if not await self._command(verb.upper(), argument):
                return

    async def _command(self, verb: bytes, argument: bytes) -> bool:
        """Answer one command; False ends the connection."""
        match verb:
            case b"EHLO":
                await self._say("250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SMTPUTF8")
            case b"RCPT":
                await self._say(self._recipient(argument))
                if self.fault is SmtpFault.HANG_UP:
                    self.sink.note(self.fault, self.recipient)
                    return False
            case b"DATA":
                return await self._text()
            case b"QUIT":
                await self._say("221 2.0.0 bye")
                return False
            case b"MAIL" | b"RSET":
                self.recipient = ""
                await self._say("250 2.0.0 ok")
            case _:
                await self._say("250 2.0.0 ok")
        return True

    def _recipient(self, argument: bytes) -> str:
        self.recipient = argument.partition(b"<")[2].partition(b">")[0].decode()
        self.fault = self.sink.next_trick(self.recipient)
        if self.fault is SmtpFault.HANG_UP:
            return "421 4.3.2 not now"
        # Half of what is put off or refused is so at RCPT, the rest after the text.
        if self.fault in (SmtpFault.DEFER, SmtpFault.REFUSE) and hash_of(self.recipient) % 2:
            reply = self._negative(self.fault)
            self.recipient = ""
            return reply
        return "250 2.1.5 ok"

    def _negative(self, fault: SmtpFault) -> str:
        self.sink.note(fault, self.recipient)
        self.fault = None
        return "451 4.3.2 later" if fault is SmtpFault.DEFER else "550 5.1.1 no such mailbox"

    async def _text(self) -> bool:
        if not self.recipient:
            await self._say("554 5.5.1 no valid recipients")
            return True
        await self._say("354 go on")
        if self.fault is SmtpFault.DROP_IN_TEXT:
            await self.reader.readline()
            self.sink.note(self.fault, self.recipient)
            return False
        text = await self._read_text()
        match self.fault:
            case SmtpFault.DEFER | SmtpFault.REFUSE as fault:
                await self._say(self._negative(fault))
                return True
            case SmtpFault.STALL:
                self.sink.note(SmtpFault.STALL, self.recipient)
                await asyncio.sleep(STALL_SECONDS)
        return await self._take(text)

    async def _read_text(self) -> bytes:
        text = b"\r\n"
        while not text.endswith(END_OF_TEXT):
            if not (line := await self.reader.readline()):
                raise EOFError
            text += line
        return text

    async def _take(self, text: bytes) -> bool:
        found = MESSAGE_ID.search(text)
        message_id = found[1].decode() if found else "none"
        self.sink.accepted.append(Accepted(message_id, self.recipient, time.time()))
        if self.fault is SmtpFault.DROP_AFTER_DOT:
            self.sink.note(self.fault, self.recipient)
            return False
        await self._say("250 2.0.0 accepted")
        return True

    async def _say(self, text: str) -> None:
        self.writer.write(f"{text}\r\n".encode())
        await self.writer.drain()


def hash_of(text: str) -> int:
    """A number that is the same in every process, as ``hash`` is not."""
    return sum(text.encode())
