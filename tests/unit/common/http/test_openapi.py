from enum import StrEnum
from typing import Any
from uuid import UUID

import pytest
from aiohttp import web
from openapi_spec_validator import validate

from common.contracts.base import Answer, Body
from common.contracts.rules import PersonName
from common.errors import BrokerUnavailableError, DuplicateEmailError, NotFoundError
from common.http.api import Api
from common.http.openapi import openapi


class Order(StrEnum):
    UP = "up"
    DOWN = "down"


class PetPath(Body):
    pet_id: UUID


class PetQuery(Body):
    sort_order: Order = Order.UP
    """Which way."""

    after: int


class Pet(Body):
    pet_name: PersonName


class StoredPet(Answer):
    pet_id: UUID
    owner: Pet | None = None


api = Api()


@api.put(
    "/pets/{pet_id}",
    path=PetPath,
    query=PetQuery,
    body=Pet,
    headers={"If-Match": "Only this version."},
    returns={200: StoredPet, 204: None},
    raises=(NotFoundError, DuplicateEmailError, BrokerUnavailableError),
)
async def replace_pet(_request: web.Request, **_: object) -> web.StreamResponse:
    """Replace a pet.

    This is for us alone.
    """
    raise NotImplementedError


@api.get("/pets.csv", query=PetQuery, returns={200: "text/csv"}, summary="All pets")
async def list_pets(_request: web.Request, **_: object) -> web.StreamResponse:
    raise NotImplementedError


@api.post("/forms", form=Pet, returns={303: None})
async def submit_form(_request: web.Request, **_: object) -> web.StreamResponse:
    """Take a form."""
    raise NotImplementedError


@pytest.fixture
def document() -> dict[str, Any]:
    return openapi("Pets", "About pets.", "1.0", api)


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    validate(document)

    assert document["openapi"] == "3.1.0"
    assert document["info"] == {"title": "Pets", "description": "About pets.", "version": "1.0"}


def test_an_operation_is_named_and_summed_up(document: dict[str, Any]) -> None:
    put, get = document["paths"]["/pets/{pet_id}"]["put"], document["paths"]["/pets.csv"]["get"]

    assert (put["operationId"], put["summary"]) == ("replace_pet", "Replace a pet")
    assert (get["operationId"], get["summary"]) == ("list_pets", "All pets")


def test_parameters_come_from_the_models_that_validate(document: dict[str, Any]) -> None:
    parameters = {
        (parameter["in"], parameter["name"]): parameter
        for parameter in document["paths"]["/pets/{pet_id}"]["put"]["parameters"]
    }

    assert set(parameters) == {
        ("path", "pet_id"),
        ("query", "sortOrder"),
        ("query", "after"),
        ("header", "If-Match"),
    }
    assert parameters["path", "pet_id"]["required"]
    assert parameters["query", "after"]["required"]
    assert not parameters["query", "sortOrder"]["required"]
    assert parameters["query", "sortOrder"]["schema"]["enum"] == ["up", "down"]


def test_bodies_and_answers_are_described_under_their_media_types(
    document: dict[str, Any],
) -> None:
    put = document["paths"]["/pets/{pet_id}"]["put"]
    schemas = document["components"]["schemas"]

    body = put["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    stored = put["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    form = document["paths"]["/forms"]["post"]["requestBody"]["content"]
    csv = document["paths"]["/pets.csv"]["get"]["responses"]["200"]["content"]
    assert schemas[body.rsplit("/", 1)[1]]["properties"]["petName"]["maxLength"] == 100
    assert "petId" in schemas[stored.rsplit("/", 1)[1]]["properties"]
    assert set(form) == {"application/x-www-form-urlencoded"}
    assert set(csv) == {"text/csv"}
    assert "content" not in put["responses"]["204"]


def test_every_error_is_described_under_its_status(document: dict[str, Any]) -> None:
    put = document["paths"]["/pets/{pet_id}"]["put"]["responses"]
    get = document["paths"]["/pets.csv"]["get"]["responses"]

    assert set(put) == {"200", "204", "400", "403", "404", "408", "409", "413", "415", "422", "503"}
    assert set(get) == {"200", "422"}
    assert "`duplicate_email`" in put["409"]["description"]
    assert put["409"]["content"] == {
        "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
    }
