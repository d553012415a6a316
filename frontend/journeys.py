"""Journeys of registrations, as people may see them."""

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
    """Reads journeys, and marks ids as unknown that are neither stored nor ours.

    database_service knows what is stored. Whether the frontend made an id shows in the id itself:
    ``Identities.is_ours``.
    """

    def __init__(self, records: Records, identities: Identities) -> None:
        self._records = records
        self._identities = identities

    async def select_journey(self, registration_id: UUID) -> Journey:
        """How far a registration has come."""
        return self._marked(await self._records.select_journey(registration_id))

    async def select_journeys(self, registration_ids: Sequence[UUID]) -> list[Journey]:
        """How far each has come, in their order."""
        journeys = await self._records.select_journeys(registration_ids)
        return [self._marked(journey) for journey in journeys]

    def is_ours(self, registration_id: UUID) -> bool:
        """Whether the id was given out with a 202, whatever is stored."""
        return self._identities.is_ours(registration_id)

    def _marked(self, journey: Journey) -> Journey:
        if journey.status is JourneyStatus.PENDING and not self.is_ours(journey.registration_id):
            return journey.model_copy(update={"status": JourneyStatus.UNKNOWN})
        return journey
