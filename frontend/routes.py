"""The frontend's routes: the form, the status page, the API."""

import secrets
from datetime import UTC, datetime
from uuid import UUID

import structlog
from aiohttp import web
from pydantic import ConfigDict

from common.amqp.publisher import Publisher
from common.context import current
from common.contracts.base import Body
from common.contracts.registrations import (
    Journey,
    RegistrationAccepted,
    RegistrationRequest,
    RegistrationSubmitted,
)
from common.database_client.client import DatabaseClient
from common.errors import (
    BrokerUnavailableError,
    DatabaseServiceUnavailableError,
    IdempotencyKeyReusedError,
    InvalidError,
    NotConfirmedError,
    UnavailableError,
    UserStreamError,
)
from common.failpoints import failpoint
from common.http.api import Api, answer
from common.http.app import LOGGED
from common.http.idempotency import IDEMPOTENCY_KEY, idempotency_key, is_valid_key
from common.http.validation import read_form_fields, validate
from frontend.events import TooManyWatchersError, Watchers
from frontend.identity import Identities
from frontend.journeys import JourneyReader
from frontend.pages import FIELDS, UNCONFIRMED_NOTICE, render_form, render_status
from frontend.unpromised import Unpromised

log = structlog.get_logger()

PUBLISHER = web.AppKey("publisher", Publisher)
DATABASE = web.AppKey("database", DatabaseClient)
IDENTITIES = web.AppKey("identities", Identities)
JOURNEYS = web.AppKey("journeys", JourneyReader)
WATCHERS = web.AppKey("watchers", Watchers)
UNPROMISED = web.AppKey("unpromised", Unpromised)
BASE_URL = web.AppKey("base_url", str)

api = Api()


class RegistrationPath(Body):
    """Names a registration in a URL."""

    registration_id: UUID


@api.get("/", returns={200: "text/html"})
async def form(_request: web.Request) -> web.Response:
    """The form."""
    return _page(render_form({}, (), nonce=secrets.token_urlsafe(16)))


class RegistrationForm(RegistrationRequest):
    """What the form sends; a browser, or an extension of one, may add fields."""

    model_config = ConfigDict(
        extra="ignore", json_schema_extra={"additionalProperties": {"type": "string"}}
    )

    nonce: str = ""
    """Chosen by the page; the same again with the same values is the same registration."""


@api.post(
    "/",
    html_form=RegistrationForm,
    returns={303: None, 422: "text/html", 503: "text/html"},
    summary="Register by the form; its nonce makes sending twice harmless",
)
async def submit_form(request: web.Request) -> web.Response:
    """Register by the form, also without JavaScript."""
    fields = await read_form_fields(request)
    values = {field.name: fields.get(field.name, "") for field in FIELDS}
    nonce = fields.get("nonce", "")
    if not is_valid_key(nonce):
        nonce = secrets.token_urlsafe(16)
    try:
        body = validate(RegistrationRequest, values)
        registration_id = await _register(request, body, nonce)
    except InvalidError as error:
        return _page(render_form(values, error.errors, nonce), status=422)
    except UnavailableError as error:
        headers = {"Retry-After": str(error.retry_after_seconds)}
        page = render_form(values, (), nonce, UNCONFIRMED_NOTICE)
        return _page(page, status=503, headers=headers)
    # Relative: people stay on the host under which they reached the form.
    return web.Response(status=303, headers={"Location": f"/registrations/{registration_id}"})


_KEY_HEADER = {
    IDEMPOTENCY_KEY: "Chosen by you; sending again with the same key and body is the same "
    "registration."
}


NOT_CONFIRMED = (
    "The registration was not confirmed. Retry it, best with the same Idempotency-Key, which makes"
    " the retry safe."
)
"""The advice of a 503 to programs."""


@api.post(
    "/api/registrations",
    body=RegistrationRequest,
    headers=_KEY_HEADER,
    returns={202: RegistrationAccepted},
    raises=(IdempotencyKeyReusedError, BrokerUnavailableError),
)
async def submit(request: web.Request, *, body: RegistrationRequest) -> web.Response:
    """Register a person; 202 means that the broker has confirmed it."""
    key = idempotency_key(request)
    if key is not None:
        request.app[IDENTITIES].check_reuse(body, key)
    try:
        registration_id = await _register(request, body, key)
    except UnavailableError as error:
        raise type(error)(f"{error.detail.rstrip('.')}. {NOT_CONFIRMED}") from error
    if key is not None:
        request.app[IDENTITIES].remember(body, key)
    status_url = f"{request.app[BASE_URL]}/registrations/{registration_id}"
    return answer(
        RegistrationAccepted(registration_id=registration_id, status_url=status_url),
        status=202,
        headers={"Location": status_url},
    )


@api.post(
    "/api/submit",
    body=RegistrationRequest,
    headers=_KEY_HEADER,
    returns={202: RegistrationAccepted},
    raises=(IdempotencyKeyReusedError, BrokerUnavailableError),
)
async def submit_alias(request: web.Request, *, body: RegistrationRequest) -> web.Response:
    """Register a person: an alias of POST /api/registrations."""
    return await submit(request, body=body)


@api.get(
    "/api/registrations/{registration_id}",
    path=RegistrationPath,
    returns={200: Journey},
    raises=(DatabaseServiceUnavailableError,),
)
async def get_journey(request: web.Request, *, path: RegistrationPath) -> web.Response:
    """Show how far a registration has come; unknown, if not stored and the id is not ours."""
    return answer(await request.app[JOURNEYS].select_journey(path.registration_id))


@api.get(
    "/registrations/{registration_id}",
    path=RegistrationPath,
    returns={200: "text/html", 503: "text/html"},
)
async def status_page(request: web.Request, *, path: RegistrationPath) -> web.Response:
    """The journey of a registration as a page."""
    journeys = request.app[JOURNEYS]
    try:
        journey = await journeys.select_journey(path.registration_id)
    except UserStreamError as error:
        log.info("status.unreadable", code=error.code)
        accepted = journeys.is_ours(path.registration_id)
        return _page(render_status(None, path.registration_id, accepted=accepted), status=503)
    return _page(render_status(journey, path.registration_id))


@api.get(
    "/registrations/{registration_id}/events",
    path=RegistrationPath,
    returns={200: "text/event-stream"},
    raises=(TooManyWatchersError,),
)
async def watch(request: web.Request, *, path: RegistrationPath) -> web.StreamResponse:
    """The journey live, as server-sent events; ends when the journey has."""
    return await request.app[WATCHERS].watch(request, path.registration_id)


async def _register(request: web.Request, body: RegistrationRequest, key: str | None) -> UUID:
    """Publish the registration; when this returns, the broker has it on disk.

    Once per request: no registration is confirmed under the span of a request answered with 503.
    """
    registration_id = request.app[IDENTITIES].identify(body, key)
    failpoint("w1")
    try:
        await request.app[PUBLISHER].publish(
            # Constructed, not validated: the same rule has just been asked.
            RegistrationSubmitted.model_construct(
                name=body.name, surname=body.surname, email=body.email, timestamp=datetime.now(UTC)
            ),
            message_id=registration_id,
            correlation_id=current().correlation_id,
        )
    except NotConfirmedError:
        request.app[UNPROMISED].note(registration_id, current().traceparent)
        raise
    failpoint("w2")
    log.info("registration.accepted", registration_id=str(registration_id))
    request[LOGGED] = True
    return registration_id


def _page(text: str, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=status, text=text, content_type="text/html", headers=headers)
