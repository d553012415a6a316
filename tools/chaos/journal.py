"""What the driver knows: whom it tried to register, what it was promised, what it poisoned."""

from dataclasses import dataclass, field
from uuid import UUID


@dataclass(slots=True)
class Journal:
    """Ids and addresses; filled by the driver, read when everything has come to rest."""

    attempted: dict[str, int] = field(default_factory=dict)
    """Address to the number of different registrations tried for it: what may be stored."""
    accepted: dict[UUID, str] = field(default_factory=dict)
    """Promised registration to its address: by a 202 or by the broker's confirm."""
    accepted_at: dict[UUID, float] = field(default_factory=dict)
    """When it was promised, in seconds since 1970."""
    two_answers: list[UUID] = field(default_factory=list)
    """A second id that the same key and body was given: there must be none."""
    repeated: int = 0
    """Registrations sent twice on purpose, with the same key or the same message id."""
    malformed: dict[UUID, str] = field(default_factory=dict)
    """Message that cannot be handled to the reason with which it must be dead-lettered."""
    poisoned: dict[UUID, str] = field(default_factory=dict)
    """The same with those that the broker never confirmed: they may be there, or not."""
    reused: set[UUID] = field(default_factory=set)
    """Ids under which a second person was published: one of the two is stored."""
    insisted: set[UUID] = field(default_factory=set)
    """Messages published again because no confirm came, though the first may have arrived."""
    unpromised: int = 0
    """Registrations that were never answered with 202, however often they were tried."""
    statuses: dict[int, int] = field(default_factory=dict)
    """HTTP status to how often it was the answer; 0 for none."""
    seconds: list[float] = field(default_factory=list)
    """Of each 202, from its own request on."""
    slowest_refusal: float = 0.0
    """Seconds until the slowest 503."""
    first_answers: list[float] = field(default_factory=list)
    """When each 202 came, in seconds since 1970."""
    reports: list[UUID] = field(default_factory=list)
    """Reports that were promised."""
