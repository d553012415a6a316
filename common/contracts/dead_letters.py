"""Dead letters: how they are shown, what can be done with them, and what was decided."""

from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, ClassVar, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
    computed_field,
    model_validator,
)

from common.contracts.base import Answer, Body
from common.contracts.dead_letter_kinds import Kind, Remedy, kind_of
from common.contracts.registrations import PERSON, Outcome
from common.contracts.rules import Instant, Text
from common.contracts.topology import ROUTES

ROUTE_NAMES = tuple(route.name for route in ROUTES)

MAX_IDS = 1000
"""Ids in one request."""

MAX_DRY_RUN = 100
"""Messages in one dry run."""


def _is_route(value: str) -> str:
    if value not in ROUTE_NAMES:
        raise ValueError(f"Routes are: {', '.join(ROUTE_NAMES)}.")
    return value


RouteName = Annotated[
    str,
    AfterValidator(_is_route),
    WithJsonSchema({"type": "string", "enum": list(ROUTE_NAMES)}),
]
ErrorCode = Annotated[Text, StringConstraints(min_length=1, max_length=100)]
Reason = Annotated[Text, StringConstraints(min_length=1, max_length=500, strip_whitespace=True)]
Person = Annotated[Text, StringConstraints(max_length=100, strip_whitespace=True)]


class Coded(Answer):
    """Has the code of a dead letter, and what that code means."""

    code: str
    """Of the error that made it a dead letter: ``malformed``, ``upstream_error``, …"""

    @property
    def kind(self) -> Kind:
        """What its code stands for."""
        return kind_of(self.code)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def meaning(self) -> str:
        """What the code means."""
        return self.kind.meaning

    @computed_field  # type: ignore[prop-decorator]
    @property
    def advice(self) -> str:
        """What to do about it."""
        return self.kind.advice

    @computed_field  # type: ignore[prop-decorator]
    @property
    def remedy(self) -> Remedy:
        """Whether it can succeed as it is."""
        return self.kind.remedy


class DeadLetterView(Coded):
    """One dead letter, as it is shown."""

    id: UUID
    """The message's id; it stays the same when the message is sent back."""

    route: str
    detail: str
    attempts: int
    first_seen: str
    failed_service: str
    routing_key: str
    type: str
    """The contract it names; empty on a message from elsewhere."""

    size_bytes: int
    headers: dict[str, str]
    """Ours and the broker's; the values of others are redacted unless ``unmask`` is set."""

    body: str | None
    """JSON with its values redacted, or the whole text with ``unmask``; null where the bodies are
    too large for one answer: read this message alone."""

    unmasked: bool


class DeadLetterGroup(Coded):
    """The messages of one route with one code, counted."""

    route: str
    count: int


class DeadLetterQueueReading(Answer):
    """How far one queue could be read."""

    route: str
    messages: int
    """In the queue, without those that another reader has locked."""

    read: int
    complete: bool
    """False: there are more than one reading takes, or another reader has locked some."""

    locked_by_another_reader: bool
    """Another reader has locked some of them; they are back when it is done."""


class DeadLetters(Answer):
    """The dead letters of all routes, oldest first in each."""

    queues: list[DeadLetterQueueReading]
    groups: list[DeadLetterGroup]
    messages: list[DeadLetterView]
    next_after: UUID | None
    """Pass it as ``after`` for the next page; also as ``Link: rel="next"``."""


class OneDeadLetterQuery(Body):
    """How one message is shown."""

    unmask: bool = False
    """With the values of its body and headers, which may be personal; the log records it."""


class DeadLetterQuery(OneDeadLetterQuery):
    """Which messages are shown, and how."""

    route: RouteName | None = None
    code: ErrorCode | None = None
    after: UUID | None = None
    limit: Annotated[int, Field(ge=1, le=500)] = 50


class DeadLetterPath(Body):
    """Names a dead letter."""

    id: UUID


class Selection(Body):
    """Selects messages: those that match everything that is given."""

    ids: Annotated[list[UUID], Field(min_length=1, max_length=MAX_IDS)] | None = None
    route: RouteName | None = None
    code: ErrorCode | None = None
    all: bool = False
    """Confirms that every message of every route is meant."""

    @model_validator(mode="after")
    def _require_one(self) -> Self:
        if not (self.all or self.ids or self.route or self.code):
            raise ValueError('Name ids, a route or a code, or set "all": true.')
        return self

    @cached_property
    def named(self) -> frozenset[UUID]:
        """The ids as a set, for one lookup per message."""
        return frozenset(self.ids or ())

    def matches(self, message_id: UUID, route: str, code: str) -> bool:
        """Whether a message is selected."""
        return (
            (self.ids is None or message_id in self.named)
            and self.route in (None, route)
            and self.code in (None, code)
        )


class RedriveRequest(Selection):
    """Send messages back: 1, then 10, then 100, then 1,000 at a time."""

    sample: ClassVar[Mapping[str, Any]] = {
        "route": "user.registration",
        "code": "upstream_error",
        "rate": 100,
    }

    rate: Annotated[int, Field(ge=1, le=1000)] = 100
    """At most so many a second."""

    wait_seconds: Annotated[int, Field(ge=1, le=3600)] = 60
    """Longest wait until the messages of one step are handled."""


class RedriveState(StrEnum):
    """How a redrive stands."""

    RUNNING = "running"
    DONE = "done"
    """All messages were sent back and handled."""

    FAILED = "failed"
    """A message failed again; the rest stayed dead letters, as in all states below."""

    TIMED_OUT = "timed_out"
    """The last step was not handled in time."""

    STOPPED = "stopped"
    """By request."""

    ABORTED = "aborted"
    """A required service was unavailable, or this one was stopped."""


class Redrive(Answer):
    """A redrive and its progress; the fields change while it runs."""

    model_config = ConfigDict(frozen=False)

    redrive_id: UUID
    state: RedriveState = RedriveState.RUNNING
    total: int = 0
    """Messages that were selected when it began."""

    sent: int = 0
    """Sent back so far, each confirmed by the broker."""

    handled: int = 0
    """Of these: stored, mailed or made."""

    failed: int = 0
    """Of these: dead letters again, or deferred by the mail server once more."""

    step: int = 0
    """Messages of the present step."""

    detail: str = "Reading the dead letters."
    """What it is doing, or why it ended."""

    first_failed: UUID | None = None
    started_at: Instant
    ended_at: Instant | None = None


class RedrivePath(Body):
    """Names a redrive."""

    redrive_id: UUID


class ResendRequest(Body):
    """A message with another body."""

    sample: ClassVar[Mapping[str, Any]] = {"body": PERSON}

    body: dict[str, object]
    """Checked against the contract first."""


class SentBack(Answer):
    """A message that is in its work queue again, confirmed by the broker."""

    id: UUID
    route: str


class DiscardRequest(Body):
    """Removes a message for good."""

    sample: ClassVar[Mapping[str, Any]] = {"reason": "Published by mistake.", "discardedBy": "ada"}

    reason: Reason
    """Why; it is kept with the message's id, so it must name no person."""

    discarded_by: Person = ""
    """Who decided it."""


class DiscardManyRequest(Selection, DiscardRequest):
    """Removes messages for good."""

    sample: ClassVar[Mapping[str, Any]] = {
        "route": "user.registration",
        "code": "malformed",
        "reason": "Published by mistake.",
        "discardedBy": "ada",
    }

    expected: Annotated[int, Field(ge=0)] | None = None
    """How many were seen: if there are more by now, nothing is discarded."""


class DiscardedMany(Answer):
    """How many messages were discarded."""

    discarded: int


class DryRunRequest(Selection):
    """Tries messages out, at most 100 of them."""

    sample: ClassVar[Mapping[str, Any]] = {"route": "user.registration", "code": "upstream_error"}


class DryRunMessage(Answer):
    """What would become of one message if it were sent back."""

    id: UUID
    route: str
    code: str
    """Why it is a dead letter."""

    would_succeed: bool
    outcome: str
    """``stored``, ``duplicate``, ``valid`` (the rest cannot be tried without doing it), or the code
    of the error it would meet."""

    detail: str


class DryRun(Answer):
    """What would become of the messages; nothing was stored, sent or moved."""

    messages: list[DryRunMessage]
    left_out: int
    """How many were selected beyond the first 100."""


class DeadLetterDiscard(DiscardRequest):
    """A message that was discarded; has nothing of its body."""

    sample: ClassVar[Mapping[str, Any]] = {
        "messageId": "0192f7a4-5b7c-7c3e-9f10-2b6d1c3a4e5f",
        "route": "user.registration",
        "errorCode": "malformed",
        "reason": "Published by mistake.",
        "discardedBy": "ada",
    }

    message_id: UUID
    route: RouteName
    error_code: ErrorCode


class DiscardedDeadLetter(DeadLetterDiscard, Answer):
    """The record of a discarded message."""

    discarded_at: Instant


class DiscardedDeadLetters(Answer):
    """A page of discarded messages, newest first."""

    discards: list[DiscardedDeadLetter]
    next_before: int | None
    """Pass it as ``before`` for the next page."""


class DiscardQuery(Body):
    """Which discarded messages."""

    before: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = None
    limit: Annotated[int, Field(ge=1, le=500)] = 50


class DryRunRegistration(Answer):
    """What storing a registration would lead to."""

    registration_id: UUID
    outcome: Outcome


class DryRunRegistrations(Answer):
    """Answers in the order of the request."""

    results: list[DryRunRegistration]
