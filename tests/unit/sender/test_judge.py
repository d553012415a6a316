"""What each answer of a mail server leads to."""

import pytest

from common.contracts.notifications import DeliveryStatus
from common.errors import MailServerUnavailableError
from sender.mailer import judge
from sender.smtp.connection import Answer
from sender.smtp.replies import Phase, Reply

PAUSE = None

SENT = DeliveryStatus.SENT
FAILED = DeliveryStatus.FAILED
DEFERRED = DeliveryStatus.DEFERRED

TABLE = [
    (Phase.TEXT, 250, SENT),
    (Phase.TEXT, 251, SENT),
    (Phase.TEXT, 451, DEFERRED),
    (Phase.TEXT, 452, DEFERRED),
    (Phase.TEXT, 550, FAILED),
    (Phase.TEXT, 552, FAILED),  # the mail is too large, and will be next time
    (Phase.TEXT, 554, FAILED),
    (Phase.TEXT, 421, PAUSE),
    (Phase.RCPT, 450, DEFERRED),  # greylisting
    (Phase.RCPT, 451, DEFERRED),
    (Phase.RCPT, 550, FAILED),
    (Phase.RCPT, 551, FAILED),
    (Phase.RCPT, 552, DEFERRED),  # RFC 5321, 4.5.3.1.10
    (Phase.RCPT, 553, FAILED),
    (Phase.RCPT, 530, PAUSE),  # we should have logged in
    (Phase.RCPT, 421, PAUSE),
    (Phase.RCPT, 354, DEFERRED),  # nonsense, before anything was sent
    (Phase.DATA, 451, DEFERRED),
    (Phase.DATA, 554, FAILED),
    (Phase.DATA, 250, DEFERRED),  # nonsense, before anything was sent
    (Phase.DATA, 421, PAUSE),
    (Phase.MAIL, 451, DEFERRED),
    (Phase.MAIL, 530, PAUSE),
    (Phase.MAIL, 550, PAUSE),  # FROM_EMAIL is refused: so would be every other mail
    (Phase.MAIL, 553, PAUSE),
    (Phase.MAIL, 421, PAUSE),
]


@pytest.mark.parametrize(("phase", "code", "expected"), TABLE)
def test_an_answer_leads_to(phase: Phase, code: int, expected: DeliveryStatus | None) -> None:
    answer = Answer(phase, Reply(code, "because"))

    if expected is PAUSE:
        with pytest.raises(MailServerUnavailableError):
            judge(answer)
    else:
        assert judge(answer).status is expected
        assert judge(answer).reply == answer.reply


def test_the_reason_for_a_pause_names_no_recipient() -> None:
    with pytest.raises(MailServerUnavailableError) as caught:
        judge(Answer(Phase.RCPT, Reply(421, "4.7.0 <ada@example.org> later")))

    assert "ada" not in caught.value.detail
    assert "421 4.7.0" in caught.value.detail
