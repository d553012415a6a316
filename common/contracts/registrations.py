"""A registration: the message, how it is stored, and its journey."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar
from uuid import UUID

from pydantic import BaseModel, Field

from common.contracts.base import Answer, Body, Contract
from common.contracts.rules import EmailAddress, Instant, PersonName
from common.contracts.topology import USER_REGISTRATION, Route

MAX_BULK = 500
"""Items in one bulk request; more gains nothing (104,000 rows/s at 100, 133,000 at 500)."""


PERSON: Mapping[str, str] = {"name": "Ada", "surname": "Lovelace", "email": "ada@example.org"}
"""Who is registered in the samples."""


class Person(BaseModel):
    """The person of a registration."""

    name: PersonName
    surname: PersonName
    email: EmailAddress


class RegistrationSubmitted(Person, Contract):
    """A person asked to be registered; from the frontend or any other program."""

    type_name: ClassVar[str] = "user.registration.submitted.v1"
    route: ClassVar[Route] = USER_REGISTRATION
    is_default: ClassVar[bool] = True
    sample: ClassVar[Mapping[str, Any]] = {**PERSON, "timestamp": "2026-01-31T09:30:00.000Z"}

    timestamp: Instant | None = None
    """When the person pressed the button; without it, when the message was read."""


class RegistrationRequest(Person, Body):
    """What the form and the API take."""

    sample: ClassVar[Mapping[str, Any]] = PERSON


class RegistrationAccepted(Answer):
    """The registration is safe: the broker has confirmed it."""

    registration_id: UUID
    status_url: str
    """Page and API under which its journey can be followed."""


class RegistrationToStore(Person, Body):
    """One registration of a bulk request."""

    registration_id: UUID
    """The message's id: the same id twice is the same registration."""

    received_at: Instant


class RegistrationsToStore(Body):
    """A bulk request, stored whole or not at all.

    Where one item is refused, the caller sends each alone, as ``DatabaseClient`` does.
    """

    sample: ClassVar[Mapping[str, Any]] = {
        "registrations": [
            {
                **PERSON,
                "registrationId": "0192f7a4-5b7c-7c3e-9f10-2b6d1c3a4e5f",
                "receivedAt": "2026-01-31T09:30:00Z",
            }
        ]
    }

    registrations: Annotated[list[RegistrationToStore], Field(min_length=1, max_length=MAX_BULK)]


class Outcome(StrEnum):
    """What storing a registration came to."""

    STORED = "stored"
    """A new user."""

    DUPLICATE = "duplicate"
    """The address is registered already."""


class StoredRegistration(Answer):
    """The answer to one item: the same for the same id, however often it is asked."""

    registration_id: UUID
    outcome: Outcome
    user_id: int
    user_exists: bool = True
    """Whether the user was still there; the answer stays the same after it was deleted."""


class StoredRegistrations(Answer):
    """Answers in the order of the request."""

    results: list[StoredRegistration]


class JourneyStatus(StrEnum):
    """How far a registration has come, as the person may know it."""

    UNKNOWN = "unknown"
    """Not stored, and the id is not one that the frontend gave out: another program's, whose
    turn is still to come, or made up."""

    PENDING = "pending"
    """Accepted and safe at the broker, not stored yet; of database_service: not stored."""

    STORED = "stored"
    """In the database; the mail is on its way."""

    MAILED = "mailed"
    """Nothing more is to come: the mail was handed to the mail server, or none was due, because the
    address got one within a day or its mails bounce. Which of these is not shown: it would reveal
    who is registered."""

    MAIL_FAILED = "mail_failed"
    """The mail server did not take the mail, for a reason that lies with this address or mail."""


class Journey(Answer):
    """The way of one registration, with times; holds no personal data."""

    registration_id: UUID
    status: JourneyStatus
    received_at: Instant | None = None
    stored_at: Instant | None = None
    mailed_at: Instant | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing will change any more by itself."""
        return self.status in (JourneyStatus.MAILED, JourneyStatus.MAIL_FAILED)


class JourneysWanted(Body):
    """Whose journeys are asked for together."""

    sample: ClassVar[Mapping[str, Any]] = {
        "registrationIds": ["0192f7a4-5b7c-4c3e-9f10-2b6d1c3a4e5f"]
    }

    registration_ids: Annotated[list[UUID], Field(min_length=1, max_length=MAX_BULK)]


class Journeys(Answer):
    """Journeys in the order of the request."""

    journeys: list[Journey]


class CanariesRemoved(Answer):
    """The canaries that were removed: the one that was mailed, and stale ones."""

    removed: int
    """How many were stored; 0 if this one was removed before."""
