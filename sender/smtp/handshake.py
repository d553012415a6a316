"""How a session begins: greeting, EHLO, TLS, login (RFC 5321, 3207, 4954)."""

import base64
import ssl
from dataclasses import dataclass, field
from enum import StrEnum

from sender.smtp.errors import LinkDroppedError, NotConnectedError
from sender.smtp.replies import Phase, Reply
from sender.smtp.transport import Transport


class Security(StrEnum):
    """How the connection is protected."""

    STARTTLS = "starttls"
    """Upgraded before anything is sent; a server that does not offer it is refused."""

    TLS = "tls"
    """TLS from the first byte (usually port 465)."""

    NONE = "none"


@dataclass(slots=True)
class Learned:
    """What earlier sessions have shown of a server."""

    login: str = ""
    """The method to begin with: the one that it took, or did not hang up at."""

    forgets: bool = False
    """Whether it has lost what stood behind the final dot of a text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where mails are handed over, and how."""

    host: str
    port: int
    security: Security
    tls: ssl.SSLContext
    """Unused where ``security`` is none."""

    user: str = ""
    """Without one, there is no login."""

    password: str = ""
    hello_name: str = ""
    """Our name in EHLO; without it, our address."""

    learned: Learned = field(default_factory=Learned, compare=False)


Extensions = dict[str, str]
"""What the server offers: keyword in upper case to its parameters."""


async def open_session(server: Server) -> tuple[Transport, Extensions]:
    """Connect, secure the connection, log in.

    Raises:
        NotConnectedError: Any of it failed. Nothing is left open.
    """
    transport = await Transport.open(
        server.host, server.port, server.tls if server.security is Security.TLS else None
    )
    try:
        return transport, await _begin(transport, server)
    except LinkDroppedError as error:
        raise NotConnectedError(str(error)) from error
    except BaseException:
        transport.abort()
        raise


async def _begin(transport: Transport, server: Server) -> Extensions:
    _expect(Phase.GREETING, await transport.read(Phase.GREETING))
    extensions = await _hello(transport, server)
    if server.security is Security.STARTTLS:
        await _start_tls(transport, server, extensions)
        extensions = await _hello(transport, server)  # what was offered in the clear may be forged
    if server.user:
        await _log_in(transport, server, extensions)
    return extensions


async def _hello(transport: Transport, server: Server) -> Extensions:
    name = server.hello_name or transport.address_literal
    reply = await transport.command(Phase.HELLO, f"EHLO {name}")
    if reply.permanent:  # knows HELO only (RFC 5321, 3.2), or refuses EHLO to unknown clients
        helo = await transport.command(Phase.HELLO, f"HELO {name}")
        _expect(Phase.HELLO, helo if helo.positive else reply)
        return {}
    return _offers(_expect(Phase.HELLO, reply))


def _offers(reply: Reply) -> Extensions:
    """What is offered; some offer AUTH twice, or as ``AUTH=`` for clients of last century."""
    offers: Extensions = {}
    for line in reply.lines[1:]:
        keyword, _, parameters = line.replace("=", " ", 1).partition(" ")
        offers[keyword.upper()] = f"{offers.get(keyword.upper(), '')} {parameters}".strip()
    return offers


async def _start_tls(transport: Transport, server: Server, extensions: Extensions) -> None:
    if "STARTTLS" not in extensions:
        raise NotConnectedError(
            "the server does not offer STARTTLS, so everything would be readable on the way; "
            "set SMTP_SECURE=tls if it speaks TLS from the start"
        )
    _expect(Phase.STARTTLS, await transport.command(Phase.STARTTLS, "STARTTLS"))
    await transport.start_tls(server.tls, server.host)


async def _log_in(transport: Transport, server: Server, extensions: Extensions) -> None:
    """Log in by a method that is offered, else by the other: not all take what they offer."""
    offered = extensions.get("AUTH", "").upper().split()
    methods = [method for method in _METHODS if method in offered]
    if not methods:
        raise NotConnectedError(
            "the server offers no login by password (PLAIN or LOGIN); "
            "unset SMTP_USER if it needs none"
        )
    methods.sort(key=lambda method: method != server.learned.login)
    refusal: Reply | None = None
    for method in methods:
        server.learned.login = method
        try:
            reply = await _METHODS[method](transport, server)
        except LinkDroppedError:
            if refusal is None:
                raise
            break  # it hung up after the refusal: the next session begins with this method
        if reply.positive:
            return
        refusal = refusal or reply
        if not reply.permanent:
            break
    assert refusal is not None  # noqa: S101 - there is a method, and it was refused
    _expect(Phase.LOGIN, refusal)


async def _log_in_plain(transport: Transport, server: Server) -> Reply:
    secret = _base64(f"\x00{server.user}\x00{server.password}")
    reply = await transport.command(Phase.LOGIN, f"AUTH PLAIN {secret}")
    if reply.code == MORE:  # it has not looked at what came with the command (RFC 4954, 4)
        reply = await transport.command(Phase.LOGIN, secret)
    return reply


async def _log_in_by_questions(transport: Transport, server: Server) -> Reply:
    reply = await transport.command(Phase.LOGIN, "AUTH LOGIN")
    for secret in (server.user, server.password):
        if reply.code == MORE:
            reply = await transport.command(Phase.LOGIN, _base64(secret))
    return reply


_METHODS = {"PLAIN": _log_in_plain, "LOGIN": _log_in_by_questions}

MORE = 334


def _expect(phase: Phase, reply: Reply) -> Reply:
    """A positive reply, or there is no session."""
    if not reply.positive:
        raise NotConnectedError(f"the server refused ({phase.value}): {reply}")
    return reply


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
