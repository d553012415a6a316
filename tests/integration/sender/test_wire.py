"""What really arrives at a mail server that is nobody's fake: aiosmtpd."""

import asyncio
import email
import email.policy
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any
from uuid import uuid4

import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session
from pydantic import ValidationError

from common.contracts.notifications import DeliveryStatus, EmailRequested, Template
from sender.mailer import Outcome, SmtpMailer
from sender.mime import MailWriter
from sender.render import Renderer
from sender.smtp.handshake import Security, Server
from sender.template_data import TEMPLATES

POISON = [
    "\r\nBcc: eve@example.net",
    "\nBcc: eve@example.net",
    "\rBcc: eve@example.net",
    "\n.\r\n",
    "\r\n.\r\nMAIL FROM:<eve@example.net>\r\nRCPT TO:<eve@example.net>\r\nDATA\r\n",
    "%0d%0aBcc: eve@example.net",
    "\0Bcc: eve@example.net",
    "\u2028Bcc: eve@example.net",
    ">\r\nRCPT TO:<eve@example.net",
    ", eve@example.net",
]

WRITER = MailWriter(
    Renderer(brand="UserStream"), from_email="hello@example.com", from_name="UserStream"
)


@dataclass  # without slots: aiosmtpd looks at every attribute, and Python 3.11.2 trips over them
class Mailbox:
    """An aiosmtpd handler that keeps what it gets."""

    port: int = 0
    envelopes: list[Envelope] = field(default_factory=list)

    async def handle_DATA(  # noqa: N802 - aiosmtpd finds it by name
        self, _server: SMTP, _session: Session, envelope: Envelope
    ) -> str:
        self.envelopes.append(envelope)
        return "250 ok"

    def only(self) -> tuple[list[str], EmailMessage]:
        (envelope,) = self.envelopes
        assert isinstance(envelope.content, bytes)
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(message, EmailMessage)
        return envelope.rcpt_tos, message


@pytest.fixture
async def mailbox() -> AsyncIterator[Mailbox]:
    box = Mailbox()
    server = await asyncio.get_running_loop().create_server(
        lambda: SMTP(box, enable_SMTPUTF8=True), "127.0.0.1", 0
    )
    box.port = server.sockets[0].getsockname()[1]
    yield box
    server.close()
    await server.wait_closed()


async def send(mailbox: Mailbox, request: EmailRequested) -> Outcome:
    server = Server(
        host="127.0.0.1",
        port=mailbox.port,
        security=Security.NONE,
        tls=ssl.create_default_context(),
    )
    async with SmtpMailer.open(server, connections=1) as mailer:
        mail = WRITER.write(request, message_id=uuid4())
        return await mailer.send(mail, before_text=lambda: None)


def unchecked(**changes: Any) -> EmailRequested:
    """A request that no contract has looked at."""
    values = {
        "to": "ada@example.org",
        "template": Template.REPORT_READY,
        "subject": None,
        "data": dict(TEMPLATES[Template.REPORT_READY].sample),
    }
    return EmailRequested.model_construct(**(values | changes))


@pytest.mark.parametrize("template", Template)
async def test_a_mail_arrives_whole(mailbox: Mailbox, template: Template) -> None:
    request = unchecked(template=template, data=dict(TEMPLATES[template].sample))
    outcome = await send(mailbox, request)
    recipients, message = mailbox.only()

    assert outcome.status is DeliveryStatus.SENT
    assert recipients == ["ada@example.org"]
    assert not message.defects
    assert [part.get_content_type() for part in message.walk()][1:] == ["text/plain", "text/html"]
    html = message.get_body(("html",))
    assert html is not None
    assert html.get_content().rstrip().endswith("</html>")


async def test_an_address_of_any_script_arrives(mailbox: Mailbox) -> None:
    await send(mailbox, unchecked(to="jörg@example.org"))
    recipients, message = mailbox.only()

    assert recipients == ["jörg@example.org"]
    assert message["To"] == "jörg@example.org"


@pytest.mark.parametrize("poison", POISON)
async def test_a_poisoned_subject_reaches_nobody_else(mailbox: Mailbox, poison: str) -> None:
    await send(mailbox, unchecked(subject=f"Hello{poison}"))
    recipients, message = mailbox.only()

    assert recipients == ["ada@example.org"]
    assert message.get_all("To") == ["ada@example.org"]
    assert message.get_all("Bcc") is None
    assert len(message.get_all("Subject", [])) == 1


@pytest.mark.parametrize("poison", POISON)
async def test_poisoned_data_of_mails_without_data_leaves_no_trace(
    mailbox: Mailbox, poison: str
) -> None:
    data = {"name": poison, "surname": "{{ 7*7 }}", "email": "eve@example.net"}
    await send(mailbox, unchecked(template=Template.WELCOME, data=data))
    recipients, message = mailbox.only()

    assert recipients == ["ada@example.org"]
    assert message.get_all("Bcc") is None
    assert "eve@" not in message.as_string()


@pytest.mark.parametrize("poison", POISON)
async def test_a_poisoned_recipient_is_never_said(mailbox: Mailbox, poison: str) -> None:
    """The contract refuses it or folds it away; and if not, the client would not say it."""
    try:
        request = EmailRequested(to=f"ada@example.org{poison}", template=Template.WELCOME)
    except ValidationError:
        pass
    else:
        assert request.to == "ada@example.org"

    with pytest.raises(ValueError, match=r"address|@-sign"):
        await send(mailbox, unchecked(to=f"ada@example.org{poison}"))
    assert mailbox.envelopes == []
