"""What each answer of a mail server leads to: told by what it is about, not by when it comes."""

import pytest

from common.contracts.notifications import DeliveryStatus
from common.errors import MailServerUnavailableError
from sender.mailer import classify
from sender.smtp.connection import Answer
from sender.smtp.replies import Phase, Reply

PAUSE = None

SENT = DeliveryStatus.SENT
FAILED = DeliveryStatus.FAILED
DEFERRED = DeliveryStatus.DEFERRED

TEXT, RCPT, DATA, MAIL = Phase.TEXT, Phase.RCPT, Phase.DATA, Phase.MAIL

TABLE = [
    (TEXT, "250", SENT),
    (TEXT, "251", SENT),
    (TEXT, "451", DEFERRED),
    (TEXT, "452", DEFERRED),
    (TEXT, "552", FAILED),  # the mail is too large, and will be next time
    (TEXT, "552 5.3.4 Message size exceeds fixed limit", FAILED),
    (TEXT, "421", DEFERRED),
    (TEXT, "550 5.1.1 User unknown", FAILED),  # found out late
    (TEXT, "550", DEFERRED),  # nothing says that it is the person's fault
    (TEXT, "554", DEFERRED),
    (TEXT, "554 5.7.1 Message rejected as spam", DEFERRED),
    (TEXT, "550 5.4.5 Daily user sending quota exceeded.", DEFERRED),
    (TEXT, "554 5.5.1 Error: no valid recipients", DEFERRED),
    (RCPT, "450", DEFERRED),  # greylisting
    (RCPT, "451", DEFERRED),
    (RCPT, "550", FAILED),
    (RCPT, "550 no", FAILED),
    (RCPT, "551", FAILED),
    (RCPT, "553", FAILED),
    (RCPT, "552", DEFERRED),  # RFC 5321, 4.5.3.1.10
    (RCPT, "554", DEFERRED),
    (RCPT, "550 5.1.1 <ada@example.org>: Recipient address rejected: User unknown", FAILED),
    (RCPT, "550 5.1.2 Host unknown", FAILED),
    (RCPT, "550 5.1.10 RESOLVER.ADR.RecipientNotFound", FAILED),
    (RCPT, "550 5.2.1 The email account that you tried to reach is disabled", FAILED),
    (RCPT, "550 5.4.1 Recipient address rejected: Access denied.", FAILED),
    (RCPT, "553 5.6.7 address requires SMTPUTF8", FAILED),
    (RCPT, "550 Unrouteable address", FAILED),
    (RCPT, "554 5.7.1 <ada@example.org>: Relay access denied", DEFERRED),
    (RCPT, "550 relay not permitted", DEFERRED),
    (RCPT, "550 5.1.1 <ada@example.org>: Relay access denied", DEFERRED),
    (RCPT, "550 5.1.8 <us@example.com>: Sender address rejected: Domain not found", DEFERRED),
    (RCPT, "553 5.1.7 bad sender address syntax", DEFERRED),
    (RCPT, "550 5.7.1 Service unavailable; Client host [192.0.2.1] blocked", DEFERRED),
    (RCPT, "550 5.7.1 Authentication required", DEFERRED),
    (RCPT, "530 5.7.0 Must issue a STARTTLS command first", DEFERRED),
    (RCPT, "550 5.7.60 SMTP; Client does not have permissions to send as this sender", DEFERRED),
    (RCPT, "550 5.2.2 mailbox full", DEFERRED),
    (RCPT, "552 5.2.2 over quota", DEFERRED),
    (RCPT, "550 4.7.1 try again later", DEFERRED),
    (RCPT, "421", DEFERRED),
    (RCPT, "354", DEFERRED),  # nonsense, before anything was sent
    (DATA, "451", DEFERRED),
    (DATA, "554", DEFERRED),
    (DATA, "250", DEFERRED),  # nonsense, before anything was sent
    (DATA, "421", DEFERRED),
    (MAIL, "451", DEFERRED),
    (MAIL, "421", DEFERRED),
    (MAIL, "530", PAUSE),
    (MAIL, "550", PAUSE),  # FROM_EMAIL is refused: so would be every other mail
    (MAIL, "553", PAUSE),
]


def a_reply(said: str) -> Reply:
    code, _, text = said.partition(" ")
    return Reply(int(code), text)


@pytest.mark.parametrize(("phase", "said", "expected"), TABLE)
def test_an_answer_leads_to(phase: Phase, said: str, expected: DeliveryStatus | None) -> None:
    answer = Answer(phase, a_reply(said))

    if expected is PAUSE:
        with pytest.raises(MailServerUnavailableError):
            classify(answer)
    else:
        assert classify(answer).status is expected
        assert classify(answer).reply == answer.reply


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("555 unsupported parameter", FAILED),
        ("501 5.5.4 Syntax error in parameters", FAILED),
        ("550 5.6.7 no", FAILED),
        ("550 5.7.1 not you", DEFERRED),
        ("451 later", DEFERRED),
    ],
)
def test_a_parameter_for_one_address_is_refused_to_one_mail(
    said: str, expected: DeliveryStatus
) -> None:
    assert classify(Answer(MAIL, a_reply(said)), needs_utf8=True).status is expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("550 5.1.1 nobody", True),
        ("550 5.2.2 full", True),
        ("450 4.7.1 greylisted", True),
        ("554 5.7.1 Relay access denied", False),
        ("552 5.3.4 too big", False),
        ("421 4.7.0 closing", False),
        ("550 5.3.0 other", False),
    ],
)
def test_only_what_is_about_the_recipient_says_nothing_of_others(
    said: str, *, expected: bool
) -> None:
    assert classify(Answer(RCPT, a_reply(said))).concerns_recipient is expected


def test_the_reason_for_a_pause_names_no_recipient() -> None:
    with pytest.raises(MailServerUnavailableError) as caught:
        classify(Answer(Phase.MAIL, Reply(550, "5.7.1 <ada@example.org> later")))

    assert "ada" not in caught.value.detail
    assert "550 5.7.1" in caught.value.detail
