"""Builds the sender. The only place where its parts meet."""

import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from aiohttp import web

from common.contracts.notifications import EmailRequested
from common.database_client.client import DatabaseClient
from common.errors import SettingError
from common.http.access import Access
from common.http.api import Api
from common.http.app import base_app
from common.messaging.wiring import handling, open_publisher
from common.readiness import Readiness
from sender.handlers import send_email
from sender.mailer import SmtpMailer
from sender.mime import MailWriter
from sender.render import Renderer
from sender.routes import bounces, notifications, resends
from sender.routes.notifications import DATABASE, PUBLISHER, RENDERER
from sender.settings import RETRY_FACTOR, Settings
from sender.smtp.handshake import Server

SERVICE = "sender"


def build_app(settings: Settings) -> web.Application:
    """The sender, not yet started: nothing connects before the loop runs."""
    readiness = Readiness()
    server = mail_server(settings)
    renderer = Renderer(brand=settings.from_name)
    writer = MailWriter(renderer, from_email=settings.from_email, from_name=settings.from_name)

    async def lifespan(app: web.Application) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            database = await stack.enter_async_context(
                DatabaseClient.open(settings.database_service_url)
            )
            publisher = await stack.enter_async_context(
                open_publisher(settings, service=SERVICE, readiness=readiness)
            )
            mailer = await stack.enter_async_context(
                SmtpMailer.open(server, connections=settings.smtp_connections)
            )
            await stack.enter_async_context(
                handling(
                    settings,
                    {
                        EmailRequested: partial(
                            send_email, writer=writer, mailer=mailer, deliveries=database
                        )
                    },
                    service=SERVICE,
                    publisher=publisher,
                    readiness=readiness,
                    upstreams=[database.check, mailer.ask],
                    retry_factor=RETRY_FACTOR,
                )
            )
            app[DATABASE] = database
            app[PUBLISHER] = publisher
            readiness.add("database_service", database.check)
            readiness.show("database_service", database.circuit)
            readiness.add("smtp", mailer.check)
            yield  # and close in reverse: stop consuming, let handlers finish, disconnect

    app = base_app(
        SERVICE,
        Api.joined(notifications.api, resends.api, bounces.api),
        description="Sends mails and records what became of each.",
        access=Access(allowed_hosts=settings.allowed_hosts),
        readiness=readiness,
    )
    app[RENDERER] = renderer
    app.cleanup_ctx.append(lifespan)
    return app


def mail_server(settings: Settings) -> Server:
    """Return the mail server of the settings.

    Raises:
        SettingError: The certificates cannot be read.
    """
    return Server(
        host=settings.smtp_host,
        port=settings.smtp_port,
        security=settings.smtp_secure,
        tls=_tls(settings.smtp_ca_file),
        user=settings.smtp_user,
        password=settings.smtp_password.get_secret_value(),
        hello_name=settings.smtp_hello_name,
    )


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    """Return a context that checks certificates and names; TLS 1.2 at least."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # unreadable, or no PEM
        raise SettingError(f"SMTP_CA_FILE cannot be used: {error}.") from error
