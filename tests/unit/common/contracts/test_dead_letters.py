from uuid import UUID, uuid4

import pytest
from pydantic import ValidationError

from common.contracts.dead_letters import DryRunRequest, RedriveRequest

ONE = UUID("0192f7a4-5b7c-4c3e-9f10-2b6d1c3a4e5f")


@pytest.mark.parametrize(
    ("wish", "is_meant"),
    [
        ({"all": True}, True),
        ({"ids": [str(ONE)]}, True),
        ({"ids": [str(uuid4())]}, False),
        ({"route": "user.registration"}, True),
        ({"route": "report.requests"}, False),
        ({"code": "malformed"}, True),
        ({"code": "too_large"}, False),
        ({"ids": [str(ONE)], "code": "too_large"}, False),
        ({"ids": [str(ONE)], "code": "malformed", "route": "user.registration"}, True),
        ({"all": True, "code": "too_large"}, False),
    ],
)
def test_what_is_named_must_all_be_true_of_a_letter(
    wish: dict[str, object],
    is_meant: bool,  # noqa: FBT001 - the answer
) -> None:
    request = RedriveRequest.model_validate(wish)

    assert request.matches(ONE, "user.registration", "malformed") is is_meant


@pytest.mark.parametrize(
    "wish", [{}, {"all": False}, {"ids": []}, {"route": "elsewhere", "all": True}, {"code": ""}]
)
def test_nothing_is_meant_by_mistake(wish: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DryRunRequest.model_validate(wish)
