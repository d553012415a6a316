"""FakeDeliveries and the real database_service are asked the same questions."""

from uuid import UUID, uuid4

import pytest

from common.contracts.notifications import (
    LEASE_SECONDS,
    Claim,
    ClaimRequest,
    DeliveryOutcomeOf,
    DeliveryStatus,
    Template,
)
from sender.lease import Deliveries
from tests.fakes.sender import FakeDeliveries


@pytest.fixture(params=[pytest.param(True, id="fake"), pytest.param(False, id="real")])
def deliveries(request: pytest.FixtureRequest) -> Deliveries:
    real: Deliveries = (
        FakeDeliveries() if request.param else request.getfixturevalue("database_client")
    )
    return real


def a_claim(message_id: UUID, lease_id: UUID) -> ClaimRequest:
    return ClaimRequest(
        message_id=message_id,
        lease_id=lease_id,
        template=Template.WELCOME,
        recipient="ada@example.org",
    )


def an_outcome(message_id: UUID, lease_id: UUID, status: DeliveryStatus) -> DeliveryOutcomeOf:
    return DeliveryOutcomeOf(message_id=message_id, lease_id=lease_id, status=status)


async def test_one_lease_at_a_time(deliveries: Deliveries) -> None:
    message, mine, other = uuid4(), uuid4(), uuid4()

    first = await deliveries.claim(a_claim(message, mine))
    renewed = await deliveries.claim(a_claim(message, mine))
    second = await deliveries.claim(a_claim(message, other))

    assert [first.claim, renewed.claim, second.claim] == [
        Claim.GRANTED,
        Claim.GRANTED,
        Claim.BUSY,
    ]
    assert 0 < second.retry_after_ms <= LEASE_SECONDS * 1000


@pytest.mark.parametrize("status", [DeliveryStatus.SENT, DeliveryStatus.FAILED])
async def test_what_was_sent_or_refused_is_never_granted_again(
    deliveries: Deliveries, status: DeliveryStatus
) -> None:
    message, mine = uuid4(), uuid4()
    await deliveries.claim(a_claim(message, mine))
    assert await deliveries.record_outcome(an_outcome(message, mine, status))

    assert (await deliveries.claim(a_claim(message, uuid4()))).claim is Claim.SENT


@pytest.mark.parametrize("status", [DeliveryStatus.DEFERRED, DeliveryStatus.UNSURE])
async def test_what_goes_again_is_free_at_once(
    deliveries: Deliveries, status: DeliveryStatus
) -> None:
    message, mine = uuid4(), uuid4()
    await deliveries.claim(a_claim(message, mine))
    assert await deliveries.record_outcome(an_outcome(message, mine, status))

    assert (await deliveries.claim(a_claim(message, uuid4()))).claim is Claim.GRANTED


async def test_only_the_holder_says_how_it_went(deliveries: Deliveries) -> None:
    message, mine, other = uuid4(), uuid4(), uuid4()
    await deliveries.claim(a_claim(message, mine))

    assert not await deliveries.record_outcome(an_outcome(message, other, DeliveryStatus.DEFERRED))
    assert (await deliveries.claim(a_claim(message, uuid4()))).claim is Claim.BUSY
