"""The ledger: every registration that the broker confirmed, beside what became of it."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar
from uuid import UUID

from pydantic import Field, StringConstraints, computed_field

from common.contracts.base import Answer, Body
from common.contracts.dead_letters import Person, Reason
from common.contracts.rules import Instant

MAX_ENTRIES = 1000
"""Entries in one batch."""

MAX_MISSING = 20_000
"""Missing registrations that one answer names."""

MAX_VERIFIED = 50_000
"""Rows of stored registrations that one request checks; some tenths of a second."""

MAX_INCIDENTS = 100
"""Incidents in one answer."""

MAX_NAMED = 100
"""Lost registrations that ``GET /api/ledger`` names."""

Offset = Annotated[int, Field(ge=0, le=2**62)]
"""Position of a message in its stream."""

StreamName = Annotated[
    str, StringConstraints(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9_.-]+$")
]


Span = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
"""The parent-id of a message's trace context: of each request that the frontend answers another
one, so with the registration's id it names one publication."""


class LedgerEntry(Body):
    """One message of the stream."""

    registration_id: UUID
    accepted_at: Instant
    """When it was published, by the publisher's clock."""

    stream_offset: Offset

    span: Span | None = None
    """None where the publisher gave none; then it cannot be recognised as unpromised."""


class LedgerBatch(Body):
    """What was read of a stream, from the position on; written whole or not at all."""

    sample: ClassVar[Mapping[str, Any]] = {
        "stream": "user.registration.log",
        "fromOffset": 0,
        "nextOffset": 1,
        "lastId": "0192f7a4-5b7c-7c3e-9f10-2b6d1c3a4e5f",
        "entries": [
            {
                "registrationId": "0192f7a4-5b7c-7c3e-9f10-2b6d1c3a4e5f",
                "acceptedAt": "2026-01-31T09:30:00Z",
                "streamOffset": 0,
            }
        ],
    }

    stream: StreamName
    from_offset: Offset
    """The position that the reader knew. If another reader was first, nothing is written."""

    next_offset: Offset
    last_id: UUID | None = None
    """Id of the message just before ``next_offset``; none at the beginning of an empty stream."""

    entries: Annotated[list[LedgerEntry], Field(max_length=MAX_ENTRIES)]
    """In the order of the stream, without canaries."""

    truncated: Offset = 0
    """Messages that the stream dropped before they were read."""

    restarted: bool = False
    """Whether the stream is another one than at the last position."""

    known_up_to: Offset = 0
    """How far this very stream had been read before, where the reader knows that it was further
    than the position says: then the database was restored from a backup."""


class PositionQuery(Body):
    """Names a stream."""

    stream: StreamName


class LedgerPosition(Answer):
    """How far a stream was read."""

    next_offset: int
    last_id: UUID | None = None
    read_at: datetime | None = None
    """When a reader last wrote a batch."""

    advanced: bool = True
    """Whether the batch was written; False: another reader was first."""


class UnpromisedPublication(Body):
    """A registration that was published and answered with 503."""

    registration_id: UUID
    span: Span


class UnpromisedPublications(Body):
    """What the broker did not confirm, though the stream may have it: answered with 503."""

    sample: ClassVar[Mapping[str, Any]] = {
        "stream": "user.registration.log",
        "publications": [
            {
                "registrationId": "0192f7a4-5b7c-7c3e-9f10-2b6d1c3a4e5f",
                "span": "b7ad6b7169203331",
            }
        ],
    }

    stream: StreamName
    publications: Annotated[list[UnpromisedPublication], Field(max_length=MAX_ENTRIES)]


class UnpromisedRecorded(Answer):
    """How many of them were not known yet."""

    recorded: int


class ReconciliationRequest(Body):
    """Asks to compare again what is not final with what is stored."""

    sample: ClassVar[Mapping[str, Any]] = {
        "stream": "user.registration.log",
        "missingForSeconds": 600,
    }

    stream: StreamName
    missing_for_seconds: Annotated[float, Field(ge=0, le=10**8)]
    """Name those that are missing for so long."""

    limit: Annotated[int, Field(ge=0, le=MAX_MISSING)] = MAX_MISSING

    verify: Annotated[int, Field(ge=0, le=MAX_VERIFIED)] = 0
    """Look whether the rows of so many that were stored are still there, in turns."""


class MissingRegistration(Answer):
    """Accepted, and not in the database."""

    registration_id: UUID
    accepted_at: Instant
    """When it was published, by the publisher's clock."""

    read_at: Instant | None = None
    """When it was read from the stream, by the database's clock."""

    stream_offset: int
    was_known: bool = False
    """Whether it had been read before the database was restored: it was probably stored and
    mailed then."""


class MailCounts(Answer):
    """What became of the mails of stored registrations; each counts once."""

    mailed: int = 0
    """Handed to the mail server, though some may have come back since."""

    suppressed: int = 0
    """Not sent: the owner of the address was told before."""

    failed: int = 0
    """Refused by the mail server for good."""

    bounced: int = 0
    """Came back before the ledger saw them as mailed."""

    unsure: int = 0
    """The link dropped after the text; sent again."""

    waiting: int = 0
    """Under way, put off, or not asked for yet."""


class LedgerTotals(Answer):
    """What the database knows.

    Stored, duplicates, missing, unpromised and those rejected make up ``accepted``.
    """

    accepted: int
    """Distinct registrations in the stream."""

    repeated: int
    """How often one of them was published again."""

    stored: int
    duplicates: int
    missing: int
    """Not in the database: in a queue, among the dead letters, or lost."""

    mails: MailCounts
    truncated: int
    """Messages that the stream dropped before they were read; what became of them is unknown."""

    restarts: int
    """How often the stream was found to be another one."""

    vanished: int = 0
    """Of those stored or duplicates: their row in ``registrations`` is no longer there."""

    unpromised: int = 0
    """Not in the database, and each time they were published answered with 503."""


class IncidentKind(StrEnum):
    """Why something cannot be accounted for."""

    REPLACED = "replaced"
    """The stream was deleted and created again: what the old one had and was not read is gone."""

    TRUNCATED = "truncated"
    """The stream dropped messages, by age or size, before they were read."""

    RESTORED = "restored"
    """The database is older than what had been read: it was restored from a backup."""

    VANISHED = "vanished"
    """Rows of ``registrations``, which stay for ever, are no longer there."""


class Incident(Answer):
    """Something that the ledger cannot account for."""

    incident_id: int
    kind: IncidentKind
    noticed_at: Instant
    last_read_at: Instant | None = None
    """When the last message before was read; what was accepted after it and is not in the stream
    any more was never seen."""

    accepted_before: int
    stored_by_then: int
    not_provable: int
    """At least so many: accepted and not stored by then (``replaced``), messages that were not read
    (``truncated``), rows (``vanished``). 0 for ``restored``, where the stream is read again."""

    acknowledged_at: Instant | None = None
    acknowledged_by: str = ""
    reason: str = ""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def detail(self) -> str:
        """What happened, and what can be done about it."""
        noticed = f"{self.noticed_at:%Y-%m-%d %H:%M:%S} UTC"
        read = f"{self.last_read_at:%Y-%m-%d %H:%M:%S} UTC" if self.last_read_at else "never"
        match self.kind:
            case IncidentKind.REPLACED:
                return (
                    f"The stream was created anew (noticed {noticed}; last read {read}): of "
                    f"{self.accepted_before:,} accepted before, {self.stored_by_then:,} were "
                    f"stored by then. What became of {self.not_provable:,} others, and of what "
                    "was accepted and not yet read, cannot be proved."
                )
            case IncidentKind.TRUNCATED:
                return (
                    f"The stream dropped {self.not_provable:,} messages before they were read "
                    f"(noticed {noticed}; last read {read}). What became of them cannot be proved."
                )
            case IncidentKind.RESTORED:
                return (
                    f"The database was restored from a backup (noticed {noticed}; it had read up "
                    f"to {read}). What it forgot is read again: ./userstream ledger --repair "
                    "stores it, without a second mail."
                )
            case IncidentKind.VANISHED:
                return (
                    f"{self.not_provable:,} rows of registrations, which are never deleted, are "
                    f"missing (noticed {noticed}): they were deleted by hand."
                )


class AcknowledgeRequest(Body):
    """Acknowledges all open incidents."""

    sample: ClassVar[Mapping[str, Any]] = {"reason": "The disk was replaced."}

    reason: Reason
    """What was found out; it is kept, so it must name no person."""

    acknowledged_by: Person = ""
    """Who acknowledges them."""


class AcknowledgeIncidents(AcknowledgeRequest):
    """The same, of one stream."""

    sample: ClassVar[Mapping[str, Any]] = {
        **AcknowledgeRequest.sample,
        "stream": "user.registration.log",
    }

    stream: StreamName


class Acknowledged(Answer):
    """The incidents that were open until now."""

    acknowledged: list[Incident]


class Reconciliation(Answer):
    """The totals, and what has been missing for long, oldest first."""

    totals: LedgerTotals
    stored_up_to: datetime | None = None
    """When the youngest one stored was accepted: the work queue was processed so far."""

    missing_for_long: int
    missing: list[MissingRegistration]
    rejected: dict[str, int] = {}
    """Dead letters that a person discarded, by error code; they do not count as missing."""

    incidents: list[Incident] = []
    """Those not acknowledged, oldest first; at most 100."""

    unpromised: list[MissingRegistration] = []
    """The youngest of those unpromised; at most 100."""


class WorkBinding(StrEnum):
    """Whether what is published reaches the work queue."""

    PRESENT = "present"
    MISSING = "missing"
    """Registrations are accepted and kept in the stream, and reach no receiver."""

    UNKNOWN = "unknown"
    """The management API is not configured, or does not answer."""


class InFlight(Answer):
    """Registrations in the queues, by where they are."""

    ready: int
    unacknowledged: int | None = None
    """Delivered to receivers; unknown without the management API."""

    retrying: int


class ListedRegistration(Answer):
    """A registration of the stream that is not in the database."""

    registration_id: UUID
    accepted_at: Instant
    age_seconds: int
    stream_offset: int


class Ledger(Answer):
    """What became of all registrations that were accepted, reconciled by their ids."""

    as_of: Instant
    read_up_to: int
    """Offset in the stream up to which this was read."""

    caught_up: bool
    """Whether that is the end of the stream."""

    totals: LedgerTotals
    in_flight: int
    in_flight_by_place: InFlight
    dead_lettered: int
    """In the dead-letter queue."""

    dead_lettered_by_code: dict[str, int]
    rejected: int
    """Discarded by a person."""

    rejected_by_code: dict[str, int]
    lost: int
    lost_after_seconds: float
    lost_registrations: list[ListedRegistration]
    """The oldest of those lost; at most 100."""

    unpromised_registrations: list[ListedRegistration] = []
    """The youngest of those unpromised; at most 100. A repair does not bring them back."""

    work_binding: WorkBinding
    incidents: list[Incident] = []
    """What cannot be accounted for and was not acknowledged yet; oldest first."""


class MailChoice(StrEnum):
    """Who is mailed after a repair."""

    AUTO = "auto"
    """All but those that had been read before the database was restored: they were mailed then."""

    ALL = "all"
    """All, perhaps for a second time."""

    NONE = "none"
    """None."""


class RepairRequest(Body):
    """How to repair."""

    mail: MailChoice = MailChoice.AUTO


class Repair(Answer):
    """What a repair did."""

    lost: int
    """Registrations that were lost when it began."""

    republished: int
    """Sent to the work queue again, under their own id; stored once, whatever happens."""

    without_mail: int = 0
    """Of those: brought back without a mail."""

    not_in_stream: list[UUID]
    """Those that the stream no longer has: they cannot be brought back from it."""
