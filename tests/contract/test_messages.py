"""What travels over the broker stays readable: by us tomorrow, by other programs today."""

import json
import re
from typing import Any

import pytest

from common.amqp.message import MAX_BODY_BYTES, Delivery, read
from common.contracts.base import Contract
from common.contracts.topology import ROUTES

CONTRACTS = [contract for route in ROUTES for contract in Contract.by_route(route)]
EVERY_CONTRACT = pytest.mark.parametrize("contract", CONTRACTS, ids=lambda c: c.type_name)

WRITTEN_BEFORE = {
    "user.registration.submitted.v1": [
        '{"name": "Ada", "surname": "Lovelace", "email": "ada@example.org"}',
        '{"name":"Nguyễn","surname":"O\'Brien","email":"a@b.org","timestamp":"2026-01-31T09:30:00Z"}',
        '{"email":"a@b.org","surname":"B","name":"A","timestamp":"2026-01-31T10:30:00.5+01:00"}',
        '{"name": "A", "surname": "B", "email": "a@b.org", "timestamp": null}',
    ],
    "email.notification.requested.v1": [
        '{"to": "ada@example.org", "template": "welcome"}',
        '{"to":"a@b.org","template":"report_ready","subject":"Ready","data":{"rows":7,"url":null}}',
        '{"to":"a@b.org","template":"welcome","registrationId":"0192f7a4-5b7c-7c3e-9f10-2b6d1c3a4e5f"}',
    ],
    "report.requested.v1": [
        "{}",
        '{"reportName":"users","format":"csv","startDate":"2026-01-01","columns":["id","email"]}',
        '{"endDate": "2026-01-31", "recipient": "ada@example.org"}',
    ],
}
"""Messages that may lie in a queue somewhere: add to them, never change one."""


def delivered(contract: type[Contract], body: str) -> Contract:
    """The message as its consumer reads it."""
    delivery = Delivery(
        body=body.encode(), routing_key="by.hand", type=contract.type_name, headers={}
    )
    return read(delivery, [contract], max_retries=3).data


def as_written(message: Contract) -> str:
    """The message as ``common.amqp.publisher`` writes it."""
    return message.model_dump_json(by_alias=True, exclude_none=True)


@EVERY_CONTRACT
def test_a_sample_is_read_and_written_again_without_loss(contract: type[Contract]) -> None:
    message = delivered(contract, json.dumps(dict(contract.sample)))

    assert delivered(contract, as_written(message)) == message
    assert set(contract.sample) <= set(json.loads(as_written(message)))


@EVERY_CONTRACT
def test_a_reader_ignores_what_it_does_not_know(contract: type[Contract]) -> None:
    sample = dict(contract.sample)

    more = {**sample, "addedLater": {"deep": [1, None]}, "x-y": ""}

    assert delivered(contract, json.dumps(more)) == delivered(contract, json.dumps(sample))


@EVERY_CONTRACT
def test_a_message_is_flat_camel_case_and_small(contract: type[Contract]) -> None:
    for name, value in contract.sample.items():
        assert re.fullmatch(r"[a-z][A-Za-z]*", name)
        assert not isinstance(value, dict)
    assert len(json.dumps(dict(contract.sample))) < MAX_BODY_BYTES / 10


@EVERY_CONTRACT
def test_messages_that_were_written_once_are_read_for_ever(contract: type[Contract]) -> None:
    for body in WRITTEN_BEFORE[contract.type_name]:
        delivered(contract, body)


def test_every_contract_has_a_versioned_type_of_its_own_and_a_route() -> None:
    types = [contract.type_name for contract in CONTRACTS]

    assert len(set(types)) == len(types) == len(WRITTEN_BEFORE)
    assert all(re.fullmatch(r"[a-z]+(\.[a-z]+)+\.v[1-9]\d*", name) for name in types)
    assert {contract.route for contract in CONTRACTS} == set(ROUTES)


REQUIRED = {
    "user.registration.submitted.v1": {"name", "surname", "email"},
    "email.notification.requested.v1": {"to", "template"},
    "report.requested.v1": set(),
}


@EVERY_CONTRACT
def test_no_field_became_required(contract: type[Contract]) -> None:
    # A contract changes by adding an optional field; anything else is the next version.
    schema: dict[str, Any] = contract.model_json_schema(by_alias=True)

    assert set(schema.get("required", ())) == REQUIRED[contract.type_name]
