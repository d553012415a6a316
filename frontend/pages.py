"""Renders the pages: pure functions from typed values to HTML, over templates in ``templates/``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from common.contracts.registrations import Journey, JourneyStatus
from common.contracts.rules import (
    EMAIL_CHARACTER,
    EMAIL_HINT,
    EMAIL_MAX_LENGTH,
    EMAIL_PATTERN,
    EMAIL_STRAY,
    NAME_CHARACTER,
    NAME_LETTERLESS,
    NAME_MAX_LENGTH,
    NAME_PATTERN,
    NAME_STRAY,
)
from common.errors import FieldError
from common.http.pages import Pages

PAGES = Pages("frontend")

UNCONFIRMED_NOTICE = (
    "Your registration could not be confirmed just now, so nothing is promised yet. What you "
    "typed is still here: please press Register again. That will not register you twice."
)
"""For the form that comes back with a 503, and for its script when it gives up."""

NOT_READABLE_NOTICE = (
    "The current state cannot be read right now. Nothing is lost: what was accepted is kept safe "
    "and goes on by itself, and so does this page."
)
"""For the status page while the database is away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One input: the shared rule, and its texts on the page."""

    name: str
    label: str
    kind: str
    autocomplete: str
    max_length: int
    """Characters after trimming and NFC."""

    pattern: str
    """As browsers write it; refuses nothing that the server takes."""

    character: str
    """One character of it, in the same syntax."""

    missing: str
    stray: str
    """Message for the first character that is none of these, with ``{character}`` for it."""

    mismatch: str
    """Message where all characters are right and the whole is not."""

    note: str = ""
    """Always visible below the label."""

    @property
    def too_long(self) -> str:
        """Message for more than ``max_length`` characters."""
        return f"Use at most {self.max_length} characters."

    def named(self, text: str) -> str:
        """A message as it stands away from its input, where it must name the field."""
        return text if self.label.lower() in text.lower() else f"{self.label}: {text}"


_name_field = partial(
    Field,
    kind="text",
    max_length=NAME_MAX_LENGTH,
    pattern=NAME_PATTERN,
    character=NAME_CHARACTER,
    stray=NAME_STRAY,
    mismatch=NAME_LETTERLESS,
)

FIELDS = (
    _name_field(
        name="name",
        label="First name",
        autocomplete="given-name",
        missing="Enter your first name.",
    ),
    _name_field(
        name="surname",
        label="Surname",
        autocomplete="family-name",
        missing="Enter your surname.",
    ),
    Field(
        name="email",
        label="E-mail address",
        kind="email",
        autocomplete="email",
        max_length=EMAIL_MAX_LENGTH,
        pattern=EMAIL_PATTERN,
        character=EMAIL_CHARACTER,
        missing="Enter your e-mail address.",
        stray=EMAIL_STRAY,
        mismatch=EMAIL_HINT,
        note="Your confirmation goes to this address.",
    ),
)
"""The form, from top to bottom."""

UNREADABLE = "unreadable"
"""The page's fourth state beside ``JourneyStatus``: the database is away."""

PROGRESS: Mapping[str, tuple[str, str, str]] = {
    UNREADABLE: ("done", "unknown", "unknown"),
    JourneyStatus.UNKNOWN: ("absent", "waiting", "waiting"),
    JourneyStatus.PENDING: ("done", "current", "waiting"),
    JourneyStatus.STORED: ("done", "done", "current"),
    JourneyStatus.MAILED: ("done", "done", "done"),
    JourneyStatus.MAIL_FAILED: ("done", "done", "failed"),
}
"""How the steps received, stored and mailed stand in each state; the page's script reads it too."""


def render_form(
    values: Mapping[str, str], errors: Sequence[FieldError], nonce: str, notice: str = ""
) -> str:
    """The form with what was typed, by field, what is wrong with it, and its nonce."""
    known = {f"/{field.name}": field for field in FIELDS}
    return PAGES.render(
        "form.html",
        fields=FIELDS,
        values=values,
        wrong={
            known[error.pointer].name: _message(known[error.pointer], values, error)
            for error in reversed(errors)  # so that the first error of a field counts
            if error.pointer in known
        },
        refusals=[error.detail for error in errors if error.pointer not in known],
        nonce=nonce,
        notice=notice,
        unconfirmed=UNCONFIRMED_NOTICE,
    )


def render_status(journey: Journey | None, registration_id: UUID, *, accepted: bool = True) -> str:
    """The journey of a registration; ``None``: it cannot be read now.

    ``accepted``: whether a 202 was given for it, which the id itself shows.
    """
    progress = dict(PROGRESS)
    if not accepted:
        progress[UNREADABLE] = ("unknown", "unknown", "unknown")
    return PAGES.render(
        "status.html",
        journey=journey,
        status=journey.status if journey else UNREADABLE,
        finished=journey is not None and journey.finished,
        registration_id=registration_id,
        progress=progress,
        notice=NOT_READABLE_NOTICE,
        notice_hidden=journey is not None,
    )


def render_problem(status: int, title: str, detail: str) -> str:
    """A page for a person whose request failed."""
    return PAGES.render("problem.html", status=status, title=title, detail=detail)


def _message(field: Field, values: Mapping[str, str], error: FieldError) -> str:
    """An empty field is asked for by its name; the other errors are for people already."""
    return error.detail if values.get(field.name, "").strip() else field.missing
