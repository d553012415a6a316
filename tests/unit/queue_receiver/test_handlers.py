from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID, uuid4, uuid5

import pytest

from common.amqp.message import FOREIGN_IDS, Envelope
from common.contracts.ids import notification_id
from common.contracts.notifications import EmailRequested, SuppressedMail, Template
from common.contracts.registrations import (
    Outcome,
    RegistrationSubmitted,
    RegistrationToStore,
    StoredRegistration,
)
from common.errors import (
    BrokerUnavailableError,
    DatabaseServiceUnavailableError,
    InvalidError,
    UserStreamError,
)
from queue_receiver.handlers import MAIL_FOR, store_registration
from tests.fakes.publisher import FakePublisher

PUBLISHED_AT = datetime(2026, 1, 31, 9, 31, tzinfo=UTC)
PRESSED_AT = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


class FakeRegistrations:
    """Keeps registrations in memory, each once, as the database does."""

    def __init__(self) -> None:
        self.stored: dict[UUID, RegistrationToStore] = {}
        self.answers: dict[UUID, StoredRegistration] = {}
        self.error: UserStreamError | None = None
        self.suppressed: list[SuppressedMail] = []
        self.deleted: set[int] = set()
        """Users that are gone."""

    async def store(self, registration: RegistrationToStore) -> StoredRegistration:
        if self.error is not None:
            raise self.error
        key = registration.registration_id
        if key not in self.answers:
            users = {
                self.stored[other].email: answer.user_id
                for other, answer in self.answers.items()
                if answer.user_id not in self.deleted
            }
            known = users.get(registration.email)
            self.stored[key] = registration
            self.answers[key] = StoredRegistration(
                registration_id=key,
                outcome=Outcome.DUPLICATE if known else Outcome.STORED,
                user_id=known or len(self.stored),
            )
        answer = self.answers[key]
        return answer.model_copy(update={"user_exists": answer.user_id not in self.deleted})

    async def suppress_mail(self, mail: SuppressedMail) -> None:
        self.suppressed.append(mail)


class Receiver:
    """The handler with fakes of the services it calls."""

    def __init__(self) -> None:
        self.registrations = FakeRegistrations()
        self.publisher = FakePublisher()

    async def handle(self, registration: Envelope[RegistrationSubmitted]) -> None:
        await store_registration(
            registration, registrations=self.registrations, publisher=self.publisher
        )


def a_registration(
    *,
    email: str = "ada@example.org",
    pressed_at: datetime | None = None,
    published_at: datetime | None = None,
) -> Envelope[RegistrationSubmitted]:
    return Envelope(
        id=uuid4(),
        correlation_id="c-7",
        data=RegistrationSubmitted(
            name="Ada", surname="Lovelace", email=email, timestamp=pressed_at
        ),
        published_at=published_at,
    )


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


async def test_a_registration_is_stored_and_its_mail_asked_for(receiver: Receiver) -> None:
    registration = a_registration(pressed_at=PRESSED_AT)

    await receiver.handle(registration)

    assert receiver.registrations.stored == {
        registration.id: RegistrationToStore(
            registration_id=registration.id,
            name="Ada",
            surname="Lovelace",
            email="ada@example.org",
            received_at=PRESSED_AT,
        )
    }
    ((mail, _),) = receiver.publisher.published
    assert mail == EmailRequested(
        to="ada@example.org",
        template=Template.WELCOME,
        user_id=1,
        registration_id=registration.id,
    )
    assert receiver.publisher.sent[0].properties["correlation_id"] == "c-7"


async def test_the_mail_request_holds_no_name(receiver: Receiver) -> None:
    # A name that anyone may have typed is mailed to no address that is not confirmed.
    await receiver.handle(a_registration())

    ((mail, _),) = receiver.publisher.published
    assert "Ada" not in mail.model_dump_json()
    assert "Lovelace" not in mail.model_dump_json()


async def test_handling_a_registration_twice_asks_for_the_same_mail(receiver: Receiver) -> None:
    registration = a_registration()

    await receiver.handle(registration)
    await receiver.handle(registration)

    assert len(receiver.registrations.stored) == 1
    first, second = receiver.publisher.published
    assert first == second


async def test_who_is_registered_already_is_told_so(receiver: Receiver) -> None:
    await receiver.handle(a_registration())
    again = a_registration()
    await receiver.handle(again)

    (_, first_id), (mail, second_id) = receiver.publisher.published
    assert mail.template is Template.ALREADY_REGISTERED
    assert mail.registration_id == again.id
    assert mail.user_id == 1
    assert second_id != first_id


async def test_the_id_of_the_mail_follows_from_the_registration(receiver: Receiver) -> None:
    one, other = a_registration(), a_registration(email="grace@example.org")

    await receiver.handle(one)
    await receiver.handle(other)

    ids = {message_id for _, message_id in receiver.publisher.published}
    assert len(ids) == 2
    assert not ids & {one.id, other.id}


@pytest.mark.parametrize(
    ("pressed_at", "published_at", "received_at"),
    [
        (PRESSED_AT, PUBLISHED_AT, PRESSED_AT),
        (None, PUBLISHED_AT, PUBLISHED_AT),
    ],
)
async def test_received_is_when_the_person_pressed_or_else_when_it_was_published(
    receiver: Receiver,
    pressed_at: datetime | None,
    published_at: datetime | None,
    received_at: datetime,
) -> None:
    registration = a_registration(pressed_at=pressed_at, published_at=published_at)

    await receiver.handle(registration)

    assert receiver.registrations.stored[registration.id].received_at == received_at


async def test_received_is_now_where_the_message_says_nothing(receiver: Receiver) -> None:
    registration = a_registration()
    before = datetime.now(UTC)

    await receiver.handle(registration)

    received_at = receiver.registrations.stored[registration.id].received_at
    assert before <= received_at <= datetime.now(UTC)


@pytest.mark.parametrize(
    "error", [DatabaseServiceUnavailableError("away"), InvalidError("not storable")]
)
async def test_no_mail_is_asked_for_what_is_not_stored(
    receiver: Receiver, error: UserStreamError
) -> None:
    receiver.registrations.error = error

    with pytest.raises(type(error)):
        await receiver.handle(a_registration())

    assert receiver.publisher.published == []


async def test_a_crash_between_storing_and_asking_is_made_good_by_the_next_delivery(
    receiver: Receiver,
) -> None:
    registration = a_registration()
    receiver.publisher.error = BrokerUnavailableError("away")
    with pytest.raises(BrokerUnavailableError):
        await receiver.handle(registration)

    receiver.publisher.error = None
    await receiver.handle(registration)

    ((mail, _),) = receiver.publisher.published
    assert mail.template is Template.WELCOME  # not "already registered" by its own first try


def test_every_outcome_has_its_mail() -> None:
    assert set(MAIL_FOR) == set(Outcome)


@pytest.mark.parametrize("is_derived", [True, False])
async def test_only_what_came_without_an_id_registers_somebody_deleted_again(
    receiver: Receiver, *, is_derived: bool
) -> None:
    registration = replace(a_registration(), body=b"{}")
    if is_derived:
        registration = replace(registration, id=uuid5(FOREIGN_IDS, b"{}".hex()))
    await receiver.handle(registration)
    receiver.registrations.deleted.add(1)

    for _ in range(2):  # twice: the second time as after a crash
        await receiver.handle(registration)

    mails = {message_id for _, message_id in receiver.publisher.published}
    assert len(mails) == len(receiver.registrations.stored) == 1 + is_derived


async def test_who_is_brought_back_without_a_mail_gets_none_and_it_is_on_record(
    receiver: Receiver,
) -> None:
    registration = replace(a_registration(), without_mail=True)

    await receiver.handle(registration)

    assert receiver.publisher.published == []
    (mail,) = receiver.registrations.suppressed
    assert mail.message_id == notification_id(registration.id, Template.WELCOME)
    assert (mail.recipient, mail.user_id) == ("ada@example.org", 1)
