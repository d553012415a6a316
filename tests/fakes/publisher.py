"""A publisher without a broker."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from common.amqp.publisher import Publisher
from common.contracts.base import Contract
from common.errors import UserStreamError


@dataclass(frozen=True, slots=True)
class Sent:
    """One message, as the broker gets it."""

    exchange: str
    routing_key: str
    body: bytes
    properties: Mapping[str, Any]
    headers: Mapping[str, Any]
    expiration: timedelta | None = None

    @property
    def id(self) -> UUID:
        return UUID(self.properties["message_id"])


class FakePublisher(Publisher):
    """Take every message as confirmed, or raise ``error``; the real one makes the messages.

    ``tests/integration/fakes/test_publisher.py`` compares the two.
    """

    def __init__(self, error: UserStreamError | None = None) -> None:
        self._service = "test"  # all that publish needs; there is no connection
        self.error = error
        self.attempted: list[Sent] = []
        """Every message, confirmed or not."""
        self.sent: list[Sent] = []
        """Those that were confirmed."""

    async def send(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        *,
        properties: Mapping[str, Any],
        headers: Mapping[str, Any],
        expiration: timedelta | None = None,
    ) -> None:
        message = Sent(exchange, routing_key, body, properties, headers, expiration)
        self.attempted.append(message)
        if self.error is not None:
            raise self.error
        self.sent.append(message)

    @property
    def published(self) -> list[tuple[Any, UUID]]:
        """Confirmed contracts and their ids."""
        return [(_contract(message), message.id) for message in self.sent]


def _contract(message: Sent) -> Contract:
    contract = Contract.by_type(message.properties["type"])
    assert contract is not None
    return contract.model_validate_json(message.body)
