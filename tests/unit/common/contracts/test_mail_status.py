"""What refusals are about, as servers of all kinds word them."""

import time

import pytest

from common.contracts.mail_status import Refusal, refusal_in_report, refusal_of

ADDRESS, DOMAIN, FULL = Refusal.NO_SUCH_ADDRESS, Refusal.NO_SUCH_DOMAIN, Refusal.MAILBOX_FULL
POLICY, MESSAGE, TEMPORARY = Refusal.POLICY, Refusal.MESSAGE, Refusal.TEMPORARY
UNKNOWN, UNSUPPORTED = Refusal.UNKNOWN, Refusal.UNSUPPORTED_ADDRESS

REPORTS = [
    # Postfix
    ("5.1.1", "550 5.1.1 <ada@example.org>: Recipient address rejected: User unknown", ADDRESS),
    ("5.4.4", "Host or domain name not found. Name service error for name=example.invalid", DOMAIN),
    ("5.7.1", "554 5.7.1 <ada@example.org>: Relay access denied", POLICY),
    (
        "5.7.1",
        "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using a list",
        POLICY,
    ),
    ("4.4.1", "connect to mx.example.org[192.0.2.2]:25: Connection timed out", TEMPORARY),
    ("5.3.4", "552 5.3.4 Message size exceeds fixed limit", MESSAGE),
    ("5.2.2", "552 5.2.2 <ada@example.org>: user is over quota", FULL),
    # Exim, which says 5.0.0 of everything
    ("5.0.0", "550 Unrouteable address", ADDRESS),
    ("5.0.0", "550 Unknown user", ADDRESS),
    ("5.0.0", "550 relay not permitted", POLICY),
    ("5.0.0", "550 Sender verify failed", POLICY),
    ("5.0.0", "552 Message size exceeds maximum permitted", MESSAGE),
    (
        "5.0.0",
        "all hosts have been failing for a long time (and retry time not reached)",
        TEMPORARY,
    ),
    ("5.0.0", "", UNKNOWN),
    # sendmail, which makes 5.1.1 of any 550
    ("5.1.1", "550 5.7.1 Message rejected: see our policy", POLICY),
    ("5.1.1", "550 5.1.1 ada@example.org... User unknown", ADDRESS),
    ("5.1.2", "550 Host unknown (Name server: example.invalid: host not found)", DOMAIN),
    # Exchange
    ("5.1.10", "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found", ADDRESS),
    ("5.4.1", "550 5.4.1 Recipient address rejected: Access denied. AS(201806281)", ADDRESS),
    ("5.4.316", "550 5.4.316 Message expired, connection refused (Socket error 10061)", TEMPORARY),
    ("5.4.310", "550 5.4.310 DNS domain example.invalid does not exist", DOMAIN),
    ("5.1.8", "550 5.1.8 Access denied, bad outbound sender", POLICY),
    ("5.7.60", "550 5.7.60 SMTP; Client does not have permissions to send as this sender", POLICY),
    # Gmail, Yahoo, Outlook.com
    ("5.1.1", "550-5.1.1 The email account that you tried to reach does not exist.", ADDRESS),
    ("5.2.1", "550 5.2.1 The email account that you tried to reach is disabled.", ADDRESS),
    ("5.2.1", "550-5.2.1 The user is receiving mail at a rate that prevents delivery", TEMPORARY),
    ("5.4.5", "550 5.4.5 Daily user sending quota exceeded.", POLICY),
    (
        "5.7.26",
        "550-5.7.26 This mail has been blocked because the sender is unauthenticated",
        POLICY,
    ),
    ("5.0.0", "554 delivery error: dd This user doesn't have a yahoo.com account [0]", ADDRESS),
    ("5.5.0", "550 5.5.0 Requested action not taken: mailbox unavailable.", ADDRESS),
    # qmail
    ("5.1.1", "sorry, no mailbox here by that name. (#5.1.1)", ADDRESS),
    ("5.0.0", "550 sorry, no mailbox here by that name (#5.1.1 - chkuser)", ADDRESS),
    # Status counts where it says something
    ("5.7.1", "550 5.1.1 no such user", POLICY),
    ("5.4.316", "550 5.1.1 no such user", TEMPORARY),
    ("4.4.7", "550 5.1.1 no such user", TEMPORARY),
    ("5.1.1", "", ADDRESS),
    ("", "550 5.1.1 no such user", ADDRESS),
    ("", "", UNKNOWN),
    # given up
    ("4.4.7", "delivery temporarily suspended: connection refused", TEMPORARY),
    ("5.0.0", "451 4.7.1 greylisted, giving up", TEMPORARY),
    ("4.0.0", "550 User unknown", ADDRESS),
    ("4.2.2", "452 4.2.2 mailbox full", FULL),
    # others
    ("5.7.17", "550 5.7.17 the mailbox has another owner", ADDRESS),
    ("5.6.7", "550 5.6.7 no", UNSUPPORTED),
    ("5.0.0", "550 5.1.0 Address rejected", ADDRESS),
    ("5.1.1", "550 Mailbox quota exceeded", FULL),
    ("5.0.0", "what", UNKNOWN),
]


@pytest.mark.parametrize(("status", "diagnostic", "expected"), REPORTS)
def test_a_report_says_what_was_in_the_way(status: str, diagnostic: str, expected: Refusal) -> None:
    assert refusal_in_report(status, diagnostic) is expected


@pytest.mark.parametrize(
    "name", ["relay.denied", "user.unknown", "over.quota", "blocked.by.spamhaus", "550.5.1.1"]
)
def test_an_address_in_the_text_decides_nothing(name: str) -> None:
    """The person who registers an address chooses its characters."""
    said = f"<{name}@example.org>: rejected"

    assert refusal_of(554, "", said) is UNKNOWN
    assert refusal_of(550, "5.7.1", said) is POLICY


def test_every_detail_of_the_registry_has_a_meaning() -> None:
    """All that RFC 3463 and those after it have registered, and room for what is to come."""
    for subject in range(8):
        for detail in range(400):
            refusal = refusal_of(550, f"5.{subject}.{detail}", "")
            if subject in (1, 2, 3, 4, 6, 7) and detail:
                assert refusal is not UNKNOWN
            assert refusal_of(450, f"4.{subject}.{detail}", "") in (TEMPORARY, FULL)


def test_a_text_of_any_kind_takes_no_time() -> None:
    started = time.process_time()
    for text in (
        "user " * 10_000,
        "@" * 50_000,
        "a@" * 25_000,
        "quota exceed " * 5_000,
        "<" * 9**5,
    ):
        refusal_of(550, "", text)

    assert time.process_time() - started < 5
