"""Renders the page of dead letters: from typed values to HTML, over ``templates/``."""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined

from common.contracts.dead_letters import (
    DeadLetterQuery,
    DeadLetters,
    DeadLetterView,
    DiscardedDeadLetters,
    Redrive,
    RedriveState,
    Rehearsal,
)
from common.errors import FieldError

NOTICES: Mapping[str, str] = {
    "discarded": "Discarded. The reason is kept.",
    "resent": "Sent back with the new body. If it fails again, it comes back here.",
    "sent": "Sent back. If it fails again, it comes back here.",
}
"""What has just been done, by the word for it in the URL."""

HEADLINES: Mapping[RedriveState, str] = {
    RedriveState.RUNNING: "Sending back",
    RedriveState.DONE: "All were handled",
    RedriveState.FAILED_AGAIN: "Stopped: it failed again",
    RedriveState.UNSETTLED: "Stopped: not handled in time",
    RedriveState.STOPPED: "Stopped",
    RedriveState.BROKEN_OFF: "Broken off",
}


def render_letters(
    found: DeadLetters, query: DeadLetterQuery, *, latest: Redrive | None, done: str
) -> str:
    """All dead letters, or those of one kind."""
    return _render(
        "letters.html",
        found=found,
        query=query,
        total=sum(group.count for group in found.groups),
        latest=latest,
        notice=NOTICES.get(done, ""),
        next_page=_url(query, found),
    )


def render_letter(
    letter: DeadLetterView, *, errors: Sequence[FieldError] = (), typed: str | None = None
) -> str:
    """One dead letter and what can be done with it; with what was typed, if that is wrong."""
    return _render("letter.html", letter=letter, errors=errors, typed=typed)


def render_redrive(redrive: Redrive) -> str:
    """How far a redrive is; the page asks again by itself."""
    return _render("redrive.html", redrive=redrive, headline=HEADLINES[redrive.state])


def render_rehearsal(rehearsal: Rehearsal) -> str:
    """What would become of letters."""
    return _render("rehearsal.html", rehearsal=rehearsal)


def render_discards(found: DiscardedDeadLetters) -> str:
    """What was discarded, and why."""
    return _render("discards.html", found=found)


def render_problem(status: int, title: str, detail: str) -> str:
    """A page for a person in whose browser something went wrong."""
    return _render("problem.html", status=status, title=title, detail=detail)


@cache
def asset(name: str) -> str:
    """The URL of a static file; it changes with the content."""
    return f"/static/{name}?v={hashlib.sha256(static(name)).hexdigest()[:12]}"


@cache
def static(name: str) -> bytes:
    """The content of a static file."""
    return (files("queue_receiver") / "static" / name).read_bytes()


def _url(query: DeadLetterQuery, found: DeadLetters) -> str:
    if found.next_after is None:
        return ""
    chosen = {"route": query.route, "code": query.code, "after": str(found.next_after)}
    return "/dead-letters?" + urlencode({name: text for name, text in chosen.items() if text})


def _in_utc(moment: datetime | str) -> str:
    """A time for people; what is no time stays as it is."""
    if isinstance(moment, str):
        try:
            return _in_utc(datetime.fromisoformat(moment))
        except ValueError:
            return moment or "not known"
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return aware.astimezone(UTC).strftime("%-d %B %Y, %H:%M:%S UTC")


def _render(template: str, **context: object) -> str:
    return _environment().get_template(template).render(context)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("queue_receiver"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["asset"] = asset
    environment.filters["in_utc"] = _in_utc
    return environment
