"""Renders the pages of dead letters: typed values to HTML, over ``templates/``."""

from collections.abc import Mapping, Sequence
from typing import Literal
from urllib.parse import urlencode

from pydantic import BaseModel

from common.contracts.dead_letter_kinds import Remedy
from common.contracts.dead_letters import (
    DeadLetterGroup,
    DeadLetterQuery,
    DeadLetters,
    DeadLetterView,
    DiscardedDeadLetters,
    DryRun,
    Redrive,
    RedriveState,
)
from common.errors import FieldError, UserStreamError
from common.http.pages import Pages

PAGES = Pages("queue_receiver")

NOTICES: Mapping[str, str] = {
    "discarded": "Discarded. The reason is kept.",
    "discarded_many": "All of them were discarded. The reason is kept with each.",
    "resent": "Sent back with the new body. If it fails again, it comes back here.",
    "sent": "Sent back. If it fails again, it comes back here.",
}
"""What has just been done, by its name in the URL."""

HEADLINES: Mapping[RedriveState, str] = {
    RedriveState.RUNNING: "Sending back",
    RedriveState.DONE: "All were handled",
    RedriveState.FAILED: "Stopped: it failed again",
    RedriveState.TIMED_OUT: "Stopped: not handled in time",
    RedriveState.STOPPED: "Stopped",
    RedriveState.ABORTED: "Aborted",
}


def render_messages(
    found: DeadLetters, query: DeadLetterQuery, *, latest: Redrive | None, done: str
) -> str:
    """All dead letters, or those of one kind."""
    return PAGES.render(
        "messages.html",
        found=found,
        query=query,
        total=sum(group.count for group in found.groups),
        latest=latest,
        notice=NOTICES.get(done, ""),
        next_page=_url(query, found),
    )


def render_message(
    message: DeadLetterView, *, errors: Sequence[FieldError] = (), typed: str | None = None
) -> str:
    """One dead letter, and what can be done with it; with an invalid body as it was typed."""
    return PAGES.render("message.html", message=message, errors=errors, typed=typed)


def render_confirmation(
    action: Literal["redrive", "discard"], wanted: BaseModel, groups: Sequence[DeadLetterGroup]
) -> str:
    """What is about to be done with which messages, and a form that does it."""
    return PAGES.render(
        "confirm.html",
        action=action,
        wanted=wanted,
        groups=groups,
        total=sum(group.count for group in groups),
        failing=sum(group.count for group in groups if group.remedy is not Remedy.SEND_BACK),
    )


def render_redrive(redrive: Redrive) -> str:
    """The progress of a redrive; the page refreshes itself."""
    return PAGES.render("redrive.html", redrive=redrive, headline=HEADLINES[redrive.state])


def render_dry_run(dry_run: DryRun) -> str:
    """What would become of messages."""
    return PAGES.render("dry_run.html", dry_run=dry_run)


def render_discards(found: DiscardedDeadLetters) -> str:
    """What was discarded, and why."""
    return PAGES.render("discards.html", found=found)


def render_problem(error: UserStreamError) -> str:
    """A problem as a page."""
    return PAGES.render("problem.html", error=error)


def _url(query: DeadLetterQuery, found: DeadLetters) -> str:
    if found.next_after is None:
        return ""
    chosen = {"route": query.route, "code": query.code, "after": str(found.next_after)}
    return "/dead-letters?" + urlencode({name: text for name, text in chosen.items() if text})
