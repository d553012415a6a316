"""Commands out, replies in, each with its deadline."""

import asyncio
import ssl
from typing import Self

from sender.smtp.errors import LinkDroppedError, NotConnectedError
from sender.smtp.replies import MalformedReplyError, Phase, Reply, ReplyProtocol

SECONDS = {
    Phase.CONNECT: 30.0,  # TCP, and TLS once more; the RFC is silent
    Phase.GREETING: 300.0,
    Phase.HELLO: 300.0,
    Phase.STARTTLS: 120.0,
    Phase.LOGIN: 300.0,
    Phase.MAIL: 300.0,
    Phase.RCPT: 300.0,
    Phase.DATA: 120.0,
    Phase.TEXT: 600.0,
    Phase.IDLE: 10.0,
}
"""Seconds to wait for a reply: RFC 5321, 4.5.3.2, which calls them minimums.

600 for the final dot because giving up sooner does not stop the server from delivering:
each mail given up on would be sent twice. ``IDLE`` (NOOP, RSET, QUIT) loses nothing.
"""


class Transport:
    """A connection to a mail server; after any error it is closed."""

    def __init__(self, protocol: ReplyProtocol, transport: asyncio.Transport) -> None:
        self._protocol = protocol
        self._transport = transport

    @classmethod
    async def open(cls, host: str, port: int, tls: ssl.SSLContext | None) -> Self:
        """Connect, with TLS from the first byte if ``tls`` is given.

        Raises:
            NotConnectedError: With a reason for the operator.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(SECONDS[Phase.CONNECT]):
                transport, protocol = await loop.create_connection(
                    ReplyProtocol, host, port, ssl=tls
                )
        except TimeoutError as error:
            raise NotConnectedError(f"no connection within {SECONDS[Phase.CONNECT]:g} s") from error
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name that cannot be one
            raise NotConnectedError(f"no connection: {_reason(error)}") from error
        return cls(protocol, transport)

    @property
    def usable(self) -> bool:
        """Whether a command can be sent, as far as is known without sending one.

        Input that was not asked for is a farewell ("421 timeout"), or would be taken for the reply
        to another command.
        """
        return not (self._protocol.ended or self._protocol.has_input)

    @property
    def address_literal(self) -> str:
        """Our address as RFC 5321, 4.1.3 writes it: a true name that needs no DNS."""
        address: str = self._transport.get_extra_info("sockname")[0]
        return f"[IPv6:{address.partition('%')[0]}]" if ":" in address else f"[{address}]"

    async def command(self, phase: Phase, command: str) -> Reply:
        """Send one command and wait for its reply.

        Raises:
            LinkDroppedError: None came.
        """
        self.write(f"{command}\r\n".encode())
        return await self.read(phase)

    def write(self, data: bytes) -> None:
        """Send bytes; the next ``read`` shows whether they arrived.

        Nothing waits for the buffer to drain: a mail is some kilobytes, then a reply is awaited.
        """
        if not self._protocol.ended:
            self._transport.write(data)

    def require(self, phase: Phase) -> None:
        """Return if what is written now may arrive, and the next reply is the answer to it.

        Raises:
            LinkDroppedError: The connection ended; or a reply came that was not asked for and
                would be taken for the answer: a 250 that came before the text is none to it.
        """
        if self._protocol.ended:
            raise LinkDroppedError(phase, "the connection ended")
        if self._protocol.has_input:
            self.abort()
            raise LinkDroppedError(phase, "a reply that was not asked for")

    async def read(self, phase: Phase, *, within: float | None = None) -> Reply:
        """Wait for a reply, for ``within`` seconds if that is less than the phase allows.

        Raises:
            LinkDroppedError: None came, or what came is not SMTP.
        """
        seconds = SECONDS[phase] if within is None else min(within, SECONDS[phase])
        try:
            return await self._protocol.read(seconds)
        except TimeoutError as error:
            self.abort()
            raise LinkDroppedError(phase, f"no reply within {seconds:g} s") from error
        except (OSError, MalformedReplyError) as error:
            self.abort()
            raise LinkDroppedError(phase, _reason(error)) from error
        except asyncio.CancelledError:
            self.abort()  # the reply may still come, and would be taken for the next command's
            raise

    async def start_tls(self, tls: ssl.SSLContext, host: str) -> None:
        """Continue under TLS.

        Raises:
            NotConnectedError: The handshake failed, or the certificate is not ``host``'s.
        """
        if self._protocol.has_input:  # they would be read as if they had come under TLS
            raise NotConnectedError("TLS failed: data was injected before the handshake")
        loop = asyncio.get_running_loop()
        seconds = SECONDS[Phase.CONNECT]
        try:
            transport = await loop.start_tls(
                self._transport,
                self._protocol,
                tls,
                server_hostname=host,
                ssl_handshake_timeout=seconds,
            )
        except OSError as error:
            raise NotConnectedError(f"TLS failed: {_reason(error)}") from error
        if transport is None:
            raise NotConnectedError("TLS failed: the server closed the connection")
        self._transport = transport

    def abort(self) -> None:
        """Close at once, without QUIT."""
        self._transport.abort()
        self._protocol.give_up()


def _reason(error: Exception) -> str:
    """Return an error's text; some have none."""
    return str(error) or type(error).__name__
