"""Dead letters: how they are shown, what can be done with them, and what was decided."""

from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, ClassVar, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
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
"""Ids that one request may name."""

MAX_DRY_RUN = 100
"""Messages that one dry run tries."""


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
    """Something with the code of a dead letter, and what that code means."""

    code: str
    """The error that made it one: ``malformed``, ``upstream_error``, …"""

    @property
    def kind(self) -> Kind:
        """What messages of this code are."""
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
        """Whether it can pass as it is."""
        return self.kind.remedy


class DeadLetterView(Coded):
    """One dead letter, as a person sees it."""

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
    """Our own; those of others with their values only when asked to unmask."""

    body: str | None
    """Its fields with the values covered, or all of it when asked to unmask; null where there
    are too many large messages to keep: ask for this one alone."""

    unmasked: bool


class DeadLetterGroup(Coded):
    """How many messages there are of one route with one code."""

    route: str
    count: int


class DeadLetterQueueLook(Answer):
    """How far one queue could be read."""

    route: str
    messages: int
    """How many there are, without those that somebody else holds."""

    read: int
    complete: bool
    """False: more than are read at once, or another reader holds some."""

    locked_by_another_reader: bool
    """Another reader held some of them; they are back when it has done."""


class DeadLetters(Answer):
    """The dead letters of all routes, oldest first in each."""

    queues: list[DeadLetterQueueLook]
    groups: list[DeadLetterGroup]
    messages: list[DeadLetterView]
    next_after: UUID | None
    """Pass it as ``after`` for the next page; also as ``Link: rel="next"``."""


class DeadLetterQuery(Body):
    """Which messages are shown."""

    route: RouteName | None = None
    code: ErrorCode | None = None
    after: UUID | None = None
    limit: Annotated[int, Field(ge=1, le=500)] = 50
    unmask: bool = False


class OneDeadLetterQuery(Body):
    """How one message is shown."""

    unmask: bool = False


class DeadLetterPath(Body):
    """Names a dead letter."""

    id: UUID


class Selection(Body):
    """Which messages something is done with; what is named must all be true of a message."""

    ids: Annotated[list[UUID], Field(min_length=1, max_length=MAX_IDS)] | None = None
    route: RouteName | None = None
    code: ErrorCode | None = None
    all: bool = False
    """Said by whoever means every message of every route."""

    @model_validator(mode="after")
    def _says_which(self) -> Self:
        if not (self.all or self.ids or self.route or self.code):
            raise ValueError('Name ids, a route or a code; or say "all": true.')
        return self

    @cached_property
    def named(self) -> frozenset[UUID]:
        """The ids, to be looked up for each of thousands of messages."""
        return frozenset(self.ids or ())

    def matches(self, message_id: UUID, route: str, code: str) -> bool:
        """Whether a message is meant."""
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
    """Longest wait for one step to be settled before the next begins."""


class RedriveState(StrEnum):
    """How a redrive stands."""

    RUNNING = "running"
    DONE = "done"
    """All messages were sent back, and none has failed again."""

    FAILED = "failed"
    """A message failed again; the rest was left where it is."""

    TIMED_OUT = "timed_out"
    """The last step was not settled in time; the rest was left where it is."""

    STOPPED = "stopped"
    """Somebody stopped it; the rest was left where it is."""

    ABORTED = "aborted"
    """Something was away; the rest was left where it is."""


class Redrive(Answer):
    """A redrive and its progress."""

    redrive_id: UUID
    state: RedriveState
    total: int
    """Messages that were meant when it began."""

    sent: int
    """Sent back so far, each confirmed by the broker."""

    settled: int
    """Of these, handled."""

    failed: int
    """Of these, back among the dead letters or refused by the mail server once more."""

    step: int
    """Messages of the present step."""

    detail: str
    """What it does, or why it ended; in words."""

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
    """Checked against the contract before anything is done."""


class SentBack(Answer):
    """A message is in its work queue again, confirmed by the broker."""

    id: UUID
    route: str


class DiscardRequest(Body):
    """A message is to go for good."""

    sample: ClassVar[Mapping[str, Any]] = {"reason": "Published by mistake.", "discardedBy": "ada"}

    reason: Reason
    """Why; it is kept, so name no person in it."""

    discarded_by: Person = ""
    """Who decides it."""


class DiscardManyRequest(Selection):
    """Messages are to go for good."""

    sample: ClassVar[Mapping[str, Any]] = {
        "route": "user.registration",
        "code": "malformed",
        "reason": "Published by mistake.",
        "discardedBy": "ada",
    }

    reason: Reason
    """Why; it is kept with each of them, so name no person in it."""

    discarded_by: Person = ""
    """Who decides it."""

    expected: Annotated[int, Field(ge=0)] | None = None
    """How many were seen: where there are more by now, nothing is discarded."""


class DiscardedMany(Answer):
    """Messages that were discarded; the reason is kept with each."""

    discarded: int


class DryRunRequest(Selection):
    """What would become of messages that are sent back; at most 100 of them."""

    sample: ClassVar[Mapping[str, Any]] = {"route": "user.registration", "code": "upstream_error"}


class DryRunMessage(Answer):
    """What would become of one message."""

    id: UUID
    route: str
    code: str
    """Why it is a dead letter."""

    would_succeed: bool
    outcome: str
    """``stored``, ``duplicate``, ``valid`` (no more can be tried without doing it), or the code of
    the error it would meet."""

    detail: str


class DryRun(Answer):
    """What would become of messages; nothing was stored, sent or moved."""

    messages: list[DryRunMessage]
    left_out: int
    """Messages that were meant beyond the first 100."""


class DeadLetterDiscard(Body):
    """A message that was discarded; holds nothing of its body."""

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
    reason: Reason
    discarded_by: Person = ""


class DiscardedDeadLetter(DeadLetterDiscard, Answer):
    """A discarded message on record."""

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
    """What storing a registration would come to."""

    registration_id: UUID
    outcome: Outcome


class DryRunRegistrations(Answer):
    """Answers in the order of the request."""

    results: list[DryRunRegistration]
