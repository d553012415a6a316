"""The bulk operations over HTTP, and what happens to any bytes at all."""

import io
import json
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import ClientSession
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from yarl import URL

from common.contracts.notifications import DeliveryStatus
from common.contracts.registrations import MAX_BULK
from database_service.routes import notifications, registrations, reports, users
from database_service.routes.registrations import MAX_BULK_BYTES
from tests.integration.database_service.builders import a_claim, a_registration, an_outcome

OPERATIONS = [
    (operation.method, operation.url.replace("{user_id}", "1"))
    for module in (users, registrations, notifications, reports)
    for operation in module.api.operations
]
UNKNOWN_ID = "0192f7a4-5b7c-7c3e-9f10-2b6d1c3a4e5f"
WITH_BODY = sorted(
    (method, url.replace("{report_id}", UNKNOWN_ID).replace("{notification_id}", UNKNOWN_ID))
    for method, url in OPERATIONS
    if method in ("POST", "PUT")
)


JSON = {"Content-Type": "application/json"}


def stream(body: bytes) -> io.BytesIO:
    """A body as aiohttp likes it where it is large."""
    return io.BytesIO(body)


async def post(client: ClientSession, url: str, name: str, *items: Any) -> list[dict[str, Any]]:
    body = {name: [item.model_dump(mode="json", by_alias=True) for item in items]}
    async with client.post(url, data=stream(json.dumps(body).encode()), headers=JSON) as response:
        assert response.status == 200, await response.text()
        results: list[dict[str, Any]] = (await response.json())["results"]
    return results


async def test_a_registration_travels_to_its_mail(client: ClientSession) -> None:
    item = a_registration()
    (stored,) = await post(client, "/api/registrations/bulk", "registrations", item)
    claim = a_claim(registration_id=item.registration_id, user_id=stored["userId"])
    url = f"/api/notifications/{claim.message_id}"
    async with client.get(url) as response:
        assert response.status == 404

    (granted,) = await post(client, "/api/notifications/claims", "claims", claim)
    outcome = {"leaseId": str(claim.lease_id), "status": "sent", "replyCode": 250}
    async with client.put(url, json=outcome) as response:
        assert await response.json() == {"messageId": str(claim.message_id), "recorded": True}

    assert stored["outcome"] == "stored"
    assert granted["claim"] == "granted"
    async with client.get(f"/api/registrations/{item.registration_id}") as response:
        journey = await response.json()
    assert journey["status"] == "mailed"
    assert item.email not in json.dumps(journey)
    async with client.get(url) as response:
        notification = await response.json()
    assert notification["status"] == "sent"
    assert [attempt["replyCode"] for attempt in notification["attempts"]] == [250]


async def test_the_largest_batch_fits(client: ClientSession) -> None:
    items = [
        a_registration().model_copy(update={"name": "𐐀" * 100, "surname": "𐐀" * 100})
        for _ in range(MAX_BULK)
    ]

    results = await post(client, "/api/registrations/bulk", "registrations", *items)

    assert [result["registrationId"] for result in results] == [
        str(item.registration_id) for item in items
    ]


async def test_the_largest_batch_of_outcomes_fits(client: ClientSession) -> None:
    claims = [a_claim() for _ in range(MAX_BULK)]
    outcomes = [
        an_outcome(claim, DeliveryStatus.DEFERRED, code=451, text="𐐀" * 1000) for claim in claims
    ]
    await post(client, "/api/notifications/claims", "claims", *claims)

    results = await post(client, "/api/notifications/outcomes", "outcomes", *outcomes)

    assert all(result["recorded"] for result in results)


async def test_an_outcome_that_is_none_is_refused(client: ClientSession) -> None:
    claim = a_claim()
    await post(client, "/api/notifications/claims", "claims", claim)

    for status in ("sending", "suppressed", "lost"):
        body = {"leaseId": str(claim.lease_id), "status": status}
        async with client.put(f"/api/notifications/{claim.message_id}", json=body) as response:
            assert response.status == 422


async def test_a_stale_outcome_is_answered_and_an_unknown_one_not_found(
    client: ClientSession,
) -> None:
    claim = a_claim()
    await post(client, "/api/notifications/claims", "claims", claim)
    body = {"leaseId": str(uuid4()), "status": "failed"}

    async with client.put(f"/api/notifications/{claim.message_id}", json=body) as response:
        assert (await response.json())["recorded"] is False
    async with client.put(f"/api/notifications/{uuid4()}", json=body) as response:
        assert response.status == 404


HOSTILE = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"text"',
    b"\x00",
    b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}",
    b'{"name": "\xff"}',
    b'{"name": "\\ud800"}',
    b'{"name": "a\\u0000b", "surname": "b", "email": "a@example.org"}',
    b'{"name": NaN}',
    b'{"name": 1e999}',
    b'{"name": ' + b"9" * 5000 + b"}",
    b"[" * 30_000,
    b'{"a":' * 10_000,
    b'{"name": "a", "name": "b"}',
    b'{"registrations": [' + b'{"registrationId": 1},' * 100 + b"{}]}",
    b'{"claims": [], "outcomes": []}',
    b'{"status": "ready", "recordCount": 9223372036854775808}',
    b'{"status": "ready", "recordCount": -1, "sizeBytes": 1e400}',
]


@pytest.mark.parametrize(("method", "url"), WITH_BODY)
async def test_hostile_bodies_are_refused_with_a_problem(
    client: ClientSession, method: str, url: str
) -> None:
    for body in HOSTILE:
        async with client.request(method, url, data=body, headers=JSON) as response:
            assert 400 <= response.status < 500, (response.status, body[:60])
            assert response.content_type == "application/problem+json"


@pytest.mark.parametrize(("method", "url"), WITH_BODY)
async def test_a_body_over_the_limit_is_too_large(
    client: ClientSession, method: str, url: str
) -> None:
    bulk = url.endswith(("/bulk", "/claims", "/outcomes"))
    limit = MAX_BULK_BYTES if bulk else 64 * 1024

    over, full = stream(b" " * (limit + 1)), stream(b" " * limit)
    async with client.request(method, url, data=over, headers=JSON) as response:
        assert response.status == 413
    async with client.request(method, url, data=full, headers=JSON) as response:
        assert response.status == 400


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    path=st.text(st.characters(exclude_categories=["Cs"])),
    query=st.dictionaries(
        st.sampled_from(["after", "page", "limit", "startDate", "columns", "quote", "x"]),
        st.text(st.characters(exclude_categories=["Cs"])),
    ),
)
async def test_any_path_and_query_is_answered(
    client: ClientSession, path: str, query: dict[str, str]
) -> None:
    for folder in ("users", "users/email", "users/report", "registrations", "reports"):
        below = URL("/api") / folder / (path.replace("/", "") or "-")
        for url in (below.with_query(query), (URL("/api") / folder).with_query(query)):
            async with client.get(url) as response:
                assert response.status < 500, url
