"""Delivery status notifications as mail servers write them, and as nobody should."""

import time
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.contracts.bounces import BounceReport
from common.contracts.mail_status import Refusal, refusal_in_report
from common.contracts.notifications import ReportAction
from sender.dsn import MAX_RECIPIENTS, NotABounceError, read_report

MAIL = UUID("0192f7a4-5b7c-5c3e-9f10-2b6d1c3a4e5f")

POSTFIX = f"""\
Return-Path: <>
From: MAILER-DAEMON@mx.example.net (Mail Delivery System)
To: hello@example.com
Subject: Undelivered Mail Returned to Sender
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status;
\tboundary="9B1A.1775/mx.example.net"
Message-Id: <20261121.9B1A@mx.example.net>

This is a MIME-encapsulated message.

--9B1A.1775/mx.example.net
Content-Description: Notification
Content-Type: text/plain; charset=us-ascii

I'm sorry to have to inform you that your message could not be delivered.

--9B1A.1775/mx.example.net
Content-Description: Delivery report
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example.net
X-Postfix-Queue-ID: 9B1A
Arrival-Date: Sat, 21 Nov 2026 10:00:00 +0000 (UTC)

Final-Recipient: rfc822; ada@example.org
Original-Recipient: rfc822;Ada@Example.org
Action: failed
Status: 5.1.1
Remote-MTA: dns; mail.example.org
Diagnostic-Code: smtp; 550 5.1.1 <ada@example.org>: Recipient address
    rejected: User unknown

--9B1A.1775/mx.example.net
Content-Description: Undelivered Message
Content-Type: message/rfc822

From: UserStream <hello@example.com>
To: ada@example.org
Subject: Welcome
Message-ID: <{MAIL}@example.com>
MIME-Version: 1.0
Content-Type: multipart/alternative; boundary="=_userstream"

--=_userstream
Content-Type: text/plain

Welcome
--=_userstream--

--9B1A.1775/mx.example.net--
"""

HEADERS_ONLY = POSTFIX.replace(
    "Content-Description: Undelivered Message\nContent-Type: message/rfc822",
    "Content-Description: Undelivered Message Headers\nContent-Type: text/rfc822-headers",
)

EXIM = f"""\
From: Mail Delivery System <Mailer-Daemon@mx.example.net>
Auto-Submitted: auto-replied
Content-Type: multipart/report; report-type=delivery-status; boundary=1700-eximdsn-1234
MIME-Version: 1.0
References: <{MAIL}@example.com>

--1700-eximdsn-1234
Content-type: text/plain; charset=us-ascii

A message that you sent has not yet been delivered.

--1700-eximdsn-1234
Content-type: message/delivery-status

Reporting-MTA: dns; mx.example.net

Action: delayed
Final-Recipient: rfc822;ada@example.org
Status: 4.0.0
--1700-eximdsn-1234--
"""

EXCHANGE = POSTFIX.replace("Status: 5.1.1\n", "Status: 5.1.10\n").replace(
    "Diagnostic-Code: smtp; 550 5.1.1 <ada@example.org>: Recipient address\n"
    "    rejected: User unknown",
    "Diagnostic-Code: smtp;550 5.1.10 RESOLVER.ADR.RecipientNotFound;\n Recipient not found",
)

GLOBAL = POSTFIX.replace("message/delivery-status", "message/global-delivery-status").replace(
    "rfc822; ada@example.org", "utf-8; adä@example.org"
)


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("text", [POSTFIX, HEADERS_ONLY], ids=["whole", "headers"])
def test_a_report_names_the_mail_the_recipient_and_the_reason(text: str, line_end: str) -> None:
    report = read_report(text.replace("\n", line_end).encode())

    assert report.message_ids == (MAIL,)
    (recipient,) = report.recipients
    assert recipient.recipients == ("Ada@Example.org", "ada@example.org")
    assert recipient.action is ReportAction.FAILED
    assert recipient.status == "5.1.1"
    assert recipient.diagnostic.startswith("550 5.1.1 <ada@example.org>: Recipient address")
    assert recipient.diagnostic.endswith("rejected: User unknown")
    assert recipient.diagnostic.isprintable()


def test_a_delay_is_told_from_a_failure() -> None:
    report = read_report(EXIM.encode())

    assert report.message_ids == (MAIL,)
    assert [(part.action, part.status) for part in report.recipients] == [("delayed", "4.0.0")]


def test_a_status_of_three_parts_is_read_whole() -> None:
    assert read_report(EXCHANGE.encode()).recipients[0].status == "5.1.10"


def test_an_address_in_utf_8_is_read() -> None:
    (recipient,) = read_report(GLOBAL.encode()).recipients

    assert recipient.action is ReportAction.FAILED
    assert recipient.recipients[0] == "Ada@Example.org"


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("Status: 5.1.1 (no such user)", "5.1.1"),
        ("Status: nonsense", "5.1.1"),  # of the diagnostic
        ("X-Status: 1", "5.1.1"),
        ("Status: 9.9.9", "5.1.1"),
        ("Status: 5.2.2.1", "5.1.1"),
    ],
)
def test_a_status_is_found_where_there_is_one(line: str, status: str) -> None:
    text = POSTFIX.replace("Status: 5.1.1", line)

    assert read_report(text.encode()).recipients[0].status == status


def test_a_failure_without_any_code_is_permanent() -> None:
    text = POSTFIX.replace("Status: 5.1.1\n", "").replace("smtp; 550 5.1.1", "smtp; sorry")

    assert read_report(text.encode()).recipients[0].status == "5.0.0"


def test_every_recipient_is_told_of_up_to_a_limit() -> None:
    group = "\nFinal-Recipient: rfc822; a{}@example.org\nAction: failed\nStatus: 5.1.1\n"
    many = "".join(group.format(number) for number in range(200))
    text = POSTFIX.replace(
        "\n--9B1A.1775/mx.example.net\nContent-Description: Undel",
        many + ("\n--9B1A.1775/mx.example.net\nContent-Description: Undel"),
    )

    report = read_report(text.encode())

    assert len(report.recipients) == MAX_RECIPIENTS
    assert report.recipients[1].recipients == ("a0@example.org",)


def test_a_mail_of_somebody_else_has_no_id_of_ours() -> None:
    text = POSTFIX.replace(f"<{MAIL}@example.com>", "<CAF+abc123@mail.example.com>")

    assert read_report(text.encode()).message_ids == ()


def test_an_id_below_the_mail_that_came_back_does_not_count() -> None:
    """A person may forward a mail of ours, and the forwarded one come back."""
    text = POSTFIX.replace(
        f"Message-ID: <{MAIL}@example.com>\n", "Message-ID: <other@example.com>\n"
    ).replace("\nWelcome\n", f"\nMessage-ID: <{MAIL}@example.com>\n")

    assert read_report(text.encode()).message_ids == ()


def nested(kind: str, depth: int) -> str:
    return "".join(
        f"Content-Type: {kind}; boundary=b{level}\n\n--b{level}\n" for level in range(depth)
    )


REPORT = "Content-Type: multipart/report; boundary=x\n\n--x\n\nhi\n--x\n"

NO_REPORTS = {
    "nothing": b"",
    "a mail": b"From: a@example.org\nSubject: hi\n\nhello\n",
    "JSON": b'{"to": "ada@example.org"}',
    "XML": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
    "binary": bytes(range(256)) * 100,
    "no report in it": POSTFIX.replace("message/delivery-status", "text/plain").encode(),
    "a report of another kind": POSTFIX.replace(
        "message/delivery-status", "message/disposition-notification"
    ).encode(),
    "no action": POSTFIX.replace("Action: failed\n", "").encode(),
    "an unknown action": POSTFIX.replace("Action: failed\n", "Action: eaten\n").encode(),
    "a report in the text of a mail": (b"From: a@example.org\n\n" + POSTFIX.encode()),
    "a report too deep": (
        "".join(
            f"Content-Type: multipart/mixed; boundary=y{level}\n\n--y{level}\n"
            for level in range(11)
        )
        + POSTFIX
    ).encode(),
    "no boundary": POSTFIX.replace("boundary=", "bound=").encode(),
    "one byte too many": (POSTFIX + "x" * 300_000).encode(),
    "an endless folded line": ("Content-Type: multipart/report" + ';\n a="b"' * 5_000).encode(),
    "parts in parts": (REPORT + nested("multipart/mixed", 2_000)).encode(),
    "mails in mails": (REPORT + "Content-Type: message/rfc822\n\n" * 2_000).encode(),
    "digests in digests": (REPORT + nested("multipart/digest", 2_000)).encode(),
    "types with tabs": (REPORT + nested("multipart/mixed", 2_000).replace(": ", "\t:\t")).encode(),
    "types in other cases": (REPORT + nested("multipart/mixed", 2_000).upper()).encode(),
    "old Macintosh lines": (REPORT + nested("multipart/mixed", 2_000)).replace("\n", "\r").encode(),
}


@pytest.mark.parametrize("kind", NO_REPORTS)
def test_what_is_no_report_is_refused_in_words(kind: str) -> None:
    with pytest.raises(NotABounceError, match=r"Nothing was changed\."):
        read_report(NO_REPORTS[kind])


SAMPLES = Path(__file__).parents[2] / "reports_of_mail_servers"

FAILED, OURS = ReportAction.FAILED, (MAIL,)


@pytest.mark.parametrize(
    ("name", "message_ids", "status", "refusal"),
    [
        ("postfix_blocked", OURS, "5.7.1", Refusal.POLICY),
        ("exim_unfolded", OURS, "5.0.0", Refusal.NO_SUCH_ADDRESS),
        ("exchange_expired_mixed", OURS, "5.4.316", Refusal.TEMPORARY),
        ("gmail_disabled", OURS, "5.2.1", Refusal.NO_SUCH_ADDRESS),
        ("sendmail_replaced_id", (), "5.1.1", Refusal.MAILBOX_FULL),
        ("qmail_style_dsn", OURS, "5.0.0", Refusal.NO_SUCH_ADDRESS),
        ("encoded_base64", OURS, "5.1.1", Refusal.NO_SUCH_ADDRESS),
        ("encoded_quoted_printable", OURS, "5.1.1", Refusal.NO_SUCH_ADDRESS),
        ("forwarded", OURS, "5.7.1", Refusal.POLICY),
        ("forwarded_base64", OURS, "5.7.1", Refusal.POLICY),
    ],
)
def test_what_mail_servers_write_is_read(
    name: str, message_ids: tuple[UUID, ...], status: str, refusal: Refusal
) -> None:
    report = read_report((SAMPLES / f"{name}.eml").read_bytes())

    assert report.message_ids == message_ids
    (recipient,) = report.recipients
    assert recipient.recipients == ("ada@example.org",)
    assert (recipient.action, recipient.status) == (FAILED, status)
    assert refusal_in_report(recipient.status, recipient.diagnostic) is refusal


@pytest.mark.parametrize("sample", sorted(SAMPLES.iterdir()), ids=lambda path: path.stem)
def test_a_report_is_read_whatever_carries_it(sample: Path) -> None:
    """As it is, in a mail, in a mail in a mail, encoded, and with the line ends of others."""
    raw = sample.read_bytes()
    expected = read_report(raw)
    for outer in ("message/rfc822", "message/global"):
        carried = (
            f"Content-Type: multipart/mixed; boundary=o\n\n--o\n\n\n--o\nContent-Type: {outer}\n\n"
        )
        for _ in range(3):
            raw = (
                carried.replace("=o", f"=o{len(raw)}").replace("--o", f"--o{len(raw)}").encode()
                + raw
            )
            assert read_report(raw).recipients == expected.recipients
            assert read_report(raw.replace(b"\n", b"\r\n")).recipients == expected.recipients


@pytest.mark.parametrize(
    ("fields", "actions"),
    [
        ("Action:failed", ["failed"]),
        ("ACTION : Failed (no mailbox)", ["failed"]),
        ("Action: expired\nStatus:", ["failed"]),
        ("Action: delayed", ["delayed"]),
        (
            "Final-Recipient: rfc822; a@b.example\nAction: failed\n\nAction: delayed",
            ["failed", "delayed"],
        ),
        (
            (
                "Final-Recipient: a@b.example\nAction: failed\n"
                "Final-Recipient: c@b.example\nAction: failed"
            ),
            ["failed", "failed"],
        ),
        ("Diagnostic-Code: smtp; 550 no\nAction taken: none\nAction: failed", ["failed"]),
    ],
)
def test_fields_are_read_as_they_come(fields: str, actions: list[str]) -> None:
    text = f"Content-Type: message/delivery-status\n\nReporting-MTA: dns; a\n\n{fields}\n"

    assert [part.action for part in read_report(text.encode()).recipients] == actions


HOSTILE = {
    "boundaries": "Content-Type: multipart/mixed; boundary=b\n\n" + "--b\n\n" * 40_000,
    "other boundaries": "Content-Type: multipart/mixed; boundary=b\n\n--b\n" + "--c\n" * 60_000,
    "fields": "Content-Type: message/delivery-status\n\n" + "Action: failed\n" * 17_000,
    "unfolded": "Content-Type: message/delivery-status\n\nAction: failed\n" + "x\n" * 120_000,
    "one line": "Content-Type: message/delivery-status\n\nAction: " + "failed " * 36_000,
    "folded": "Subject: x\n" + " y\n" * 80_000,
    "a type": "Content-Type: multipart/mixed;" + ' boundary="\\' * 20_000,
    "ids": "References: " + "<0192f7a4-5b7c-5c3e-9f10-" * 10_000,
    "mails": "Content-Type: message/rfc822\n\n" * 8_000,
    "spaces among ids": f"Content-Type: message/rfc822\nReferences: x{' ' * 1_950}y\n\n" * 98
    + "Content-Type: message/delivery-status\n\nAction: failed\n",
    "spaces": "Content-Type: message/delivery-status\n\nAction" + " " * 250_000 + "failed",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_made_to_take_long_does_not(kind: str) -> None:
    started = time.process_time()
    try:
        report = read_report(HOSTILE[kind].encode())
    except NotABounceError:
        pass
    else:
        assert len(report.recipients) <= MAX_RECIPIENTS

    assert time.process_time() - started < 3


@pytest.mark.parametrize("kind", ["multipart/mixed", "multipart/digest", "message/rfc822"])
def test_as_many_levels_as_are_allowed_can_be_read(kind: str) -> None:
    """Three types are the report's own."""
    text = POSTFIX.replace("\nI'm sorry", f"\n{nested(kind, 10)}\nI'm sorry")

    with_levels_inside_the_text = read_report(text.encode())

    assert with_levels_inside_the_text.message_ids == (MAIL,)


@pytest.mark.slow
@given(st.binary(max_size=2_000))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_report_or_refused(raw: bytes) -> None:
    with pytest.raises(NotABounceError):
        read_report(raw)


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(st.integers(0, len(POSTFIX)), st.integers(0, 40), st.binary(max_size=20)),
        max_size=8,
    )
)
@settings(max_examples=1_000, deadline=None)
def test_a_damaged_report_is_read_or_refused(cuts: list[tuple[int, int, bytes]]) -> None:
    raw = bytearray(POSTFIX.encode())
    for place, length, instead in cuts:
        raw[place : place + length] = instead
    try:
        report = read_report(bytes(raw))
    except NotABounceError:
        return
    for part in report.recipients:  # database_service takes whatever comes of it
        BounceReport(
            bounce_id=MAIL, action=part.action, status=part.status, diagnostic=part.diagnostic
        )
