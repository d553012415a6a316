from typing import Annotated
from uuid import uuid4

import pytest
from pydantic import Field

from common.contracts.base import Body
from common.contracts.notifications import ClaimRequests
from common.contracts.registrations import RegistrationsToStore
from common.http.json_types import NUMBER, TRUTH, _doubtful, mistaken


class Inner(Body):
    count: int | None = None


class Outer(Body):
    share: float = 0.5
    limit: Annotated[int, Field(ge=0)] = 1
    is_forced: bool = False
    items: list[Inner] = []
    inner: Inner | None = None
    text: str = ""
    free: dict[str, str | int | float | bool | None] = {}


def found(values: dict[str, object]) -> list[tuple[str, str]]:
    return [
        (error.pointer, error.detail) for error in mistaken(Outer.model_validate(values), values)
    ]


@pytest.mark.parametrize(
    ("values", "pointer", "detail"),
    [
        ({"limit": True}, "/limit", NUMBER),
        ({"limit": "7"}, "/limit", NUMBER),
        ({"share": "0.5"}, "/share", NUMBER),
        ({"share": False}, "/share", NUMBER),
        ({"isForced": 1}, "/isForced", TRUTH),
        ({"isForced": "yes"}, "/isForced", TRUTH),
        ({"is_forced": 0.0}, "/is_forced", TRUTH),
        ({"items": [{"count": 1}, {"count": True}]}, "/items/1/count", NUMBER),
        ({"inner": {"count": "1"}}, "/inner/count", NUMBER),
    ],
)
def test_a_guessed_type_is_a_mistake(values: dict[str, object], pointer: str, detail: str) -> None:
    assert found(values) == [(pointer, detail)]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"limit": 7, "share": 1, "isForced": True},
        {"limit": 7.0, "share": 0.25},
        {"text": "1", "inner": None, "items": [{"count": None}, {}]},
        {"free": {"a": True, "b": "1", "c": 1, "d": 1.5, "e": None}},
    ],
)
def test_what_says_its_type_is_none(values: dict[str, object]) -> None:
    assert found(values) == []


def test_bodies_of_texts_alone_cost_nothing() -> None:
    assert _doubtful(RegistrationsToStore) == ()


def test_a_number_deep_in_a_bulk_request_is_named_by_its_place() -> None:
    claim = {
        "messageId": str(uuid4()),
        "leaseId": str(uuid4()),
        "template": "welcome",
        "recipient": "ada@example.org",
    }
    values = {"claims": [claim, claim | {"userId": True}]}

    (error,) = mistaken(ClaimRequests.model_validate(values), values)

    assert error.pointer == "/claims/1/userId"
