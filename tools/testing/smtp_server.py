"""A mail server for tests and benchmarks: gives any reply, or none, at any point.

It takes every mail until a rule or a subclass decides otherwise.

async with running_smtp_server() as server:
    server.on("RCPT", "550 5.1.1 no such mailbox", to="ada@example.org")
    server.on("TEXT", DROP, times=1)
    ...
    assert server.mails[0].recipients == ["ada@example.org"]
"""

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, Literal, cast

from tools.launcher.ports import HOST


class _Drop:
    """Close the connection without a reply."""


class _Stall:
    """Send nothing, keep the connection."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Reply once released, or after some seconds."""

    reply: str
    seconds: float | None = None
    released: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class Goodbye:
    """Reply, then close the connection."""

    reply: str


DROP: Final = _Drop()
STALL: Final = _Stall()

Action = str | bytes | _Drop | _Stall | Hold | Goodbye
"""A reply (text: CRLF is added; bytes: sent as they are), or what is done instead."""

Point = Literal[
    "CONNECT", "EHLO", "HELO", "STARTTLS", "AUTH", "MAIL", "SMTPUTF8", "RCPT", "DATA", "BODY",
    "TEXT", "NOOP", "RSET", "QUIT",
]  # fmt: skip
"""Where a rule applies: a command; CONNECT, the greeting; SMTPUTF8, MAIL with that parameter; BODY,
after 354 and before the text is read; TEXT, after the final dot."""

END_OF_TEXT = b"\r\n.\r\n"

NOT_IMPLEMENTED = "502 5.5.1 not implemented"

USUAL = {
    "CONNECT": "220 test ESMTP",
    "MAIL": "250 2.1.0 ok",
    "RCPT": "250 2.1.5 ok",
    "DATA": "354 go on",
    "TEXT": "250 2.0.0 queued",
    "NOOP": "250 ok",
    "RSET": "250 ok",
    "QUIT": "221 bye",
}


@dataclass(slots=True)
class ReceivedMail:
    """A mail whose final dot was read, whatever the answer to it was."""

    sender: str
    recipients: list[str]
    content: bytes
    """Without dot-stuffing."""

    encrypted: bool
    user: str
    reply: str
    """To the final dot; empty where there is none."""

    @property
    def accepted(self) -> bool:
        """Whether the client was told that the mail is accepted."""
        return self.reply.startswith("2")


@dataclass(slots=True)
class _Rule:
    point: Point
    action: Action
    to: str | None
    times: int | None

    def applies_to(self, recipients: list[str]) -> bool:
        if self.to is None:
            return True
        whole = self.to if not self.to.startswith("@") else ""
        return any(one == whole or (not whole and one.endswith(self.to)) for one in recipients)


@dataclass(slots=True)
class SmtpServer:
    """The server, and what it saw."""

    extensions: list[str] = field(
        default_factory=lambda: ["PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"]
    )
    credentials: dict[str, str] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None
    """Makes STARTTLS available."""

    plain: Literal["takes", "refuses", "asks", "hangs up"] = "takes"
    """What AUTH PLAIN leads to: a login, 504, a needless 334, 535 and the end."""

    forgets: Literal["nothing", "all", "a line"] = "nothing"
    """What is lost of that which stands behind the final dot of a text."""

    host: str = HOST
    port: int = 0
    records: bool = True
    """Whether commands and packets are kept: not where a benchmark sends a million."""

    mails: list[ReceivedMail] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    """Every command line of every connection, in order."""

    packets: list[bytes] = field(default_factory=list)
    """What came in one read, outside of texts: shows what was pipelined."""

    behind_texts: list[bytes] = field(default_factory=list)
    """What came in the same packet as a text, behind it."""

    sessions: int = 0
    """Connections ever accepted."""

    most_sessions: int = 1000
    """Connections at the same time; further ones are sent away."""

    most_seen: int = 0
    """Connections that were open at the same time."""

    _rules: list[_Rule] = field(default_factory=list)
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def accepted(self) -> list[ReceivedMail]:
        """The mails that were answered with 250."""
        return [mail for mail in self.mails if mail.accepted]

    @property
    def open_sessions(self) -> int:
        """Connections open now."""
        return len(self._writers)

    def on(
        self, point: Point, action: Action, *, to: str | None = None, times: int | None = None
    ) -> None:
        """Do ``action`` at ``point``, for one recipient or ``@domain``, so many times only."""
        self._rules.append(_Rule(point, action, to, times))

    def forget(self) -> None:
        """Behave as usual again."""
        self._rules.clear()

    async def start(self, *, tls: ssl.SSLContext | None = None) -> None:
        """Listen, on the same port as before if there was one; ``tls``: from the first byte."""
        self._server = await asyncio.start_server(
            self._serve, self.host, self.port, ssl=tls, backlog=1024
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and cut every connection."""
        if self._server is None:
            return
        self._server.close()
        self.hang_up()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    def hang_up(self) -> None:
        """Cut every connection; go on listening."""
        for writer in list(self._writers):
            writer.transport.abort()

    def say(self, text: str) -> None:
        """Send an unsolicited reply on every connection."""
        for writer in self._writers:
            writer.write(f"{text}\r\n".encode())

    def action(self, point: Point, recipients: list[str]) -> Action | None:
        """Decide what to do at ``point``; None: the usual."""
        for rule in self._rules:
            if rule.point == point and rule.applies_to(recipients):
                if rule.times is not None:
                    rule.times -= 1
                    if not rule.times:
                        self._rules.remove(rule)
                return rule.action
        return None

    def receive(self, mail: ReceivedMail) -> None:
        """Keep a mail, before it is answered."""
        self.mails.append(mail)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self.sessions += 1
        self._writers.add(writer)
        self.most_seen = max(self.most_seen, len(self._writers))
        self._tasks.add(task)
        try:
            await _Session(self, reader, writer).run()
            writer.close()  # what was written still leaves
        except (OSError, asyncio.IncompleteReadError, _HangUp):
            writer.transport.abort()
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)


class _HangUp(Exception):  # noqa: N818 - not an error
    pass


class _Session:
    def __init__(
        self, server: SmtpServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.server = server
        self.reader = reader
        self.writer = writer
        self.buffer = b""
        self.unsent = b""
        """Replies to what came in one packet leave in one packet."""
        self.sender = ""
        self.recipients: list[str] = []
        self.in_transaction = False
        self.is_over = False
        self.encrypted = writer.get_extra_info("sslcontext") is not None
        self.user = ""

    async def run(self) -> None:
        if self.server.open_sessions > self.server.most_sessions:
            await self.perform(Goodbye("421 4.7.0 too many connections from you"))
        else:
            await self.do("CONNECT")
        while not self.is_over:
            line = await self.read_line()
            if self.server.records:
                self.server.commands.append(line)
            verb, _, argument = line.partition(" ")
            await self.command(verb.upper(), argument)
        await self.flush()

    async def command(self, verb: str, argument: str) -> None:
        match verb:
            case "EHLO":
                await self.do("EHLO", self.greeting())
            case "HELO":
                await self.do("HELO")
            case "STARTTLS":
                await self.start_tls()
            case "AUTH":
                await self.log_in(argument)
            case "MAIL" | "RCPT" | "DATA":
                await self.mail(verb, argument)
            case "RSET" | "NOOP" as point:
                self.in_transaction = self.in_transaction and point == "NOOP"
                await self.do(point)
            case "QUIT":
                await self.do("QUIT")
                self.is_over = True
            case _:
                self.reply("500 5.5.1 unknown command")

    async def mail(self, verb: str, argument: str) -> None:
        if verb == "MAIL" and self.in_transaction:
            self.reply("503 5.5.1 nested MAIL")
        elif verb == "MAIL":
            self.sender, self.recipients = _address(argument), []
            odd = self.server.action("SMTPUTF8", []) if argument.endswith(" SMTPUTF8") else None
            reply = await (self.perform(odd) if odd is not None else self.do("MAIL"))
            self.in_transaction = reply.startswith("2")
        elif not self.in_transaction and self.server.forgets != "nothing":
            self.reply("503 5.5.1 need MAIL command")
        elif verb == "RCPT":
            self.recipients.append(_address(argument))
            if not (await self.do("RCPT")).startswith("2"):
                self.recipients.pop()
        else:
            await self.text()

    def greeting(self) -> str:
        offers = list(self.server.extensions)
        if self.server.tls and not self.encrypted:
            offers.append("STARTTLS")
        if self.server.credentials:
            offers.append("AUTH PLAIN LOGIN")
        lines = ["test", *offers]
        return "\r\n".join([*(f"250-{x}" for x in lines[:-1]), f"250 {lines[-1]}"])

    async def start_tls(self) -> None:
        action = self.server.action("STARTTLS", [])
        if action is not None or self.server.tls is None:
            await self.perform(NOT_IMPLEMENTED if action is None else action)
            return
        self.reply("220 go on")
        await self.flush()
        await self.writer.start_tls(self.server.tls)
        self.encrypted = True

    async def log_in(self, argument: str) -> None:
        method, _, initial = argument.partition(" ")
        if method == "PLAIN" and self.server.plain == "refuses":
            self.reply("504 5.5.4 unrecognized authentication type")
            return
        if method == "PLAIN" and self.server.plain == "hangs up":
            await self.perform(Goodbye("535 5.7.8 not like that"))
            return
        if method == "PLAIN":
            if self.server.plain == "asks":
                self.reply("334")
                initial = await self.read_line()
            _, user, password = base64.b64decode(initial).decode().split("\0")
        else:
            self.reply("334 VXNlcm5hbWU6")
            user = base64.b64decode(await self.read_line()).decode()
            self.reply("334 UGFzc3dvcmQ6")
            password = base64.b64decode(await self.read_line()).decode()
        matches = self.server.credentials.get(user) == password
        usual = "235 2.7.0 welcome" if matches else "535 5.7.8 wrong user or password"
        if await self.do("AUTH", usual) == usual and matches:
            self.user = user

    async def text(self) -> None:
        usual = USUAL["DATA"] if self.recipients else "554 5.5.1 no valid recipients"
        if await self.do("DATA", usual) != USUAL["DATA"]:
            return
        if (action := self.server.action("BODY", self.recipients)) is not None:
            await self.perform(action)
        await self.read_text()

    async def read_text(self) -> None:
        self.buffer = b"\r\n" + self.buffer  # so that an empty text has its end as well
        while END_OF_TEXT not in self.buffer:
            await self.read_more()
        content, _, self.buffer = self.buffer.partition(END_OF_TEXT)
        if self.buffer and self.server.records:
            self.server.behind_texts.append(self.buffer)
        if self.server.forgets != "nothing":
            self.buffer = self.buffer.partition(b"\n")[2] * (self.server.forgets == "a line")
        content = (content + b"\r\n").replace(b"\r\n..", b"\r\n.")[2:]
        if (action := self.server.action("TEXT", self.recipients)) is None:
            action = USUAL["TEXT"]
        reply = action.reply if isinstance(action, Hold | Goodbye) else action
        self.server.receive(
            ReceivedMail(
                self.sender,
                self.recipients,
                content,
                self.encrypted,
                self.user,
                reply if isinstance(reply, str) else "",
            )
        )
        self.in_transaction, self.recipients = False, []
        await self.perform(action)

    async def do(self, point: Point, usual: str = "") -> str:
        action = self.server.action(point, self.recipients)
        if action is None:
            action = usual or USUAL.get(point, NOT_IMPLEMENTED)
        return await self.perform(action)

    async def perform(self, action: Action) -> str:
        """Do it; returns what was replied."""
        match action:
            case str():
                self.reply(action)
                return action
            case bytes():
                self.unsent += action
                return action.decode("latin-1")
            case Hold():
                await self.flush()
                with suppress(TimeoutError):
                    await asyncio.wait_for(action.released.wait(), action.seconds)
            case Goodbye():
                self.is_over = True
            case _Stall():
                await self.flush()
                while await self.reader.read(65536):
                    pass
                raise _HangUp
            case _Drop():
                await self.flush()
                raise _HangUp
        self.reply(action.reply)
        return action.reply

    def reply(self, text: str) -> None:
        self.unsent += f"{text}\r\n".encode()

    async def flush(self) -> None:
        if self.unsent:
            self.writer.write(self.unsent)
            self.unsent = b""
            await self.writer.drain()

    async def read_line(self) -> str:
        while b"\r\n" not in self.buffer:
            packet = await self.read_more()
            if self.server.records:
                self.server.packets.append(packet)
        line, _, self.buffer = self.buffer.partition(b"\r\n")
        return line.decode()

    async def read_more(self) -> bytes:
        await self.flush()
        data = await self.reader.read(65536)
        if not data:
            raise _HangUp
        self.buffer += data
        return data


def _address(argument: str) -> str:
    return argument.partition("<")[2].partition(">")[0]


@asynccontextmanager
async def running_smtp_server(
    server: SmtpServer | None = None, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[SmtpServer]:
    """Run a server on a free port of the loopback interface."""
    server = server or SmtpServer()
    await server.start(tls=tls)
    try:
        yield server
    finally:
        await server.stop()
