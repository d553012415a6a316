import json
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field
from yarl import URL

from common.contracts.base import Body
from common.contracts.reports import Day
from common.contracts.rules import NAME_STRAY, EmailAddress, Instant, PersonName
from common.errors import InvalidError, MalformedError
from common.http.api import Api, answer
from common.http.app import base_app
from common.http.validation import WHOLE_NUMBER, validate, validate_json
from common.readiness import Readiness
from tests.services import serving


class Size(StrEnum):
    SMALL = "small"
    LARGE = "large"


class Pet(Body):
    pet_name: PersonName
    nick_names: list[PersonName] = []
    size: Size = Size.SMALL


class PetPath(Body):
    pet_id: int


class PetQuery(Body):
    page_size: Annotated[int, Field(ge=1, le=10)] = 5
    tame: bool = True


api = Api()


@api.post("/pets", body=Pet, returns={201: Pet})
async def create_pet(_request: web.Request, *, body: Pet) -> web.StreamResponse:
    """Take in a pet."""
    return answer(body, status=201, headers={"Location": "/pets/1"})


@api.put("/pets/{pet_id}", path=PetPath, query=PetQuery, body=Pet, returns={200: Pet})
async def replace_pet(
    _request: web.Request, *, path: PetPath, query: PetQuery, body: Pet
) -> web.StreamResponse:
    """Replace a pet."""
    return web.json_response([path.pet_id, query.page_size, query.tame, body.pet_name])


@api.post("/herds", body=Pet, max_body_bytes=100_000, returns={200: None})
async def create_herd(_request: web.Request, *, body: Pet) -> web.StreamResponse:
    """Take in many."""
    return web.Response(text=body.pet_name)


@api.post("/forms", form=Pet, returns={200: None})
async def submit_form(_request: web.Request, *, form: Pet) -> web.StreamResponse:
    """Take a form."""
    return web.Response(text=form.pet_name)


@pytest.fixture
async def client() -> AsyncIterator[TestClient[Any, Any]]:
    app = base_app("test", api, description="", readiness=Readiness())
    async with serving(app) as client:
        yield client


def errors_of(values: object) -> dict[str, str]:
    with pytest.raises(InvalidError) as caught:
        validate(Pet, values)
    return {error.pointer: error.detail for error in caught.value.errors}


async def test_a_good_request_is_handed_over_validated(client: TestClient[Any, Any]) -> None:
    async with client.put("/pets/7?pageSize=3&tame=false", json={"petName": " Rex "}) as answer:
        assert await answer.json() == [7, 3, False, "Rex"]


async def test_who_followed_half_a_link_is_told_so(client: TestClient[Any, Any]) -> None:
    async with client.put("/pets/seven", json={"petName": "Rex"}) as answer:
        said = await answer.json()

        assert answer.status == 422
        assert said["detail"] == (
            "petId in the address is not valid. Check that it was copied whole."
        )
        assert [error["pointer"] for error in said["errors"]] == ["petId"]


async def test_an_answer_is_written_in_camel_case(client: TestClient[Any, Any]) -> None:
    async with client.post("/pets", json={"petName": "Rex", "size": "large"}) as answer:
        assert answer.status == 201
        assert answer.headers["Location"] == "/pets/1"
        assert await answer.json() == {"petName": "Rex", "nickNames": [], "size": "large"}


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/json; charset=utf-8", "application/merge-patch+json"],
)
async def test_json_is_read_under_every_name_it_has(
    client: TestClient[Any, Any], content_type: str
) -> None:
    headers = {"Content-Type": content_type}

    async with client.post("/pets", data=b'{"petName": "Rex"}', headers=headers) as answer:
        assert answer.status == 201


async def test_a_form_is_read(client: TestClient[Any, Any]) -> None:
    async with client.post("/forms", data={"petName": "Zoë", "size": "large"}) as answer:
        assert await answer.text() == "Zoë"


@pytest.mark.parametrize(("size", "status"), [(64 * 1024, 201), (64 * 1024 + 1, 413)])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_may_have_64_kibibytes(
    client: TestClient[Any, Any],
    size: int,
    status: int,
    chunked: bool,  # noqa: FBT001
) -> None:
    data = b'{"petName": "Rex"}'.ljust(size)

    async def chunks() -> AsyncIterator[bytes]:
        yield data[:1000]
        yield data[1000:]

    headers = {"Content-Type": "application/json"}
    async with client.post("/pets", data=chunks() if chunked else data, headers=headers) as answer:
        assert answer.status == status


@pytest.mark.parametrize(("size", "status"), [(100_000, 200), (100_001, 413)])
async def test_an_operation_may_read_more_than_the_others(
    client: TestClient[Any, Any], size: int, status: int
) -> None:
    data = b'{"petName": "Rex"}'.ljust(size)

    headers = {"Content-Type": "application/json"}
    async with client.post("/herds", data=data, headers=headers) as answer:
        assert answer.status == status


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, {"/petName": "This field is required."}),
        ({"petName": ""}, {"/petName": "This field is required."}),
        ({"petName": None}, {"/petName": "This must be text."}),
        ({"petName": "\ud800"}, {"/petName": "This must be text."}),
        ({"petName": "x" * 101}, {"/petName": "Use at most 100 characters."}),
        ({"petName": "R2D2"}, {"/petName": NAME_STRAY.format(character="“2”")}),
        ({"petName": "Rex", "a/b~c": 1}, {"/a~1b~0c": "There is no such field."}),
        (
            {"petName": "Rex", "nickNames": ["a", "b7"]},
            {"/nickNames/1": NAME_STRAY.format(character="“7”")},
        ),
        ([], {"": "This must be a JSON object."}),
        (None, {"": "This must be a JSON object."}),
    ],
)
def test_each_wrong_field_is_named_by_a_pointer_and_told_in_plain_words(
    values: object, expected: dict[str, str]
) -> None:
    assert errors_of(values) == expected


def test_what_is_wrong_is_told_for_all_fields_at_once_without_quoting_them() -> None:
    errors = errors_of(
        {"petName": "sir-7", "nickNames": "sir-8", "size": "sir-9", "more": "sir-10"}
    )

    assert set(errors) == {"/petName", "/nickNames", "/size", "/more"}
    assert "sir-" not in str(errors)


@pytest.mark.parametrize(
    ("url", "pointers"),
    [
        ("/pets/x", ["pet_id", "petId"]),
        ("/pets/7?pageSize=0", ["pageSize"]),
        ("/pets/7?pageSize=1&pageSize=1", ["pageSize"]),
        ("/pets/7?page_size=1&page_size=2", ["page_size"]),
        ("/pets/7?nothing=1", ["nothing"]),
    ],
)
async def test_a_wrong_parameter_is_named(
    client: TestClient[Any, Any], url: str, pointers: list[str]
) -> None:
    async with client.put(URL(url), json={"petName": "Rex"}) as answer:
        document = json.loads(await answer.text())

    assert answer.status == 422
    assert document["errors"][0]["pointer"] in pointers


TRUTH = "This must be true or false."
NUMBER = "This must be a number."


class Tag(Body):
    count: int | None = None


class Typed(Body):
    share: float = 0.5
    limit: Annotated[int, Field(ge=0)] = 1
    is_forced: bool = False
    items: list[Tag] = []
    inner: Tag | None = None
    text: str = ""
    free: dict[str, str | int | float | bool | None] = {}
    any: object = None
    id: UUID | None = None
    at: Instant | None = None
    on: Day | None = None
    size: Size = Size.SMALL
    email: EmailAddress | None = None
    kinds: frozenset[Size] = frozenset()


def read(values: object) -> Typed:
    return validate_json(Typed, json.dumps(values).encode())


@pytest.mark.parametrize(
    ("values", "pointer", "detail"),
    [
        ({"limit": True}, "/limit", WHOLE_NUMBER),
        ({"limit": "7"}, "/limit", WHOLE_NUMBER),
        ({"limit": 7.0}, "/limit", WHOLE_NUMBER),
        ({"limit": 7.5}, "/limit", WHOLE_NUMBER),
        ({"share": "0.5"}, "/share", NUMBER),
        ({"share": False}, "/share", NUMBER),
        ({"isForced": 1}, "/isForced", TRUTH),
        ({"isForced": "yes"}, "/isForced", TRUTH),
        ({"is_forced": 0.0}, "/is_forced", TRUTH),
        ({"items": [{"count": 1}, {"count": True}]}, "/items/1/count", WHOLE_NUMBER),
        ({"inner": {"count": "1"}}, "/inner/count", WHOLE_NUMBER),
        ({"text": 1}, "/text", "This must be text."),
        ({"at": 1_767_225_600}, "/at", "Write a time like 2026-01-31T09:30:00Z."),
        ({"at": "1767225600"}, "/at", "Write a time like 2026-01-31T09:30:00Z."),
        ({"on": 20_454}, "/on", "Write a day like 2026-01-31."),
        ({"on": "2026-02-30"}, "/on", "Write a day like 2026-01-31."),
        ([], "", "This must be a JSON object."),
        (None, "", "This must be a JSON object."),
    ],
)
def test_no_value_of_a_json_body_stands_for_one_of_another_type(
    values: object, pointer: str, detail: str
) -> None:
    with pytest.raises(InvalidError) as caught:
        read(values)

    assert [(error.pointer, error.detail) for error in caught.value.errors] == [(pointer, detail)]


def test_a_json_body_holds_texts_for_what_json_has_no_type_for() -> None:
    body = read(
        {
            "share": 1,
            "limit": 7,
            "isForced": True,
            "inner": None,
            "items": [{"count": None}, {}],
            "free": {"a": True, "b": "1", "c": 1, "d": 1.5, "e": None},
            "id": "0192f7a4-5b7c-7c3e-9f10-2b6d1c3a4e5f",
            "at": "2026-01-31T10:30:00+01:00",
            "on": "2026-01-31",
            "size": "large",
            "email": " Ada <Ada@EXAMPLE.org>",
            "kinds": ["small", "large"],
        }
    )

    assert (body.share, body.limit, body.is_forced, body.inner) == (1.0, 7, True, None)
    assert body.items == [Tag(), Tag()]
    assert body.free == {"a": True, "b": "1", "c": 1, "d": 1.5, "e": None}
    assert (body.free["a"], body.free["c"]) == (True, 1)
    assert type(body.free["a"]) is bool
    assert body.id == UUID("0192f7a4-5b7c-7c3e-9f10-2b6d1c3a4e5f")
    assert body.at == datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
    assert body.on == date(2026, 1, 31)
    assert body.size is Size.LARGE
    assert body.kinds == {Size.SMALL, Size.LARGE}
    assert body.email == "Ada@example.org"


def test_json_that_nests_too_deep_for_either_reader_is_no_json() -> None:
    for depth in (500, 60_000):
        raw = b'{"any": ' + b"[" * depth + b"]" * depth + b"}"
        with pytest.raises(MalformedError, match="too deep"):
            validate_json(Typed, raw)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc\0ß\\"), inner),
)  # fmt: skip


@given(JSON_VALUES, st.booleans())
def test_both_readers_of_json_read_the_same(value: object, ascii_only: bool) -> None:  # noqa: FBT001
    raw = json.dumps({"any": value}, ensure_ascii=ascii_only).encode()

    read = validate_json(Typed, raw).any

    assert repr(read) == repr(value)  # as == takes True for 1, and 1.0 as well
