"""What can go wrong with a mail server; ``sender.mailer`` translates it."""

from sender.smtp.replies import Phase


class SmtpError(Exception):
    """Base of these errors; the connection is of no further use."""


class LinkDroppedError(SmtpError):
    """The connection ended, timed out, or carried what is not SMTP, in ``phase``."""

    def __init__(self, phase: Phase, reason: str) -> None:
        super().__init__(f"{reason} ({phase.value})")
        self.phase = phase
        self.reason = reason


class NotConnectedError(SmtpError):
    """There is no session: refused connection, greeting, TLS or login."""


class SlowReplyError(SmtpError):
    """The replies before the text took too long, and others waited; nothing was accepted."""


class BusyDestinationError(SmtpError):
    """Slow mails to its domain hold as many connections as they may; nothing was sent."""


class Utf8AddressError(SmtpError):
    """The address needs SMTPUTF8 (RFC 6531) and the server does not offer it.

    The connection stays usable: nothing was sent on it.
    """
