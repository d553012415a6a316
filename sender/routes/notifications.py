"""Requesting mails, following them, and looking at templates."""

from enum import StrEnum
from uuid import UUID, uuid4, uuid5

import structlog
from aiohttp import web

from common.amqp.publisher import Publisher
from common.context import current
from common.contracts.base import Body
from common.contracts.notifications import (
    Data,
    EmailRequested,
    Notification,
    NotificationAccepted,
    NotificationRequest,
    Template,
)
from common.database_client.client import DatabaseClient
from common.errors import (
    BrokerUnavailableError,
    DatabaseServiceUnavailableError,
    NotFoundError,
)
from common.http.api import Api, answer
from common.http.idempotency import IDEMPOTENCY_KEY, idempotency_key
from sender.render import Renderer
from sender.template_data import TEMPLATES, TemplateDataMissingError, read_data

log = structlog.get_logger()

IDS = UUID("7f0a1c6e-9f0b-5d0e-8a3c-2f4f6f2f1b77")
"""Namespace of the ids that follow from an Idempotency-Key."""

PREVIEW_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'; form-action 'none'; "
    "base-uri 'none'; sandbox"
)
"""A preview may show a mail and run nothing."""

PUBLISHER = web.AppKey("publisher", Publisher)
DATABASE = web.AppKey("database", DatabaseClient)
RENDERER = web.AppKey("renderer", Renderer)

api = Api()


class NotificationPath(Body):
    """Names a notification in a URL."""

    notification_id: UUID


class TemplatePath(Body):
    """Names a template in a URL."""

    name: str


class Form(StrEnum):
    """The two forms of a mail."""

    HTML = "html"
    TEXT = "text"


class PreviewQuery(Body):
    """Which form to show."""

    format: Form = Form.HTML


@api.post(
    "/api/notifications/send",
    body=NotificationRequest,
    headers={
        IDEMPOTENCY_KEY: "Chosen by you; sending again with the same key and body is the same mail."
    },
    returns={202: NotificationAccepted},
    raises=(TemplateDataMissingError, BrokerUnavailableError),
)
async def send(request: web.Request, *, body: NotificationRequest) -> web.Response:
    """Request a mail; 202 means that the broker has confirmed it, not that it was sent."""
    data, unused = _used_data(body)
    notification_id = _identify(body, idempotency_key(request))
    await request.app[PUBLISHER].publish(
        # Constructed: just validated by the same rules.
        EmailRequested.model_construct(**{**dict(body), "data": data}),
        message_id=notification_id,
        correlation_id=current().correlation_id,
    )
    log.info("email.requested", template=body.template, notification_id=str(notification_id))
    status_url = f"/api/notifications/{notification_id}"
    return answer(
        NotificationAccepted(
            notification_id=notification_id, status_url=status_url, unused_data=unused
        ),
        status=202,
        headers={"Location": status_url},
    )


@api.get(
    "/api/notifications/{notification_id}",
    path=NotificationPath,
    returns={200: Notification},
    raises=(NotFoundError, DatabaseServiceUnavailableError),
)
async def get_notification(request: web.Request, *, path: NotificationPath) -> web.Response:
    """The state of a mail, attempt by attempt, with the mail server's replies."""
    try:
        return answer(await request.app[DATABASE].select_notification(path.notification_id))
    except NotFoundError as error:
        raise NotFoundError(
            "No sender has claimed a mail with this id. If it was accepted (202), it is stored at "
            "the broker and waits for its turn: retry. Otherwise the id is unknown."
        ) from error


@api.get(
    "/api/templates/{name}/preview",
    path=TemplatePath,
    query=PreviewQuery,
    returns={200: "text/html"},
    raises=(NotFoundError,),
)
async def preview(request: web.Request, *, path: TemplatePath, query: PreviewQuery) -> web.Response:
    """What a mail looks like, with made-up data; ``format=text`` shows the plain form."""
    try:
        template = Template(path.name)
    except ValueError as error:
        raise NotFoundError(f"Unknown template. Supported: {', '.join(Template)}.") from error
    content = request.app[RENDERER].render(
        template, read_data(template, TEMPLATES[template].sample)
    )
    if query.format is Form.TEXT:
        return web.Response(text=content.text, content_type="text/plain")
    return web.Response(
        text=content.html,
        content_type="text/html",
        headers={"Content-Security-Policy": PREVIEW_POLICY},
    )


def _used_data(body: NotificationRequest) -> tuple[Data, list[str]]:
    """Return what the template uses of the data, and the names of the rest.

    The rest is dropped: names of people, for one, are in no mail and are not kept with it.

    Raises:
        TemplateDataMissingError: A field is missing or invalid.
    """
    read_data(body.template, body.data)
    known = {field.alias for field in TEMPLATES[body.template].data.model_fields.values()}
    used = {name: value for name, value in body.data.items() if name in known}
    return used, [name for name in body.data if name not in known]


def _identify(body: NotificationRequest, key: str | None) -> UUID:
    """Return the mail's id: the same for the same key and body.

    With the key alone, a second, different mail would count as the first and never be sent.
    """
    return uuid5(IDS, f"{key}\n{body.model_dump_json()}") if key is not None else uuid4()
