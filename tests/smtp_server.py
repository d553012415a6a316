"""A mail server that does as it is told: any reply, silence or farewell at any point.

async with running_smtp_server() as server:
    server.on("RCPT", "550 5.1.1 no such mailbox", to="ada@example.org")
    server.on("TEXT", DROP, times=1)
    ...
    assert server.mails[0].recipients == ["ada@example.org"]
"""

import asyncio
import atexit
import base64
import os
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Final, Literal

import pytest


class _Drop:
    """Close the link without a word."""


class _Stall:
    """Say nothing, keep the link."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Reply when it is released."""

    reply: str
    released: asyncio.Event = field(default_factory=asyncio.Event)


DROP: Final = _Drop()
STALL: Final = _Stall()

Action = str | bytes | _Drop | _Stall | Hold
"""A reply (text: CRLF is added; bytes: sent as they are), or what is done instead."""

Point = Literal[
    "CONNECT", "EHLO", "HELO", "STARTTLS", "AUTH", "MAIL", "SMTPUTF8", "RCPT", "DATA", "BODY",
    "TEXT", "NOOP", "RSET", "QUIT",
]  # fmt: skip
"""Where a rule applies: a command; CONNECT, the greeting; SMTPUTF8, MAIL with that parameter; BODY,
after 354 and before the text is read; TEXT, after the final dot."""

_USUAL = {
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
    accepted: bool = False


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
    """What AUTH PLAIN leads to: a login, 504, a 334 although all was said, 535 and the end."""

    forgets: Literal["nothing", "all", "a line"] = "nothing"
    """What is lost of that which stands behind the final dot of a text."""

    host: str = "127.0.0.1"
    port: int = 0
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
        self._server = await asyncio.start_server(self._serve, self.host, self.port, ssl=tls)
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
        """Say something on every connection that nobody asked for."""
        for writer in self._writers:
            writer.write(f"{text}\r\n".encode())

    def action(self, point: Point, recipients: list[str]) -> Action:
        """What to do now."""
        for rule in self._rules:
            if rule.point == point and rule.applies_to(recipients):
                if rule.times == 0:
                    continue
                if rule.times is not None:
                    rule.times -= 1
                return rule.action
        return _USUAL.get(point, "502 unknown")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.sessions += 1
        self._writers.add(writer)
        self.most_seen = max(self.most_seen, len(self._writers))
        self._tasks.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError, _Hangup):
                await _Session(self, reader, writer).run()
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.transport.abort()


class _Hangup(Exception):  # noqa: N818 - not an error
    pass


class _Session:
    def __init__(
        self, server: SmtpServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.server = server
        self.reader = reader
        self.writer = writer
        self.buffer = b""
        self.sender = ""
        self.recipients: list[str] = []
        self.in_transaction = False
        self.encrypted = writer.get_extra_info("sslcontext") is not None
        self.user = ""

    async def run(self) -> None:
        if self.server.open_sessions > self.server.most_sessions:
            await self.reply("421 4.7.0 too many connections from you")
            raise _Hangup
        await self.do("CONNECT")
        while True:
            line = await self.read_line()
            self.server.commands.append(line)
            verb, _, argument = line.partition(" ")
            await self.command(verb.upper(), argument)

    async def command(self, verb: str, argument: str) -> None:
        match verb:
            case "EHLO":
                await self.hello()
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
                raise _Hangup
            case _:
                await self.reply("500 what")

    async def mail(self, verb: str, argument: str) -> None:
        if verb == "MAIL" and self.in_transaction:
            await self.reply("503 5.5.1 nested MAIL")
        elif verb == "MAIL":
            self.sender, self.recipients = _address(argument), []
            odd = argument.endswith(" SMTPUTF8") and self.server.action("SMTPUTF8", [])
            action = odd if odd and odd != "502 unknown" else self.server.action("MAIL", [])
            self.in_transaction = (await self.perform(action)).startswith("2")
        elif not self.in_transaction and self.server.forgets != "nothing":
            await self.reply("503 5.5.1 need MAIL command")
        elif verb == "RCPT":
            self.recipients.append(_address(argument))
            if not (await self.do("RCPT")).startswith("2"):
                self.recipients.pop()
        else:
            await self.text()

    async def hello(self) -> None:
        action = self.server.action("EHLO", [])
        if action != "502 unknown":
            await self.perform(action)
            return
        offers = list(self.server.extensions)
        if self.server.tls and not self.encrypted:
            offers.append("STARTTLS")
        if self.server.credentials:
            offers.append("AUTH PLAIN LOGIN")
        lines = ["test", *offers]
        await self.reply("\r\n".join([*(f"250-{x}" for x in lines[:-1]), f"250 {lines[-1]}"]))

    async def start_tls(self) -> None:
        action = self.server.action("STARTTLS", [])
        if action != "502 unknown" or self.server.tls is None:
            await self.perform(action)
            return
        await self.reply("220 go on")
        await self.writer.start_tls(self.server.tls)
        self.encrypted = True

    async def log_in(self, argument: str) -> None:
        method, _, initial = argument.partition(" ")
        if method == "PLAIN" and self.server.plain == "refuses":
            await self.reply("504 5.5.4 unrecognized authentication type")
            return
        if method == "PLAIN" and self.server.plain == "hangs up":
            await self.reply("535 5.7.8 not like that")
            raise _Hangup
        if method == "PLAIN":
            if self.server.plain == "asks":
                await self.reply("334")
                initial = await self.read_line()
            _, user, password = base64.b64decode(initial).decode().split("\0")
        else:
            await self.reply("334 VXNlcm5hbWU6")
            user = base64.b64decode(await self.read_line()).decode()
            await self.reply("334 UGFzc3dvcmQ6")
            password = base64.b64decode(await self.read_line()).decode()
        action = self.server.action("AUTH", [])
        if action != "502 unknown":
            await self.perform(action)
        elif self.server.credentials.get(user) == password:
            self.user = user
            await self.reply("235 2.7.0 welcome")
        else:
            await self.reply("535 5.7.8 wrong user or password")

    async def text(self) -> None:
        action = self.server.action("DATA", self.recipients)
        if action == _USUAL["DATA"] and not self.recipients:
            action = "554 5.5.1 no valid recipients"
        await self.perform(action)
        if action != _USUAL["DATA"]:
            return
        if (action := self.server.action("BODY", self.recipients)) != "502 unknown":
            await self.perform(action)
        await self.read_text()

    async def read_text(self) -> None:
        while not (b"\r\n" + self.buffer).startswith(b"\r\n.\r\n") and (
            b"\r\n.\r\n" not in self.buffer
        ):
            await self.read_more()
        if self.buffer.startswith(b".\r\n"):
            content, self.buffer = b"", self.buffer[3:]
        else:
            content, _, self.buffer = self.buffer.partition(b"\r\n.\r\n")
            content += b"\r\n"
        if self.buffer:
            self.server.behind_texts.append(self.buffer)
        if self.server.forgets != "nothing":
            self.buffer = self.buffer.partition(b"\n")[2] * (self.server.forgets == "a line")
        content = (b"\r\n" + content).replace(b"\r\n..", b"\r\n.")[2:]
        mail = ReceivedMail(self.sender, self.recipients, content, self.encrypted, self.user)
        self.server.mails.append(mail)
        action = self.server.action("TEXT", self.recipients)
        self.in_transaction, self.recipients = False, []
        reply = action.reply if isinstance(action, Hold) else action
        mail.accepted = isinstance(reply, str) and reply.startswith("2")
        await self.perform(action)

    async def do(self, point: Point) -> str:
        return await self.perform(self.server.action(point, self.recipients))

    async def perform(self, action: Action) -> str:
        if isinstance(action, _Drop):
            raise _Hangup
        if isinstance(action, _Stall):
            while await self.reader.read(65536):
                pass
            raise _Hangup
        if isinstance(action, bytes):
            self.writer.write(action)
            await self.writer.drain()
            return action.decode("latin-1")
        if isinstance(action, Hold):
            await action.released.wait()
            action = action.reply
        await self.reply(action)
        return action

    async def reply(self, text: str) -> None:
        self.writer.write(f"{text}\r\n".encode())
        await self.writer.drain()

    async def read_line(self) -> str:
        while b"\r\n" not in self.buffer:
            self.server.packets.append(await self.read_more())
        line, _, self.buffer = self.buffer.partition(b"\r\n")
        return line.decode()

    async def read_more(self) -> bytes:
        data = await self.reader.read(65536)
        if not data:
            raise _Hangup
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


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate that signs itself, for one name."""

    certificate: Path
    key: Path

    def for_server(self) -> ssl.SSLContext:
        """What a server needs to show it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def for_client(self) -> ssl.SSLContext:
        """What a client needs to trust it."""
        return ssl.create_default_context(cafile=str(self.certificate))


@cache
def certificate(name: str = "IP:127.0.0.1", *, days: int = 30) -> Certificate:
    """Make a certificate for ``name`` (``IP:…`` or ``DNS:…``); needs the openssl program."""
    if shutil.which("openssl") is None:
        end = pytest.fail if os.environ.get("CI") else pytest.skip
        end("no openssl on this machine; to run the tests of TLS, type: apt-get install openssl")
    directory = Path(mkdtemp(prefix="userstream-certificate-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    key, pem = directory / "key.pem", directory / "certificate.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=test "
        f"-keyout {key} -out {pem} -days {days} -addext subjectAltName={name}"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    return Certificate(pem, key)
