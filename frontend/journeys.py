"""How far registrations have come, as people may know it."""

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

from common.contracts.registrations import Journey, JourneyStatus
from frontend.identity import Identities


class Records(Protocol):
    """Where journeys are read: ``common.database_client.client`` in production."""

    async def select_journey(self, registration_id: UUID) -> Journey:
        """How far a registration has come."""
        ...

    async def select_journeys(self, registration_ids: Sequence[UUID]) -> list[Journey]:
        """How far each has come, in their order."""
        ...


class JourneyReader:
    """Reads journeys, and tells what waits to be stored from what nobody has accepted.

    database_service knows what is stored. Whether an id that it does not know was ever given
    out can be seen from the id itself: ``Identities.is_ours``.
    """

    def __init__(self, records: Records, identities: Identities) -> None:
        self._records = records
        self._identities = identities

    async def select_journey(self, registration_id: UUID) -> Journey:
        """How far a registration has come."""
        return self._told(await self._records.select_journey(registration_id))

    async def select_journeys(self, registration_ids: Sequence[UUID]) -> list[Journey]:
        """How far each has come, in their order."""
        return [self._told(each) for each in await self._records.select_journeys(registration_ids)]

    def is_ours(self, registration_id: UUID) -> bool:
        """Whether the id was given out with a 202, whatever is stored."""
        return self._identities.is_ours(registration_id)

    def _told(self, journey: Journey) -> Journey:
        if journey.status is JourneyStatus.PENDING and not self.is_ours(journey.registration_id):
            return journey.model_copy(update={"status": JourneyStatus.UNKNOWN})
        return journey
