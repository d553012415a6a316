"""Hands mails to the mail server and classifies its answers."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Self

import structlog

from common import metrics
from common.contracts.mail_status import Refusal, refusal_of
from common.contracts.notifications import DeliveryStatus
from common.errors import DestinationBusyError, MailServerUnavailableError
from sender.smtp.connection import SERVICE_CLOSING, Answer, Mail
from sender.smtp.errors import (
    BusyDestinationError,
    LinkDroppedError,
    NotConnectedError,
    SlowReplyError,
    Utf8AddressError,
)
from sender.smtp.handshake import Server
from sender.smtp.pool import Pool
from sender.smtp.replies import Phase, Reply

log = structlog.get_logger()

EXCEEDED_STORAGE = 552
ABOUT_THE_RECIPIENT = frozenset({501, 550, 551, 553, 555})
"""What a bare 5yz to RCPT says of the recipient (RFC 5321, 4.3.2), where no text says otherwise."""

NO_SUCH_PARAMETER = frozenset({500, 501, 504, 555})
"""How a server refuses a parameter that it does not know (RFC 5321, 4.1.1.11)."""

RECIPIENTS_IN_A_ROW = 3
"""So many recipients refused in a row, none for a reason of their own: the sender is refused.

Two may be chance: a server that slows down one provider's recipients, or two strange addresses.
"""

_seconds = cache(metrics.SMTP_SECONDS.labels)
"""The histogram of one status; to look it up takes longer than to count."""

CHECK_SECONDS = 5.0
"""How long one answer of the mail server counts for readiness."""

ANSWER_SECONDS = 2.5
"""A mail server that does not answer for so long is not ready. Less than readiness allows for the
whole check, so that the answer gives the reason."""

SILENT_SECONDS = 15.0
"""After this long without an answer to any of several mails, the server is not ready, whatever it
answers to a check."""

LONGEST_CHECK_SECONDS = 20.0
"""Then it is checked on a new connection; some servers delay the greeting of unknown clients."""

BUSY_AGAIN_AFTER = timedelta(seconds=20)
"""When a mail to a domain with many slow ones is tried again."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one attempt to hand a mail over."""

    status: DeliveryStatus
    """SENT, FAILED, DEFERRED or UNSURE."""

    reply: Reply | None = None
    """The server's reply; its text may name the recipient and is for the record only."""

    reason: str = ""
    """The sender's own text where there is no reply; without names."""

    concerns_recipient: bool = True
    """False if other recipients might be refused alike, as far as one shows."""

    @property
    def summary(self) -> str:
        """Fit for logs and dead letters: without names."""
        return self.reply.summary if self.reply else self.reason


class SmtpMailer:
    """Sends mails through a pool of connections."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._refused: set[str] = set()
        """Recipients refused since the last accepted mail, for what may concern the sender."""
        self._checked_at = -CHECK_SECONDS
        self._check_failure: MailServerUnavailableError | None = None
        self._checking: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, server: Server, *, connections: int) -> AsyncIterator[Self]:
        """A mailer with its pool; connects when it must."""
        async with Pool.open(server, size=connections) as pool:
            mailer = cls(pool)
            try:
                yield mailer
            finally:
                if mailer._checking is not None:
                    mailer._checking.cancel()

    async def ensure(self) -> None:
        """Return if there is a connection to the mail server, else open one.

        Raises:
            MailServerUnavailableError: None can be opened.
        """
        try:
            await self._pool.ensure()
        except NotConnectedError as error:
            raise _unavailable(str(error)) from error

    async def ask(self) -> None:
        """Check that the mail server answers.

        Raises:
            MailServerUnavailableError: It does not.
        """
        try:
            await self._pool.check()
        except (NotConnectedError, LinkDroppedError) as error:
            raise _unavailable(str(error)) from error

    async def check(self) -> None:
        """Check the mail server, at most every few seconds.

        Raises:
            MailServerUnavailableError: It does not answer, or answers no mail.
        """
        now = time.monotonic()
        if now - self._pool.answered_at < CHECK_SECONDS:
            return  # mails are getting through
        if (silent := self._pool.count_unanswered(SILENT_SECONDS)) >= RECIPIENTS_IN_A_ROW:
            raise _unavailable(
                f"it has answered no mail for {SILENT_SECONDS:g} s, to {silent} domains"
            )
        if now - self._checked_at >= CHECK_SECONDS:
            if self._checking is None or self._checking.done():
                self._checking = asyncio.create_task(self._check())
            # Not cancelled: a later answer counts too, and its connection is kept.
            await asyncio.wait([self._checking], timeout=ANSWER_SECONDS)
            if not self._checking.done():
                raise _unavailable(f"no answer within {ANSWER_SECONDS:g} s")
            self._checking.result()  # raises only what is a bug
        if self._check_failure:
            raise self._check_failure

    async def _check(self) -> None:
        try:
            async with asyncio.timeout(LONGEST_CHECK_SECONDS):
                await self.ask()
            self._check_failure = None
        except TimeoutError:
            self._check_failure = _unavailable(f"no answer within {LONGEST_CHECK_SECONDS:g} s")
        except MailServerUnavailableError as error:
            self._check_failure = error
        self._checked_at = time.monotonic()

    async def send(self, mail: Mail, *, before_text: Callable[[], None]) -> Outcome:
        """Hand one mail over.

        Args:
            mail: The mail.
            before_text: See ``Connection.send``.

        Raises:
            MailServerUnavailableError: The mail was not accepted, and no other would be.
            DestinationBusyError: Too many slow mails to the same domain are in progress.
        """
        started = time.perf_counter()
        status = "unavailable"
        try:
            outcome = await self._send(mail, before_text)
            self._compare(mail, outcome)
            status = outcome.status
        finally:
            _seconds(status).observe(time.perf_counter() - started)
        return outcome

    async def _send(self, mail: Mail, before_text: Callable[[], None]) -> Outcome:
        """Try; and once more on a new connection if the first ended before the mail was sent.

        Servers close connections that were idle, or after some number of mails, with 421 or
        without. A new one shows whether the server is away, or only that connection was.
        """
        for fresh in (False, True):
            try:
                answer = await self._pool.send(mail, before_text=before_text, fresh=fresh)
            except NotConnectedError as error:
                raise _unavailable(str(error)) from error
            except Utf8AddressError:
                return Outcome(DeliveryStatus.FAILED, reason=_NO_UTF8)
            except SlowReplyError as error:
                return Outcome(DeliveryStatus.DEFERRED, reason=f"It took too long: {error}")
            except BusyDestinationError as error:
                raise DestinationBusyError(again_after=BUSY_AGAIN_AFTER) from error
            except LinkDroppedError as error:
                if error.phase is Phase.TEXT:
                    return Outcome(
                        DeliveryStatus.UNSURE, reason=f"The connection was lost: {error}"
                    )
                dropped = Outcome(
                    DeliveryStatus.DEFERRED,
                    reason=f"The connection was lost: {error}",
                    concerns_recipient=False,
                )
            else:
                if answer.reply.code != SERVICE_CLOSING or fresh:
                    return classify(answer, needs_utf8=mail.needs_utf8)
        # The server greets and then drops this very mail: it answers, so nothing else waits.
        return dropped

    def _compare(self, mail: Mail, outcome: Outcome) -> None:
        """Tell a refused sender from a refused recipient, by the mails before this one.

        Raises:
            MailServerUnavailableError: Several recipients in a row were refused.
        """
        if outcome.status is DeliveryStatus.SENT:
            if len(self._refused) >= RECIPIENTS_IN_A_ROW:
                log.info("smtp.sender_accepted")
            self._refused.clear()
        elif not outcome.concerns_recipient:
            known = len(self._refused)
            if known < RECIPIENTS_IN_A_ROW:
                self._refused.add(mail.recipient)
            if len(self._refused) < RECIPIENTS_IN_A_ROW:
                return
            if known < RECIPIENTS_IN_A_ROW:
                log.error("smtp.sender_refused", phase="any", reply=outcome.summary)
            raise _unavailable(
                "it refuses one recipient after another, for no reason that concerns them "
                f"({outcome.summary})"
            )


def classify(answer: Answer, *, needs_utf8: bool = False) -> Outcome:
    """Return the outcome of an answer, by what is refused: ``common.contracts.mail_status``.

    * A refused recipient, an address or a mail that cannot be taken: ``FAILED``.
    * Anything else is retried: a full mailbox, a server in trouble, a refused sender. To record
      those as failed would report a mistake that the recipient did not make, and empty the queue
      over one wrong setting.
    * 5yz to a MAIL that is the same for every mail refuses the sender: a wrong FROM_EMAIL, no
      login.

    Args:
        answer: The server's.
        needs_utf8: Whether MAIL asked for SMTPUTF8, which some servers offer and then refuse.

    Raises:
        MailServerUnavailableError: Every other mail would get the same answer now.
    """
    phase, reply = answer
    if phase is Phase.TEXT and reply.positive:
        return Outcome(DeliveryStatus.SENT, reply)
    if not reply.permanent:
        return Outcome(
            DeliveryStatus.DEFERRED, reply, concerns_recipient=reply.code != SERVICE_CLOSING
        )
    refusal = refusal_of(reply.code, reply.status, reply.text)
    if phase is Phase.MAIL:
        if not needs_utf8:
            log.error("smtp.sender_refused", phase=phase.value, reply=reply.summary)
            raise _unavailable(f"it refuses the sender ({phase.value}: {reply.summary})")
        if reply.code in NO_SUCH_PARAMETER or refusal is Refusal.UNSUPPORTED_ADDRESS:
            return Outcome(DeliveryStatus.FAILED, reply)
        refusal = Refusal.POLICY
    says_why = refusal is not Refusal.UNKNOWN
    if not says_why:
        refusal = _refusal_by_phase(answer)
    failed = refusal is Refusal.MESSAGE or (
        refusal.concerns_recipient and refusal is not Refusal.MAILBOX_FULL
    )
    return Outcome(
        DeliveryStatus.FAILED if failed else DeliveryStatus.DEFERRED,
        reply,
        # A bare 550 may mean anything: believed for one recipient, not for all in a row.
        concerns_recipient=says_why and refusal.concerns_recipient,
    )


def _refusal_by_phase(answer: Answer) -> Refusal:
    """Return what a refusal is about whose code and text do not tell.

    552 to RCPT is a full mailbox, or "too many recipients" from an old server; RFC 5321,
    4.5.3.1.10 has it treated as temporary. 552 to the text is its size.
    """
    phase, reply = answer
    if reply.code == EXCEEDED_STORAGE:
        return Refusal.MAILBOX_FULL if phase is Phase.RCPT else Refusal.MESSAGE
    if phase is Phase.RCPT and reply.code in ABOUT_THE_RECIPIENT:
        return Refusal.NO_SUCH_ADDRESS
    return Refusal.POLICY


def _unavailable(reason: str) -> MailServerUnavailableError:
    return MailServerUnavailableError(
        f"The mail server is unavailable: {reason}. No mail was lost; mails wait until it is back."
    )


_NO_UTF8 = (
    "The address has characters that the mail server cannot take: "
    "it does not offer SMTPUTF8 (RFC 6531)."
)
