"""How a session begins: greeting, EHLO, TLS, login (RFC 5321, 3207, 4954)."""

import base64
import ssl
from dataclasses import dataclass
from enum import StrEnum

from sender.smtp.errors import LinkDroppedError, NotConnectedError
from sender.smtp.link import Link
from sender.smtp.replies import Phase, Reply


class Security(StrEnum):
    """How the link is protected."""

    STARTTLS = "starttls"
    """Upgraded before anything is said; a server that does not offer it is refused."""

    TLS = "tls"
    """TLS from the first byte (usually port 465)."""

    NONE = "none"


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


Extensions = dict[str, str]
"""What the server offers: keyword in upper case to its parameters."""


async def open_session(server: Server) -> tuple[Link, Extensions]:
    """Connect, secure the link, log in.

    Raises:
        NotConnectedError: Any of it failed. Nothing is left open.
    """
    link = await Link.open(
        server.host, server.port, server.tls if server.security is Security.TLS else None
    )
    try:
        return link, await _begin(link, server)
    except LinkDroppedError as error:
        raise NotConnectedError(str(error)) from error
    except BaseException:
        link.abort()
        raise


async def _begin(link: Link, server: Server) -> Extensions:
    _expect(Phase.GREETING, await link.read(Phase.GREETING))
    extensions = await _hello(link, server)
    if server.security is Security.STARTTLS:
        await _start_tls(link, server, extensions)
        extensions = await _hello(link, server)  # what was offered in the clear may be forged
    if server.user:
        await _log_in(link, server, extensions)
    return extensions


async def _hello(link: Link, server: Server) -> Extensions:
    name = server.hello_name or link.address_literal
    reply = _expect(Phase.HELLO, await link.command(Phase.HELLO, f"EHLO {name}"))
    offers = (line.partition(" ") for line in reply.lines[1:])
    return {keyword.upper(): parameters for keyword, _, parameters in offers}


async def _start_tls(link: Link, server: Server, extensions: Extensions) -> None:
    if "STARTTLS" not in extensions:
        raise NotConnectedError(
            "the server does not offer STARTTLS, so everything would be readable on the way; "
            "set SMTP_SECURE=tls if it speaks TLS from the start"
        )
    _expect(Phase.STARTTLS, await link.command(Phase.STARTTLS, "STARTTLS"))
    await link.start_tls(server.tls, server.host)


async def _log_in(link: Link, server: Server, extensions: Extensions) -> None:
    offered = extensions.get("AUTH", "").upper().split()
    if "PLAIN" in offered:
        secret = f"\x00{server.user}\x00{server.password}"
        commands = [f"AUTH PLAIN {_base64(secret)}"]
    elif "LOGIN" in offered:
        commands = ["AUTH LOGIN", _base64(server.user), _base64(server.password)]
    else:
        raise NotConnectedError(
            "the server offers no login by password (PLAIN or LOGIN); "
            "unset SMTP_USER if it needs none"
        )
    for command in commands:
        reply = await link.command(Phase.LOGIN, command)
        if reply.code >= 400:  # noqa: PLR2004 - 334 asks for more
            break
    _expect(Phase.LOGIN, reply)


def _expect(phase: Phase, reply: Reply) -> Reply:
    """A positive reply, or there is no session."""
    if not reply.positive:
        raise NotConnectedError(f"the server refused ({phase.value}): {reply}")
    return reply


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
