"""Who may ask a service: the names it answers to, and the pages of other sites."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, make_mocked_request

from common.errors import CrossSiteError, HostNotAllowedError
from common.http.access import Access
from common.http.api import Api
from common.http.app import base_app
from common.readiness import Readiness
from tests.services import serving

SHOP = "https://shop.example"

api = Api()


@api.get("/api/things", returns={200: "text/plain"})
async def show(_request: web.Request) -> web.Response:
    """A thing."""
    return web.Response(text="here")


@api.post("/api/things", returns={200: "text/plain"})
async def change(_request: web.Request) -> web.Response:
    """Another thing."""
    return web.Response(text="changed")


@api.get("/page", returns={200: "text/plain"})
async def page(_request: web.Request) -> web.Response:
    """A page."""
    return web.Response(text="a page")


def an_access() -> Access:
    return Access(
        allowed_hosts="database_service, *.internal.example",
        public_url="https://register.example:8443/",
        cors_origins=f"{SHOP}/, http://other.example:80",
    )


@pytest.fixture
async def client() -> AsyncIterator[TestClient[Any, Any]]:
    app = base_app("test", api, description="", access=an_access(), readiness=Readiness())
    async with serving(app) as client:
        yield client


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "localhost:3000", "LocalHost", "localhost.", "app.localhost", "127.0.0.1",
        "127.8.8.8:80", "[::1]:3000", "[::1]", "10.0.3.7:8083", "[2001:db8::1]",
        "register.example", "register.example:8443", "REGISTER.example.", "database_service:8083",
        "a.internal.example", "b.a.internal.example:1", "localhost:",
    ],
)  # fmt: skip
def test_a_service_answers_to_its_names_and_to_addresses(host: str) -> None:
    assert an_access().allows(host)


@pytest.mark.parametrize(
    "host",
    [
        "rebind.example", "localhost.rebind.example", "127.0.0.1.rebind.example", "localhost@a.b",
        "rebind.example#localhost", "xregister.example", "register.example.rebind.example",
        "internal.example", "xinternal.example", "queue_receiver", "2130706433", "127.1", "0x7f.1",
        "0177.0.0.1", "[::1", "::1", "[localhost]", "", " localhost", "localhost:port", "a/b",
        "localh\udcc3\udcb6st", "ⓛocalhost",
    ],
)  # fmt: skip
def test_a_service_answers_to_no_other_name(host: str) -> None:
    assert not an_access().allows(host)


async def test_every_path_and_method_is_refused_under_a_foreign_name(
    client: TestClient[Any, Any],
) -> None:
    reading = ("/api/things", "/health", "/metrics", "/nothing", "/api-docs")
    asked = [("GET", path) for path in reading]
    asked += [("POST", "/api/things"), ("OPTIONS", "/api/things")]
    for method, path in asked:
        host = {"Host": f"rebind.example:{client.port}"}
        async with client.request(method, path, headers=host) as answer:
            problem = await answer.json()
        assert answer.status == 421, path
        assert problem["code"] == "host_not_allowed"
        assert "ALLOWED_HOSTS" in problem["detail"]
        assert "rebind" not in str(problem)


async def test_a_name_is_looked_at_in_each_place_where_it_may_stand(
    client: TestClient[Any, Any],
) -> None:
    def asking(host: str, **where: Any) -> web.Request:
        return make_mocked_request("GET", where.get("path", "/"), headers={"Host": host})

    access = an_access()
    access.check(asking("localhost"))  # from now on it is known
    access.check(asking("localhost"))
    with pytest.raises(HostNotAllowedError):
        access.check(asking("localhost", path="http://rebind.example/"))
    two = {"Host": "localhost", "host": "rebind.example"}
    async with client.get("/page", headers=list(two.items())) as answer:
        assert answer.status in (400, 421)


def test_a_star_allows_every_name() -> None:
    Access(allowed_hosts="*").check(
        make_mocked_request("GET", "/", headers={"Host": "anything.example"})
    )


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost:8081"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://localhost:8081"},
        {"Origin": "https://register.example:8443"},  # a proxy has put another Host in its place
        {"Origin": SHOP, "Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://other.example"},
    ],
)
def test_our_own_pages_listed_ones_and_programs_are_let_through(
    headers: dict[str, str],
) -> None:
    _check_post(headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": ""},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost:8081"},
        {"Origin": "http://localhost:8080"},
        {"Origin": "http://shop.example"},
        {"Origin": "https://shop.example.evil.example"},
        {"Origin": "https://register.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://[localhost:8081"},
    ],
)
def test_pages_of_others_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(CrossSiteError, match="nothing was done"):
        _check_post(headers)


def _check_post(headers: dict[str, str]) -> None:
    an_access().check(
        make_mocked_request("POST", "/", headers={"Host": "localhost:8081", **headers})
    )


async def test_a_listed_origin_may_read_and_send_after_a_preflight(
    client: TestClient[Any, Any],
) -> None:
    asked = {"Origin": SHOP, "Access-Control-Request-Method": "POST"}
    async with client.options("/api/things", headers=asked) as preflight:
        assert preflight.status == 204
    async with client.post("/api/things", headers={"Origin": SHOP}) as sent:
        assert sent.status == 200
    async with client.get("/api/nothing", headers={"Origin": SHOP}) as refused:
        assert refused.status == 404

    assert preflight.headers["Access-Control-Allow-Methods"] == "GET, HEAD, POST"
    assert "Idempotency-Key" in preflight.headers["Access-Control-Allow-Headers"]
    for answer in (preflight, sent, refused):
        assert answer.headers["Access-Control-Allow-Origin"] == SHOP
        assert "Origin" in answer.headers["Vary"]
        assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://shop.example"])
async def test_another_origin_may_not_even_read(client: TestClient[Any, Any], origin: str) -> None:
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    async with client.options("/api/things", headers=headers) as preflight:
        assert preflight.status == 405
    async with client.get("/api/things", headers=headers) as read:
        assert read.status == 200
        assert "Origin" in read.headers["Vary"]

    for answer in (preflight, read):
        assert not [name for name in answer.headers if name.startswith("Access-Control")]


async def test_pages_and_unknown_paths_are_shared_with_no_origin(
    client: TestClient[Any, Any],
) -> None:
    headers = {"Origin": SHOP, "Access-Control-Request-Method": "GET"}
    async with client.get("/page", headers=headers) as answer:
        assert "Access-Control-Allow-Origin" not in answer.headers
    async with client.options("/page", headers=headers) as answer:
        assert answer.status == 405
    async with client.options("/api/nothing", headers=headers) as answer:
        assert answer.status == 404


async def test_nothing_is_shared_where_no_origin_is_listed() -> None:
    app = base_app("test", api, description="", readiness=Readiness())
    async with (
        serving(app) as client,
        client.get("/api/things", headers={"Origin": SHOP}) as answer,
    ):
        assert answer.status == 200
        assert not [name for name in answer.headers if name.startswith("Access-Control")]


async def test_a_request_of_http_1_0_without_a_name_is_answered(
    client: TestClient[Any, Any],
) -> None:
    async with aiohttp.ClientSession(version=aiohttp.HttpVersion10) as session:
        url = client.make_url("/page")
        async with session.get(url, skip_auto_headers=["Host"]) as answer:
            assert answer.status == 200
