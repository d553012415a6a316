from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.contracts.registrations import RegistrationRequest
from common.errors import IdempotencyKeyReusedError
from frontend import identity
from frontend.identity import Identities

SECRET = "a secret of thirty-two characters"


def a_request(**changes: str) -> RegistrationRequest:
    values = {"name": "Ada", "surname": "Lovelace", "email": "ada@example.org"}
    return RegistrationRequest.model_validate(values | changes)


@pytest.fixture
def identities() -> Identities:
    return Identities(SECRET)


def test_the_same_key_and_body_are_the_same_registration_everywhere_and_for_ever(
    identities: Identities,
) -> None:
    elsewhere = Identities(SECRET)

    assert identities.identify(a_request(), "k-1") == elsewhere.identify(a_request(), "k-1")
    assert identities.identify(a_request(), "k-1") == UUID("14adceff-05b5-4cb2-ab5b-6f99bc5d222e")


def test_an_id_of_ours_is_told_from_any_other(identities: Identities) -> None:
    keyed, random = identities.identify(a_request(), "k-1"), identities.identify(a_request(), None)

    for ours in (keyed, random):
        assert identities.is_ours(ours)
        assert not Identities(SECRET[::-1]).is_ours(ours)
        for bit in range(128):
            assert not identities.is_ours(UUID(int=ours.int ^ 1 << bit)), bit
    assert not any(identities.is_ours(uuid4()) for _ in range(1000))
    assert not identities.is_ours(UUID(int=0))


def test_the_id_is_a_uuid_that_looks_random(identities: Identities) -> None:
    assert identities.identify(a_request(), "k-1").version == 4
    assert identities.identify(a_request(), None).version == 4


@pytest.mark.parametrize(
    "changes", [{"name": "Augusta"}, {"surname": "King"}, {"email": "ada@example.com"}]
)
def test_another_body_is_another_registration(
    identities: Identities, changes: dict[str, str]
) -> None:
    first = identities.identify(a_request(), "k-1")

    assert identities.identify(a_request(**changes), "k-1") != first


def test_another_key_or_another_secret_is_another_registration(identities: Identities) -> None:
    first = identities.identify(a_request(), "k-1")

    assert identities.identify(a_request(), "k-2") != first
    assert Identities(SECRET[::-1]).identify(a_request(), "k-1") != first


def test_case_of_the_address_and_spaces_do_not_matter(identities: Identities) -> None:
    retyped = a_request(name=" Ada ", email=" ADA@Example.ORG")

    assert identities.identify(retyped, "k-1") == identities.identify(a_request(), "k-1")


def test_without_a_key_every_request_is_a_registration_of_its_own(identities: Identities) -> None:
    assert len({identities.identify(a_request(), None) for _ in range(100)}) == 100


@given(st.text(st.characters(codec="ascii"), min_size=1), st.text("ab'", min_size=1, max_size=3))
def test_key_and_body_can_not_be_shifted_into_each_other(key: str, tail: str) -> None:
    identities = Identities(SECRET)

    shifted = identities.identify(a_request(name="x" + tail), key)

    assert shifted != identities.identify(a_request(name="x"), key + tail)
    assert shifted != identities.identify(a_request(name="x", surname=tail + "Lovelace"), key)


def test_a_key_that_was_accepted_with_another_body_is_refused(identities: Identities) -> None:
    identities.remember(a_request(), "k-1")

    identities.check_reuse(a_request(email="ADA@example.org"), "k-1")
    identities.check_reuse(a_request(name="Eve"), "k-2")
    with pytest.raises(IdempotencyKeyReusedError):
        identities.check_reuse(a_request(name="Eve"), "k-1")


def test_a_key_that_was_never_accepted_is_free(identities: Identities) -> None:
    identities.check_reuse(a_request(), "k-1")
    identities.check_reuse(a_request(name="Eve"), "k-1")


def test_the_oldest_keys_are_forgotten_first(
    identities: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "REMEMBERED_KEYS", 2)
    for key in ("k-1", "k-2", "k-3"):
        identities.remember(a_request(), key)

    identities.check_reuse(a_request(name="Eve"), "k-1")
    for key in ("k-2", "k-3"):
        with pytest.raises(IdempotencyKeyReusedError):
            identities.check_reuse(a_request(name="Eve"), key)
