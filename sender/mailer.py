"""Hands mails to the mail server and says what its answer means."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Self

import structlog

from common import metrics
from common.contracts.notifications import DeliveryStatus
from common.errors import MailServerUnavailableError
from sender.smtp.connection import SERVICE_CLOSING, Answer, Mail
from sender.smtp.errors import LinkDroppedError, NotConnectedError, Utf8AddressError
from sender.smtp.opening import Server
from sender.smtp.pool import Pool
from sender.smtp.replies import Phase, Reply

log = structlog.get_logger()

AUTHENTICATION_REQUIRED = 530
EXCEEDED_STORAGE = 552

_seconds = cache(metrics.SMTP_SECONDS.labels)
"""The histogram of one status; to look it up takes longer than to count."""

CHECK_SECONDS = 5.0
"""How long one answer of the mail server counts when readiness is asked again."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one attempt to hand a mail over."""

    status: DeliveryStatus
    """SENT, FAILED, DEFERRED or UNSURE."""

    reply: Reply | None = None
    """The server's reply; its text may name the recipient and is for the record only."""

    reason: str = ""
    """Our own words where there is no reply; names nobody."""

    @property
    def summary(self) -> str:
        """Fit for logs and dead letters: names nobody."""
        return self.reply.summary if self.reply else self.reason


class SmtpMailer:
    """Sends mails through a pool of connections."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._checked_at = -CHECK_SECONDS
        self._check_failure: MailServerUnavailableError | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, server: Server, *, connections: int) -> AsyncIterator[Self]:
        """A mailer with its pool; connects when it must."""
        async with Pool.open(server, size=connections) as pool:
            yield cls(pool)

    async def ensure(self) -> None:
        """Return if there is a way to the mail server, at once if one is open.

        Raises:
            MailServerUnavailableError: There is none.
        """
        try:
            await self._pool.ensure()
        except NotConnectedError as error:
            raise _unavailable(str(error)) from error

    async def check(self) -> None:
        """Ask the mail server, at most every few seconds, whether it is there.

        Raises:
            MailServerUnavailableError: It is not.
        """
        if time.monotonic() - self._checked_at >= CHECK_SECONDS:
            try:
                await self._pool.check()
                self._check_failure = None
            except (NotConnectedError, LinkDroppedError) as error:
                self._check_failure = _unavailable(str(error))
            self._checked_at = time.monotonic()
        if self._check_failure:
            raise self._check_failure

    async def send(self, mail: Mail, *, before_text: Callable[[], None]) -> Outcome:
        """Hand one mail over.

        Args:
            mail: The mail.
            before_text: See ``Connection.send``.

        Raises:
            MailServerUnavailableError: The mail was not accepted, and no other would be.
        """
        started = time.perf_counter()
        status = "unavailable"
        try:
            outcome = await self._send(mail, before_text)
            status = outcome.status
        finally:
            _seconds(status).observe(time.perf_counter() - started)
        return outcome

    async def _send(self, mail: Mail, before_text: Callable[[], None]) -> Outcome:
        """Try; and once more on a new connection if the first ended before the mail was out.

        Servers close connections that were idle, or after some number of mails (421 or without
        a word). A new one tells whether the server is away, or only that connection was.
        """
        for fresh in (False, True):
            try:
                answer = await self._pool.send(mail, before_text=before_text, fresh=fresh)
            except NotConnectedError as error:
                raise _unavailable(str(error)) from error
            except Utf8AddressError:
                return Outcome(DeliveryStatus.FAILED, reason=_NO_UTF8)
            except LinkDroppedError as error:
                if error.phase is Phase.TEXT:
                    return Outcome(DeliveryStatus.UNSURE, reason=f"The link was lost: {error}")
                dropped = Outcome(DeliveryStatus.DEFERRED, reason=f"The link was lost: {error}")
            else:
                if answer.reply.code != SERVICE_CLOSING or fresh:
                    return judge(answer)
        # The server greets us and then drops this very mail: it is there, so nothing else waits.
        return dropped


def judge(answer: Answer) -> Outcome:
    """What an answer means for the mail.

    * 5yz to MAIL refuses us, not the recipient: a wrong FROM_EMAIL, a sender that is not
      allowed. So does 530 anywhere (RFC 4954, 6). To record each mail as failed would empty
      the queue over one wrong setting.
    * 552 to RCPT is a full mailbox, or "too many recipients" from an old server; RFC 5321,
      4.5.3.1.10 has it treated as temporary.

    Raises:
        MailServerUnavailableError: Every other mail would get the same answer now.
    """
    phase, reply = answer
    if reply.code == SERVICE_CLOSING:
        raise _unavailable(f"the server closes the session: {reply.summary}")
    if _refuses_us(answer):
        log.error("smtp.sender_refused", phase=phase.value, reply=reply.summary)
        raise _unavailable(f"it refuses us as a sender ({phase.value}: {reply.summary})")
    if phase is Phase.TEXT and reply.positive:
        return Outcome(DeliveryStatus.SENT, reply)
    refused = reply.permanent and not (phase is Phase.RCPT and reply.code == EXCEEDED_STORAGE)
    return Outcome(DeliveryStatus.FAILED if refused else DeliveryStatus.DEFERRED, reply)


def _refuses_us(answer: Answer) -> bool:
    if answer.reply.code == AUTHENTICATION_REQUIRED:
        return True
    return answer.phase is Phase.MAIL and answer.reply.permanent


def _unavailable(reason: str) -> MailServerUnavailableError:
    return MailServerUnavailableError(
        f"The mail server can not be used: {reason}. Nothing is lost; mails wait until it can."
    )


_NO_UTF8 = (
    "The address has characters that the mail server can not take: "
    "it does not offer SMTPUTF8 (RFC 6531)."
)
