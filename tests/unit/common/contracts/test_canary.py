from uuid import UUID, uuid1, uuid3, uuid4, uuid5

from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from common.contracts.canary import (
    FIRST_CANARY,
    LAST_CANARY,
    canary_address,
    is_canary,
    new_canary_id,
)
from common.contracts.rules import EmailAddress


def test_a_canary_is_told_by_its_id() -> None:
    canary = new_canary_id()

    assert is_canary(canary)
    assert is_canary(UUID(str(canary)))
    assert str(canary).startswith("63616e61-7279-8")  # "canary" in ASCII


def test_its_id_is_a_uuid_as_the_standard_has_it() -> None:
    for _ in range(100):
        assert (new_canary_id().version, new_canary_id().variant) == (8, uuid4().variant)


def test_no_two_are_the_same() -> None:
    assert len({new_canary_id() for _ in range(1000)}) == 1000


def test_nothing_else_is_one() -> None:
    others = (uuid1(), uuid3(uuid4(), "canary"), uuid4(), uuid5(uuid4(), "canary"))

    assert not any(is_canary(other) for other in others)
    assert not is_canary(UUID(bytes=b"canary" + b"\0" * 10, version=4))
    assert not is_canary(None)


@given(st.uuids() | st.integers(-2, 2).map(lambda step: UUID(int=FIRST_CANARY.int + step)))
def test_a_range_of_ids_says_the_same_in_sql(registration_id: UUID) -> None:
    assert is_canary(registration_id) == (FIRST_CANARY <= registration_id <= LAST_CANARY)
    after = UUID(int=LAST_CANARY.int + 1)
    assert is_canary(LAST_CANARY)
    assert not is_canary(after)


def test_its_address_is_one_that_every_contract_takes() -> None:
    address = canary_address(new_canary_id())

    assert TypeAdapter(EmailAddress).validate_python(address) == address
