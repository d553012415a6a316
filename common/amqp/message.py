"""A message with what AMQP says about it: how one is written, how any bytes are read."""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, Generic, TypeVar
from uuid import UUID, uuid5

from pydantic import TypeAdapter, ValidationError

from common.context import valid_id, valid_traceparent
from common.contracts import strict_json
from common.contracts.base import Contract
from common.contracts.encoding import is_plain_text
from common.contracts.rules import Instant
from common.errors import MalformedError, TooLargeError, UnknownVersionError

MAX_BODY_BYTES = 64 * 1024
"""Largest body that is read; the same as over HTTP."""

FOREIGN_IDS = UUID("c0d8e6c4-6d43-5d3e-9a4c-3a4f1f0f9a51")
"""Namespace of the ids we derive for messages whose own id is no UUID, or missing."""

DERIVED_VERSION = 5
"""Version of the ids that we derive (RFC 9562, 5.5)."""

REMEMBERED_IDS = 1024
"""Ids of which a process knows the UUID: those in flight, each asked for several times."""

ATTEMPT = "x-attempt"
FIRST_SEEN = "x-first-seen"

DELIVERY_COUNT = "x-delivery-count"
"""Header of the broker: how often it delivered this copy before."""

PREVIOUS_DELIVERIES = "x-previous-deliveries"
"""How often copies before this one were delivered; the broker begins anew with each."""

DEFERRALS = "x-deferrals"
"""How often copies before this one were deferred because they would not have been alone."""

MAX_TRUSTED_COUNT = 200
"""Twice the limit of deliveries; a header that claims more was made up."""

TRACEPARENT = "traceparent"

WITHOUT_MAIL = "x-without-mail"
"""Store the registration and send no mail: it was mailed before the database forgot it."""

Data_co = TypeVar("Data_co", bound=Contract, covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope(Generic[Data_co]):
    """A message that was understood."""

    id: UUID
    """The identity of the work: the same id twice is the same work."""

    correlation_id: str
    """The request that started it all."""

    data: Data_co

    attempt: int = 1
    """Which try this is, by our own count; outages are not counted."""

    last_attempt: bool = False
    """Whether failing once more dead-letters the message."""

    published_at: datetime | None = None
    """What the publisher says."""

    without_mail: bool = False
    """Whether no mail is to be sent for it, as a repair asks."""

    body: bytes = field(default=b"", compare=False, repr=False)
    """Its bytes, as they were published."""

    @property
    def is_id_derived(self) -> bool:
        """Whether the publisher gave no id, so that the same bytes sent again have this one again.

        Also of a copy, which names it. Found when asked: hardly anybody does, and it takes a digest
        of the body.
        """
        is_named = self.id.int >> 76 & 0xF != DERIVED_VERSION
        return not is_named and self.id == _id_of_body(self.body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A message as the broker delivered it: bytes, and claims that are not yet believed."""

    body: bytes
    routing_key: str
    message_id: object = None
    correlation_id: object = None
    type: object = None
    content_type: object = None
    content_encoding: object = None
    app_id: object = None
    timestamp: object = None
    priority: object = None
    headers: dict[str, Any]

    @property
    def id(self) -> UUID:
        """The message's identity, the same for every delivery of the same message."""
        if not isinstance(self.message_id, str) or not self.message_id:
            return _id_of_body(self.body)
        return _identity(self.message_id)

    @property
    def attempt(self) -> int:
        """Our own count of tries: 1 where it is missing or nonsense."""
        attempt = self.headers.get(ATTEMPT)
        if isinstance(attempt, int) and not isinstance(attempt, bool) and attempt >= 1:
            return attempt
        return 1

    @property
    def previous_deliveries(self) -> int:
        """How often the message was delivered before without becoming settled."""
        return self._count(DELIVERY_COUNT) + self._count(PREVIOUS_DELIVERIES)

    @property
    def deferrals(self) -> int:
        """How often it was deferred because other messages were in flight."""
        return self._count(DEFERRALS)

    def _count(self, header: str) -> int:
        count = self.headers.get(header)
        if not isinstance(count, int) or isinstance(count, bool):
            return 0
        return count if 0 < count <= MAX_TRUSTED_COUNT else 0

    @property
    def valid_correlation_id(self) -> str:
        """The correlation id, or the message's own where there is none that may be logged."""
        return valid_id(self.correlation_id) or str(self.id)

    @property
    def traceparent(self) -> str:
        """The trace context, if there is a valid one."""
        return valid_traceparent(self.headers.get(TRACEPARENT))


@lru_cache(maxsize=REMEMBERED_IDS)
def _identity(message_id: str) -> UUID:
    try:
        return UUID(message_id)
    except ValueError:
        return uuid5(FOREIGN_IDS, message_id)


def read(
    delivery: Delivery, contracts: Collection[type[Contract]], max_retries: int
) -> Envelope[Contract]:
    """The envelope of a delivery; one that names no type is read as the route's default.

    Raises:
        TooLargeError: The body is larger than anything we write.
        UnknownVersionError: The type is none of ``contracts``.
        MalformedError: The body is not JSON or not the contract.
    """
    if len(delivery.body) > MAX_BODY_BYTES:
        raise TooLargeError(f"{len(delivery.body)} bytes; at most {MAX_BODY_BYTES} are read.")
    contract = _contract(delivery, contracts)
    if not is_plain_text(delivery.content_encoding):
        raise MalformedError("The body is encoded; only plain UTF-8 is read.")
    try:
        data = contract.model_validate(strict_json.loads(delivery.body))
    except ValidationError as error:
        # Which fields, never their values: those are personal.
        raise MalformedError(f"Not a valid {contract.type_name}: {_fields(error)}.") from None
    return Envelope(
        id=delivery.id,
        correlation_id=delivery.valid_correlation_id,
        data=data,
        attempt=delivery.attempt,
        last_attempt=delivery.attempt > max_retries,
        published_at=_instant(delivery.timestamp),
        body=delivery.body,
        without_mail=delivery.headers.get(WITHOUT_MAIL) is True,
    )


def _id_of_body(body: bytes) -> UUID:
    return uuid5(FOREIGN_IDS, body.hex())


_INSTANT: TypeAdapter[datetime] = TypeAdapter(Instant)


def _instant(claimed: object) -> datetime | None:
    """The publisher's time, unless no clock can have said it."""
    try:
        return _INSTANT.validate_python(claimed) if isinstance(claimed, datetime) else None
    except ValidationError:
        return None


def _contract(delivery: Delivery, contracts: Collection[type[Contract]]) -> type[Contract]:
    names_none = delivery.type in (None, "")
    for contract in contracts:
        if contract.is_default if names_none else contract.type_name == delivery.type:
            return contract
    raise UnknownVersionError(
        "Unknown message type. Supported: "
        f"{', '.join(contract.type_name for contract in contracts)}."
    )


def _fields(error: ValidationError) -> str:
    items = error.errors(include_input=False, include_url=False, include_context=False)
    names = {str(item["loc"][0])[:50] if item["loc"] else "the whole body" for item in items}
    return ", ".join(sorted(names)[:10])
