"""Users over HTTP: create, find, page, change, delete."""

import re
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import ClientSession

from common.contracts.users import UserRequest, UserUpdate
from common.errors import DuplicateEmailError
from database_service.repositories.users import UserRepository
from tests.integration.database_service.builders import an_address


def a_user(email: str = "", name: str = "Ada") -> dict[str, str]:
    return {"name": name, "surname": "Lovelace", "email": email or an_address()}


async def create(client: ClientSession, body: dict[str, str] | None = None) -> dict[str, Any]:
    async with client.post("/api/users", json=body or a_user()) as response:
        assert response.status == 201
        user: dict[str, Any] = await response.json()
    return user


async def test_a_created_user_is_found_where_the_answer_says(client: ClientSession) -> None:
    body = a_user(name="Nguyễn O'Brien")

    async with client.post("/api/users", json=body) as response:
        created = await response.json()
        assert response.status == 201
        location, etag = response.headers["Location"], response.headers["ETag"]

    async with client.get(location) as response:
        assert response.status == 200
        assert await response.json() == created
        assert response.headers["ETag"] == etag
    assert {key: created[key] for key in body} == body
    assert created["createdAt"] == created["updatedAt"]
    assert created["createdAt"].endswith("Z")


async def test_an_address_can_be_taken_once(client: ClientSession) -> None:
    body = a_user()
    await create(client, body)
    other = await create(client)

    async with client.post("/api/users", json=body | {"email": body["email"].upper()}) as response:
        assert response.status == 409
        assert (await response.json())["code"] == "duplicate_email"
    async with client.put(f"/api/users/{other['id']}", json=body) as response:
        assert response.status == 409


async def test_an_address_that_is_taken_is_no_error_of_postgresql(users: UserRepository) -> None:
    """Or each repeat would stand in its log, which is there for what a person must look at."""
    body = UserRequest.model_validate(a_user())
    await users.insert_user(body)
    other = await users.insert_user(UserRequest.model_validate(a_user()))

    with pytest.raises(DuplicateEmailError) as inserting:
        await users.insert_user(body)
    with pytest.raises(DuplicateEmailError) as updating:
        await users.update_user(other.user.id, UserUpdate(**dict(body)), versions=None)

    assert (inserting.value.__cause__, updating.value.__cause__) == (None, None)


async def test_a_user_is_found_by_address_in_any_case(client: ClientSession) -> None:
    created = await create(client)

    async with client.get(f"/api/users/email/{created['email'].upper()}") as response:
        assert response.status == 200
        assert await response.json() == created
    async with client.get(f"/api/users/email/{an_address()}") as response:
        assert response.status == 404


async def test_an_edit_changes_the_etag_and_a_stale_one_is_refused(client: ClientSession) -> None:
    created = await create(client)
    url = f"/api/users/{created['id']}"
    async with client.get(url) as response:
        old = response.headers["ETag"]

    async with client.put(url, json=a_user(name="Grace"), headers={"If-Match": old}) as response:
        assert response.status == 200
        changed = await response.json()
        new = response.headers["ETag"]
    async with client.put(url, json=a_user(name="Late"), headers={"If-Match": old}) as response:
        assert response.status == 412
        assert (await response.json())["code"] == "stale"

    assert new != old
    assert changed["name"] == "Grace"
    assert changed["createdAt"] == created["createdAt"]
    assert changed["updatedAt"] >= created["updatedAt"]
    async with client.get(url) as response:
        assert await response.json() == changed


async def test_a_change_without_an_address_leaves_it_as_it_is(client: ClientSession) -> None:
    created = await create(client)

    body = {"name": "John", "surname": "Doe"}
    async with client.put(f"/api/users/{created['id']}", json=body) as response:
        assert response.status == 200
        changed = await response.json()

    assert (changed["name"], changed["surname"]) == ("John", "Doe")
    assert changed["email"] == created["email"]


@pytest.mark.parametrize(
    ("tag", "status"),
    [
        ("*", 200),
        ('"1"', 200),
        ('"7", "1"', 200),
        ('W/"1"', 412),
        ('"one"', 412),
        ('"' + "9" * 40 + '"', 412),
        ("nonsense", 412),
        ("", 412),
    ],
)
async def test_if_match_is_compared_strongly(client: ClientSession, tag: str, status: int) -> None:
    created = await create(client)
    url = f"/api/users/{created['id']}"

    async with client.put(url, json=a_user(), headers={"If-Match": tag}) as response:
        assert response.status == status


async def test_deleting_honours_if_match_and_is_final(client: ClientSession) -> None:
    created = await create(client)
    url = f"/api/users/{created['id']}"

    async with client.delete(url, headers={"If-Match": '"2"'}) as response:
        assert response.status == 412
    async with client.delete(url, headers={"If-Match": '"1"'}) as response:
        assert response.status == 204
        assert await response.read() == b""
    async with client.delete(url) as response:
        assert response.status == 404
    async with client.put(url, json=a_user(), headers={"If-Match": '"1"'}) as response:
        assert response.status == 404
    async with client.get(url) as response:
        assert response.status == 404


async def test_a_user_with_mails_can_be_deleted_and_the_mails_stay_on_record(
    client: ClientSession,
) -> None:
    created = await create(client)
    message = str(uuid4())
    claim = {
        "messageId": message,
        "leaseId": str(uuid4()),
        "template": "welcome",
        "recipient": created["email"],
        "userId": created["id"],
    }
    async with client.post("/api/notifications/claims", json={"claims": [claim]}) as response:
        assert response.status == 200

    async with client.delete(f"/api/users/{created['id']}") as response:
        assert response.status == 204

    async with client.get(f"/api/notifications/{message}") as response:
        assert (await response.json())["userId"] is None


def links(header: str) -> dict[str, str]:
    return {relation: url for url, relation in re.findall(r'<([^>]*)>; rel="(\w+)"', header)}


async def test_pages_by_keyset_hold_every_user_once(client: ClientSession) -> None:
    created = [await create(client) for _ in range(7)]
    url, seen, pages = "/api/users?limit=3", [], 0

    while url:
        async with client.get(url) as response:
            page = await response.json()
            relations = links(response.headers.get("Link", ""))
        seen += page["users"]
        pages += 1
        url = relations.get("next", "")
        if page["nextAfter"] is None:
            assert not url
        else:
            assert f"after={page['nextAfter']}" in url
        if pages == 1:  # somebody registers meanwhile: no page shifts
            created.append(await create(client))

    assert seen == created
    assert pages == 3


async def test_pages_by_number_name_the_pages_beside_them(client: ClientSession) -> None:
    created = [await create(client) for _ in range(5)]

    async def page(number: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
        async with client.get("/api/users", params={"page": number, "limit": 2}) as response:
            return (await response.json())["users"], links(response.headers["Link"])

    assert await page(1) == (
        created[:2],
        {"first": "/api/users?page=1&limit=2", "next": "/api/users?page=2&limit=2"},
    )
    users, relations = await page(3)
    assert users == created[4:]
    assert set(relations) == {"first", "prev"}
    assert await page(9) == (
        [],
        {"first": "/api/users?page=1&limit=2", "prev": "/api/users?page=8&limit=2"},
    )


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=501", "after=-1", "after=x", f"after={2**63}", "page=0", "x=1"]
)
async def test_a_page_that_can_not_be_is_refused(client: ClientSession, query: str) -> None:
    async with client.get(f"/api/users?{query}") as response:
        assert response.status == 422
        (error,) = (await response.json())["errors"]
        assert error["pointer"] == query.partition("=")[0]


@pytest.mark.parametrize("user_id", ["0", "-1", "x", "1.5", str(2**63), "9" * 5000, "%00", "1%20"])
async def test_an_id_that_can_not_be_is_refused(client: ClientSession, user_id: str) -> None:
    async with client.get(f"/api/users/{user_id}") as response:
        assert response.status in (404, 422)
