import email
import email.header
import email.policy
import re
from email.message import EmailMessage
from functools import cache
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from common.contracts.notifications import EmailRequested, Template
from sender.mime import BOUNDARY, MailWriter, ascii_domain, encode_body, from_header, header_text
from sender.render import Content, Renderer
from sender.smtp.connection import Mail
from sender.template_data import TEMPLATES

MESSAGE_ID = UUID("0192f7a4-5b7c-7c3e-9f10-2b6d1c3a4e5f")

NASTY = [
    "\r\nBcc: eve@example.net",
    "x\r\nBcc: eve@example.net\r\n\r\nHello",
    "x\nBcc: eve@example.net",
    "x\rBcc: eve@example.net",
    "\n.\r\n",
    "\r\n.\r\nMAIL FROM:<eve@example.net>",
    "a\0b",
    "a\u2028Bcc: eve@example.net",
    "a\u2029b\u0085c\x0b\x0c\x1c",
    "=?utf-8?q?=0D=0ABcc:_eve@example.net?=",
    "%0d%0aBcc: eve@example.net",
    '"quoted" \\ <eve@example.net>, second@example.net',
    "\ud800",
    "Grüße, 東京 🎉 " * 30,
    "x" * 2000,
    " ",
    "",
]


@cache
def renderer() -> Renderer:
    """One for all: to compile the templates takes longer than any test here."""
    return Renderer(brand="UserStream")


def a_writer(from_name: str = "UserStream", from_email: str = "hello@example.com") -> MailWriter:
    return MailWriter(renderer(), from_email=from_email, from_name=from_name)


def a_request(**changes: Any) -> EmailRequested:
    values: dict[str, Any] = {"to": "ada@example.org", "template": Template.WELCOME, **changes}
    return EmailRequested.model_construct(**({"subject": None, "data": {}} | values))


def write(**changes: Any) -> Mail:
    return a_writer().write(a_request(**changes), message_id=MESSAGE_ID)


def parsed(mail: Mail) -> EmailMessage:
    message = email.message_from_bytes(mail.content, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert not message.defects
    return message


def test_the_date_of_a_mail_is_that_of_its_making(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [1_700_000_000.0, 1_700_000_000.9, 1_700_000_001.0, 1_700_000_000.0]
    monkeypatch.setattr("sender.mime.time", SimpleNamespace(time=iter(seconds).__next__))

    dates = [parsed(write())["Date"].datetime.timestamp() for _ in seconds]

    assert dates == [1_700_000_000, 1_700_000_000, 1_700_000_001, 1_700_000_000]


@pytest.mark.parametrize("template", Template)
def test_a_mail_is_what_mail_programs_expect(template: Template) -> None:
    mail = write(template=template, data=dict(TEMPLATES[template].sample))
    message = parsed(mail)

    assert str(message["From"]) == "UserStream <hello@example.com>"
    assert str(message["To"]) == "ada@example.org"
    assert message["Date"].datetime.tzinfo is not None
    assert message["Message-ID"] == f"<{MESSAGE_ID}@example.com>"
    assert message["Auto-Submitted"] == "auto-generated"
    text, html = message.iter_parts()
    assert (text.get_content_type(), html.get_content_type()) == ("text/plain", "text/html")
    assert isinstance(text, EmailMessage)
    assert "Why you got this mail" in text.get_content()
    assert isinstance(html, EmailMessage)
    assert "<h1" in html.get_content()


@pytest.mark.parametrize("template", Template)
def test_lines_are_short_ascii_and_end_with_crlf(template: Template) -> None:
    data = dict(TEMPLATES[template].sample) | {"downloadUrl": "https://example.org/" + "x" * 1900}
    content = write(template=template, data=data, subject="ü" * 200).content

    assert content.isascii()
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)", content)
    assert max(map(len, content.split(b"\r\n"))) <= 78
    assert content.endswith(b"\r\n")


def test_the_same_message_has_the_same_message_id() -> None:
    assert parsed(write())["Message-ID"] == parsed(write())["Message-ID"]


def test_a_subject_of_ones_own_replaces_the_templates() -> None:
    assert parsed(write(subject="Grüße aus 東京"))["Subject"] == "Grüße aus 東京"


@pytest.mark.parametrize("text", NASTY)
def test_no_subject_breaks_out_of_its_header(text: str) -> None:
    plain = write(subject="plain")
    nasty = write(subject=text or None)

    assert parsed(nasty).keys() == parsed(plain).keys()
    assert parsed(nasty)["Bcc"] is None


@pytest.mark.parametrize("text", NASTY)
def test_no_from_name_breaks_out_of_its_header(text: str) -> None:
    mail = a_writer(from_name=text).write(a_request(), message_id=MESSAGE_ID)
    message = email.message_from_bytes(mail.content)  # as it stands, nothing decoded

    assert message.keys() == parsed(write()).keys()
    assert message["From"].endswith(" <hello@example.com>")
    assert message["From"].isascii()


@pytest.mark.parametrize(
    "text",
    ["Grüße", "=?utf-8?q?x?=", "a=?b", "x" * 500, "Nguyễn Văn A", "🎉" * 50, "a\u2028b", "plain"],
)
def test_a_header_says_what_it_was_given(text: str) -> None:
    value = email.message_from_string(f"Subject: {header_text(text)}\r\n\r\n")["Subject"]
    decoded = str(email.header.make_header(email.header.decode_header(value)))

    assert decoded == text


def test_a_quoted_name_keeps_its_quotes() -> None:
    header = from_header('Ada "the first" \\ Lovelace', "ada@example.org")

    assert header == '"Ada \\"the first\\" \\\\ Lovelace" <ada@example.org>'


@pytest.mark.parametrize("text", [*NASTY[:-4], "=\r\n--=_userstream\r\n", f"--{BOUNDARY}--"])
def test_no_text_breaks_out_of_its_part(text: str) -> None:
    body = encode_body(Content(subject="", html=f"<p>{text}</p>", text=text)).decode("ascii")
    message = email.message_from_string(body, policy=email.policy.default)
    parts = list(message.walk())

    assert [part.get_content_type() for part in parts] == [
        "multipart/alternative",
        "text/plain",
        "text/html",
    ]
    assert message["Bcc"] is None


def test_a_domain_travels_as_dns_knows_it_and_the_rest_as_it_is() -> None:
    assert ascii_domain("info@bücher.example.org") == "info@xn--bcher-kva.example.org"
    assert ascii_domain("jörg@bücher.example.org") == "jörg@xn--bcher-kva.example.org"
    assert write(to="jörg@example.org").needs_utf8
    assert not write(to="info@bücher.example.org").needs_utf8


def test_the_first_mail_repeats_nothing_that_was_typed() -> None:
    typed = {"name": "Buy at https://spam.example.net", "surname": "{{ 7*7 }}"}

    assert write(data=typed).content.count(b"spam") == 0
    body = write(data=typed).content.partition(b"Auto-Submitted")[2]
    assert body == write().content.partition(b"Auto-Submitted")[2]
