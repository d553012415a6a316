"""Everything the receiver does with messages."""

from datetime import UTC, datetime
from typing import Protocol
from uuid import uuid5

import structlog

from common.amqp.message import Envelope
from common.amqp.publisher import Publisher
from common.contracts.ids import notification_id
from common.contracts.notifications import EmailRequested, SuppressedMail, Template
from common.contracts.registrations import (
    Outcome,
    RegistrationSubmitted,
    RegistrationToStore,
    StoredRegistration,
)
from common.failpoints import failpoint

log = structlog.get_logger()

MAIL_FOR = {Outcome.STORED: Template.WELCOME, Outcome.DUPLICATE: Template.ALREADY_REGISTERED}
"""Who is known already is told so; database_service sees that it is at most once a day."""


class Registrations(Protocol):
    """Where registrations are kept: ``common.database_client.client`` in production."""

    async def store(self, registration: RegistrationToStore) -> StoredRegistration:
        """Store a registration exactly once."""
        ...

    async def suppress_mail(self, mail: SuppressedMail) -> None:
        """Keep that a mail is not to be sent."""
        ...


async def store_registration(
    registration: Envelope[RegistrationSubmitted],
    *,
    registrations: Registrations,
    publisher: Publisher,
) -> None:
    """Store a registration once and ask for its mail.

    The unacknowledged delivery is the record of pending work: a crash anywhere repeats
    the step. Storing the same id again gives the same answer, and the mail's id derives
    from the registration's, so the sender recognises the request.

    Raises:
        IdReusedError: The id was used for another person before.
    """
    failpoint("w10")
    data = registration.data
    item = to_store(registration)
    stored = await registrations.store(item)
    while not stored.user_exists and registration.is_id_derived:
        # The same bytes, without an id, after the user was deleted: a new registration.
        # The id follows from the deleted user's, so a repetition of this has it, too.
        again = uuid5(item.registration_id, str(stored.user_id))
        item = item.model_copy(update={"registration_id": again})
        stored = await registrations.store(item)
    failpoint("w14")
    template = MAIL_FOR[stored.outcome]
    if registration.without_mail:
        await registrations.suppress_mail(
            SuppressedMail(
                message_id=notification_id(item.registration_id, template),
                recipient=data.email,
                template=template,
                user_id=stored.user_id,
                registration_id=item.registration_id,
            )
        )
        log.info("registration.stored_without_mail", outcome=stored.outcome, user_id=stored.user_id)
        return
    await publisher.publish(
        EmailRequested(
            to=data.email,
            template=template,
            user_id=stored.user_id,
            registration_id=item.registration_id,
        ),
        message_id=notification_id(item.registration_id, template),
        correlation_id=registration.correlation_id,
    )
    failpoint("w16")
    log.info("registration.stored", outcome=stored.outcome, user_id=stored.user_id)


def to_store(registration: Envelope[RegistrationSubmitted]) -> RegistrationToStore:
    """The row of a registration, not validated again: its contract has the same rules."""
    data = registration.data
    return RegistrationToStore.model_construct(
        registration_id=registration.id,
        name=data.name,
        surname=data.surname,
        email=data.email,
        received_at=data.timestamp or registration.published_at or datetime.now(UTC),
    )
