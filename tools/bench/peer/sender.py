"""Sends mails: ``faststream run tools.bench.peer.sender:app``."""

import os
from email.message import EmailMessage

import aiosmtplib
from faststream import FastStream
from faststream.rabbit import Channel, RabbitBroker

from tools.bench.peer.messages import Registration, emails

broker = RabbitBroker(
    os.environ["AMQP_URL"],
    default_channel=Channel(prefetch_count=int(os.environ["PREFETCH"])),
    logger=None,
)
app = FastStream(broker, logger=None)


@broker.subscriber(emails)
async def send(registration: Registration) -> None:
    """Build the mail and hand it to the mail server."""
    message = EmailMessage()
    message["From"] = "noreply@example.org"
    message["To"] = registration.email
    message["Subject"] = "Welcome"
    message.set_content(f"Hello {registration.name},\n\nyour registration is complete.\n")
    await aiosmtplib.send(
        message, hostname=os.environ["SMTP_HOST"], port=int(os.environ["SMTP_PORT"])
    )
