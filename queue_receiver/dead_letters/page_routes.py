"""Dead letters as pages, with forms that work without scripts."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlencode
from uuid import UUID

from aiohttp import web
from pydantic import Field, StringConstraints

from common.contracts import strict_json
from common.contracts.base import Body
from common.contracts.dead_letters import (
    DeadLetterGroup,
    DeadLetterPath,
    DeadLetterQuery,
    DiscardManyRequest,
    DiscardQuery,
    DiscardRequest,
    DryRunRequest,
    ErrorCode,
    OneDeadLetterQuery,
    RedrivePath,
    RedriveRequest,
    ResendRequest,
    RouteName,
    Selection,
)
from common.contracts.registrations import PERSON
from common.errors import (
    BrokerUnavailableError,
    ConflictError,
    DatabaseServiceUnavailableError,
    FieldError,
    InvalidError,
    MalformedError,
    NotFoundError,
)
from common.http.api import Api
from common.http.validation import validate
from queue_receiver.dead_letters.pages import (
    NOTICES,
    render_confirmation,
    render_discards,
    render_dry_run,
    render_message,
    render_messages,
    render_redrive,
)
from queue_receiver.dead_letters.routes import ADMIN, QUEUES_AND_RECORDS, REDRIVES

MAX_FORM_BYTES = 256 * 1024
"""A body of 64 KiB, each of its bytes percent-encoded as three."""

api = Api()


class PageQuery(Body):
    """Which messages the page shows, and what has just been done."""

    route: RouteName | None = None
    code: ErrorCode | None = None
    after: UUID | None = None
    done: Literal["", "discarded", "discarded_many", "resent", "sent"] = ""


class KindForm(Body):
    """Selects the messages of a kind, or all."""

    sample: ClassVar[Mapping[str, Any]] = {"route": "user.registration", "code": "upstream_error"}

    route: RouteName | None = None
    code: ErrorCode | None = None
    all: bool = False


class SelectionForm(KindForm):
    """Selects one message, those of a kind, or all."""

    id: UUID | None = None

    @property
    def selection(self) -> dict[str, Any]:
        """The same in the form of the API."""
        ids = [self.id] if self.id else None
        return {"ids": ids, "route": self.route, "code": self.code, "all": self.all}


class BodyForm(Body):
    """Another body for a message, as typed."""

    sample: ClassVar[Mapping[str, Any]] = {"body": json.dumps(PERSON)}

    body: Annotated[str, StringConstraints(max_length=65_536)]


class DiscardManyForm(KindForm, DiscardRequest):
    """Which kind of messages to discard, why, and how many were seen."""

    sample: ClassVar[Mapping[str, Any]] = {
        **KindForm.sample,
        "reason": "Published by mistake.",
        "expected": 3,
    }

    expected: Annotated[int, Field(ge=0)]


@api.get(
    "/dead-letters",
    query=PageQuery,
    returns={200: "text/html"},
    raises=(BrokerUnavailableError,),
)
async def dead_letters_page(request: web.Request, *, query: PageQuery) -> web.Response:
    """All dead letters as a page."""
    chosen = DeadLetterQuery(route=query.route, code=query.code, after=query.after)
    found = await request.app[ADMIN].list_messages(chosen)
    latest = request.app[REDRIVES].latest
    return _page(render_messages(found, chosen, latest=latest, done=query.done))


@api.get(
    "/dead-letters/discards",
    returns={200: "text/html"},
    raises=(DatabaseServiceUnavailableError,),
)
async def discards_page(request: web.Request) -> web.Response:
    """What was discarded, and why."""
    return _page(render_discards(await request.app[ADMIN].list_discards(DiscardQuery(limit=200))))


@api.get(
    "/dead-letters/redrive",
    query=KindForm,
    returns={200: "text/html"},
    raises=(BrokerUnavailableError,),
)
async def confirm_redrive_page(request: web.Request, *, query: KindForm) -> web.Response:
    """What would be sent back, before it is."""
    return _page(render_confirmation("redrive", query, await _groups(request, query)))


@api.get(
    "/dead-letters/discard",
    query=KindForm,
    returns={200: "text/html"},
    raises=(BrokerUnavailableError,),
)
async def confirm_discard_page(request: web.Request, *, query: KindForm) -> web.Response:
    """What would be discarded, before it is; asks for the reason."""
    return _page(render_confirmation("discard", query, await _groups(request, query)))


@api.post(
    "/dead-letters/discard",
    form=DiscardManyForm,
    returns={303: None},
    raises=QUEUES_AND_RECORDS,
)
async def discard_many_by_form(request: web.Request, *, form: DiscardManyForm) -> web.Response:
    """Remove messages of a kind for good, if there are no more than were seen."""
    await request.app[ADMIN].discard_many(validate(DiscardManyRequest, dict(form)))
    return _redirect("/dead-letters", done="discarded_many")


@api.get(
    "/dead-letters/redrives/{redrive_id}",
    path=RedrivePath,
    returns={200: "text/html"},
    raises=(NotFoundError,),
)
async def redrive_page(request: web.Request, *, path: RedrivePath) -> web.Response:
    """How far a redrive is."""
    return _page(render_redrive(request.app[REDRIVES].get(path.redrive_id)))


@api.get(
    "/dead-letters/{id}",
    path=DeadLetterPath,
    query=OneDeadLetterQuery,
    returns={200: "text/html"},
    raises=(NotFoundError, ConflictError, BrokerUnavailableError),
)
async def dead_letter_page(
    request: web.Request, *, path: DeadLetterPath, query: OneDeadLetterQuery
) -> web.Response:
    """One dead letter as a page."""
    message = await request.app[ADMIN].select_message(path.id, unmask=query.unmask)
    return _page(render_message(message))


@api.post(
    "/dead-letters/redrive",
    form=SelectionForm,
    returns={303: None},
    raises=(ConflictError, BrokerUnavailableError),
)
async def redrive_by_form(request: web.Request, *, form: SelectionForm) -> web.Response:
    """Begin to send messages back."""
    begun = request.app[REDRIVES].start(validate(RedriveRequest, form.selection))
    return _redirect(f"/dead-letters/redrives/{begun.redrive_id}")


@api.post(
    "/dead-letters/redrives/{redrive_id}/stop",
    path=RedrivePath,
    returns={303: None},
    raises=(NotFoundError, BrokerUnavailableError),
)
async def stop_redrive_by_form(request: web.Request, *, path: RedrivePath) -> web.Response:
    """Let a redrive end before its next message."""
    request.app[REDRIVES].stop(path.redrive_id)
    return _redirect(f"/dead-letters/redrives/{path.redrive_id}")


@api.post(
    "/dead-letters/dry-run",
    form=SelectionForm,
    returns={200: "text/html"},
    raises=QUEUES_AND_RECORDS,
)
async def dry_run_by_form(request: web.Request, *, form: SelectionForm) -> web.Response:
    """Show what would become of messages."""
    selection = validate(DryRunRequest, form.selection)
    return _page(render_dry_run(await request.app[ADMIN].dry_run(selection)))


@api.post(
    "/dead-letters/{id}/resend",
    path=DeadLetterPath,
    form=BodyForm,
    max_body_bytes=MAX_FORM_BYTES,
    returns={303: None, 422: "text/html"},
    raises=(NotFoundError, ConflictError, BrokerUnavailableError),
)
async def resend_by_form(
    request: web.Request, *, path: DeadLetterPath, form: BodyForm
) -> web.Response:
    """Send a message back with the body that was typed."""
    admin = request.app[ADMIN]
    try:
        edited = validate(ResendRequest, {"body": _parse(form.body)})
        await admin.resend(path.id, edited.body)
    except InvalidError as error:
        message = await admin.select_message(path.id, unmask=True)
        return _page(render_message(message, errors=error.errors, typed=form.body), status=422)
    return _redirect("/dead-letters", done="resent")


@api.post(
    "/dead-letters/{id}/discard",
    path=DeadLetterPath,
    form=DiscardRequest,
    returns={303: None},
    raises=(NotFoundError, *QUEUES_AND_RECORDS),
)
async def discard_by_form(
    request: web.Request, *, path: DeadLetterPath, form: DiscardRequest
) -> web.Response:
    """Remove a message for good; the reason is kept."""
    await request.app[ADMIN].discard(path.id, form)
    return _redirect("/dead-letters", done="discarded")


async def _groups(request: web.Request, wanted: KindForm) -> list[DeadLetterGroup]:
    """The selected kinds, and how many messages there are of each."""
    validate(Selection, dict(wanted))
    query = DeadLetterQuery(route=wanted.route, code=wanted.code, limit=1)
    found = await request.app[ADMIN].list_messages(query)
    return [
        group
        for group in found.groups
        if wanted.route in (None, group.route) and wanted.code in (None, group.code)
    ]


def _parse(text: str) -> object:
    """The typed text, parsed.

    Raises:
        InvalidError: It is not JSON.
    """
    try:
        return strict_json.loads(text.encode("utf-8", errors="surrogatepass"))
    except MalformedError as error:
        raise InvalidError(error.detail, errors=(FieldError("/body", error.detail),)) from error


def _page(html: str, *, status: int = 200) -> web.Response:
    return web.Response(status=status, text=html, content_type="text/html")


def _redirect(path: str, *, done: str = "") -> web.Response:
    if done and done not in NOTICES:
        raise ValueError(f"There is no notice {done!r}.")
    location = f"{path}?{urlencode({'done': done})}" if done else path
    return web.Response(status=303, headers={"Location": location})
