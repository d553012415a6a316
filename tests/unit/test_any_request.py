"""Every operation of every service refuses whatever is not a request, before anything happens.

Behind each service stands nothing: a request that got through would fail with 500.
"""

import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from pydantic import BaseModel
from yarl import URL

from common.http.api import Operation
from tests.services import SERVICES, api_of, build, serving

pytestmark = pytest.mark.slow  # thousands of requests

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}

NO_JSON: dict[str, tuple[bytes, dict[str, str]]] = {
    "nothing": (b"", JSON),
    "nothing at all": (b"", {}),
    "not JSON": (b"name=Ada", JSON),
    "truncated": (b'{"name": "Ad', JSON),
    "binary": (bytes(range(256)), JSON),
    "UTF-16": ('{"name": "Ada"}'.encode("utf-16"), JSON),
    "NaN": (b'{"name": NaN}', JSON),
    "nested": (b"[" * 60_000, JSON),
    "nested too large": (b"[" * 100_000, JSON),
    "nested objects": (b'{"a":' * 12_000, JSON),
    "5,000 digits": (b'{"name": ' + b"9" * 5_000 + b"}", JSON),
    "a name twice": (b'{"name": "A", "name": "B"}', JSON),
    "half a surrogate": (b'{"name": "\\ud800"}', JSON),
    "an array": (b"[]", JSON),
    "a text": (b'"name"', JSON),
    "a number": (b"1e3", JSON),
    "null": (b"null", JSON),
    "an unknown field": (b'{"__proto__": {"admin": true}}', JSON),
    "an unknown field with an odd name": (b'{"\\u0000/~": 1}', JSON),
    "gzip": (gzip.compress(b" " * 5_000_000), JSON | {"Content-Encoding": "gzip"}),
    "gzip in capitals": (gzip.compress(b"{}"), JSON | {"Content-Encoding": "GZIP"}),
    "an unknown encoding": (b"{}", JSON | {"Content-Encoding": "nonsense"}),
    "no type": (b"{}", {"Content-Type": ""}),
    "a form": (b"name=Ada", FORM),
    "text": (b"{}", {"Content-Type": "text/plain"}),
    "an empty type": (b"{}", {"Content-Type": ""}),
    "an odd type": (b"{}", {"Content-Type": "///;;; charset"}),
    "multipart": (b"--x\r\n\r\n{}\r\n--x--", {"Content-Type": "multipart/form-data; boundary=x"}),
}

NO_FORM: dict[str, tuple[bytes, dict[str, str]]] = {
    "JSON": (b"{}", JSON),
    "no type": (b"name=Ada", {}),
    "a field twice": (b"name=Ada&name=Eve", FORM),
    "not UTF-8": (b"name=%ff", FORM),
    "raw bytes": (b"name=\xff", FORM),
    "a hundred fields": (b"&".join(b"a%d=1" % number for number in range(101)), FORM),
    "gzip": (gzip.compress(b" " * 5_000_000), FORM | {"Content-Encoding": "gzip"}),
}

NO_QUERY = {
    "an unknown parameter": "?__proto__=1",
    "a parameter without a name": "?=1",
    "an odd parameter": "?%00=%ff",
    "an unknown one twice": "?x=1&x=2",
}

ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0.5, 1e308, 10**4_000, "", "\0", "\x1b[2J", "x" * 5_000, "1e400", [], [[]], {},
    {"a": 1}, ["x"] * 600, "\N{ARABIC-INDIC DIGIT ONE}", "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
)  # fmt: skip
"""For a field of a body, beside a field that there is not."""

ODD_PARAMETERS = ("", "%00", "%ff", "%ED%A0%80", "x" * 3_000, "1e400", "-1", "%F0%9F%98%80")
"""For a parameter of a query, beside one that there is not."""

ODD_SEGMENTS = (
    "%00", "%ff", "%0a", "%F0%9F%98%80", "x" * 3_000, "-1", "0", "1e5", "9" * 30, "%25", "..%2f..",
    "'", "%7B%7D",
)  # fmt: skip
"""For a placeholder of a path."""


def url_of(operation: Operation) -> str:
    """The operation's URL with a good value for each placeholder."""
    model = operation.options.get("path")
    schema = model.model_json_schema(by_alias=False)["properties"] if model else {}

    def value(match: re.Match[str]) -> str:
        rule = schema[match["name"]]
        if rule.get("format") == "uuid":
            return "0192f7a4-5b7c-7c3e-9f10-2b6d1c3a4e5f"
        if rule.get("format") == "email":
            return "ada@example.org"
        return "7"

    return re.sub(r"{(?P<name>\w+)(?::.*?)?}", value, operation.url)


@pytest.fixture
async def client(service: str) -> AsyncIterator[TestClient[Any, Any]]:
    async with serving(build(service)) as client:
        yield client


@dataclass(frozen=True)
class Request:
    """A request that is none of this operation's."""

    what: str
    url: str
    data: bytes | None = None
    headers: dict[str, str] | None = None


def requests_that_are_none(operation: Operation) -> Iterator[Request]:
    """Everything wrong that can be said to an operation, by what it declares to read."""
    if body := operation.options.get("body"):
        yield from wrong_bodies(operation, body)
    if operation.options.get("form"):
        for what, (data, headers) in NO_FORM.items():
            yield Request(what, url_of(operation), data, headers)
    if query := operation.options.get("query"):
        yield from wrong_queries(operation, query)
    if operation.options.get("path"):
        for segment in ODD_SEGMENTS:
            url = re.sub(r"{.*?}", segment, operation.url)
            body_or_none = (b"{}", JSON) if operation.options.get("body") else (None, None)
            yield Request(f"path {segment[:20]}", url, *body_or_none)


def wrong_bodies(operation: Operation, model: type[BaseModel]) -> Iterator[Request]:
    url = url_of(operation)
    for what, (data, headers) in NO_JSON.items():
        yield Request(what, url, data, headers)
    limit = operation.options.get("max_body_bytes", 64 * 1024)
    if limit < 2**20:
        yield Request("one byte too many", url, b" " * (limit + 1), JSON)
    for name in aliases(model):
        for value in ODD_VALUES:
            data = json.dumps({name: value, "surplus": 1}).encode()
            yield Request(f"{name} is {str(value)[:20]}", url, data, JSON)


def wrong_queries(operation: Operation, model: type[BaseModel]) -> Iterator[Request]:
    url = url_of(operation)
    for what, query in NO_QUERY.items():
        yield Request(what, url + query)
    for name in aliases(model):
        yield Request(f"{name} twice", f"{url}?{name}=1&{name}=2")
        for value in ODD_PARAMETERS:
            yield Request(f"{name}={value[:20]}", f"{url}?{name}={value}&surplus=1")


def aliases(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def is_problem(content_type: str, text: str) -> bool:
    if content_type != "application/problem+json":
        return False
    document = json.loads(text)
    texts = (document["type"], document["title"], document["detail"], document["code"])
    return all(isinstance(part, str) and part for part in texts)


@pytest.mark.parametrize("service", SERVICES)
async def test_what_is_no_request_is_refused_with_a_problem(
    client: TestClient[Any, Any], service: str
) -> None:
    wrong = []

    for operation in api_of(service).operations:
        for request in requests_that_are_none(operation):
            url = URL(request.url, encoded=True)
            async with client.request(
                operation.method, url, data=request.data, headers=request.headers
            ) as answer:
                text = await answer.text()
            if not (400 <= answer.status < 500 and is_problem(answer.content_type, text)):
                name = f"{operation.method} {operation.url}, {request.what}"
                wrong.append(f"{name}: {answer.status} {answer.content_type} {text}")

    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("service", SERVICES)
async def test_an_unknown_path_or_method_is_refused_with_a_problem(
    client: TestClient[Any, Any], service: str
) -> None:
    paths = ["/nothing", "/%00", "/%ff", "/api/", "/api-docs/%2e%2e", "/health/x"]
    if service == "frontend":
        paths += ["/static/", "/static/%2e%2e/app.py", f"/static/{'x' * 300}", "/static/%00"]
    for path in paths:
        async with client.get(URL(path, encoded=True)) as answer:
            assert answer.status == 404, path
            assert is_problem(answer.content_type, await answer.text())
    for method in ("DELETE", "PATCH", "OPTIONS", "PROPFIND"):
        async with client.request(method, "/health") as answer:
            assert answer.status == 405
            assert answer.headers["Allow"] == "GET, HEAD"
            assert is_problem(answer.content_type, await answer.text())


@pytest.mark.parametrize("service", SERVICES)
async def test_an_unknown_expectation_is_refused_with_a_problem(
    client: TestClient[Any, Any],
) -> None:
    for path in ("/health", "/openapi.json", "/nothing"):
        async with client.get(path, headers={"Expect": "nonsense"}) as answer:
            assert answer.status == 417
            assert is_problem(answer.content_type, await answer.text())
            assert answer.headers["X-Request-Id"]


@pytest.mark.parametrize("service", SERVICES)
async def test_a_name_in_a_path_is_never_taken_for_an_id(
    client: TestClient[Any, Any], service: str
) -> None:
    operations = api_of(service).operations
    for url in {operation.url for operation in operations if "{" not in operation.url}:
        methods = {operation.method for operation in operations if operation.url == url}
        for method in {"GET", "PUT", "POST", "DELETE", "PATCH"} - methods:
            async with client.request(method, url) as answer:
                assert answer.status == 405, f"{method} {url}"
                allowed = set(answer.headers["Allow"].split(", ")) - {"HEAD"}
                assert allowed == methods, f"{method} {url}"


@pytest.mark.parametrize("service", SERVICES)
async def test_what_a_page_of_another_site_sends_is_refused(
    client: TestClient[Any, Any], service: str
) -> None:
    wrong = []
    for operation in api_of(service).operations:
        if operation.method == "GET":
            continue
        for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            url = URL(url_of(operation), encoded=True)
            async with client.request(
                operation.method, url, data=b"{}", headers=JSON | headers
            ) as answer:
                problem = await answer.json()
            if (answer.status, problem["code"]) != (403, "cross_site"):
                wrong.append(f"{operation.method} {operation.url}: {problem}")

    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("service", SERVICES)
async def test_a_body_without_a_type_is_refused(client: TestClient[Any, Any], service: str) -> None:
    """A page of another site may send one without asking first."""
    wrong = []
    for operation in api_of(service).operations:
        if not operation.options.keys() & {"body", "raw", "form", "html_form"}:
            continue
        for skipped, headers in (
            (["Content-Type"], {}),
            ([], {"Content-Type": "text/plain"}),
            ([], {"Content-Type": "multipart/form-data; boundary=x"}),
        ):
            url = URL(url_of(operation), encoded=True)
            async with client.request(
                operation.method, url, data=b"{}", headers=headers, skip_auto_headers=skipped
            ) as answer:
                await answer.read()
            if answer.status != 415 and "text/plain" not in operation.options.get("raw", {}):
                wrong.append(f"{operation.method} {operation.url}: {answer.status}")

    assert not wrong, "\n".join(wrong)


HEADERS = (
    "Accept", "Accept-Encoding", "Accept-Language", "Access-Control-Request-Headers",
    "Access-Control-Request-Method", "Authorization", "Cache-Control", "Content-Encoding",
    "Content-Type", "Cookie", "Expect", "Forwarded", "Host", "Idempotency-Key", "If-Match",
    "If-Modified-Since", "If-None-Match", "If-Range", "If-Unmodified-Since", "Last-Event-ID",
    "Origin", "Range", "Referer", "Sec-Fetch-Site", "TE", "Upgrade", "User-Agent",
    "X-Correlation-Id", "X-Forwarded-For", "X-Request-Id", "traceparent", "tracestate",
)  # fmt: skip

NOT_ASCII = (b"\xff", b"\xc3\xa4", b"\xf0\x9f\x98\x80", b"\xed\xa0\x80", b"a;\x80=\xfe, b")


@pytest.mark.parametrize("service", SERVICES)
async def test_a_header_that_is_not_ascii_is_no_fault_of_ours(
    client: TestClient[Any, Any], service: str
) -> None:
    """A handler that is reached fails here, for want of what stands behind it: not by POST."""
    wrong = []
    paths = ["/", "/health/live", "/nothing", "/api-docs", "/openapi.json"]
    requests = [("GET", path) for path in paths] + [("POST", "/nothing")]
    posts = [o for o in api_of(service).operations if o.method != "GET" and "body" in o.options]
    requests += [(operation.method, url_of(operation)) for operation in posts[:3]]
    if service == "frontend":
        requests += [("GET", "/static/site.css")]
    for name in HEADERS:
        for value in NOT_ASCII:
            for method, path in requests:
                status = await status_of(client, method, path, {name: value})
                if not 200 <= status < 500:
                    wrong.append(f"{method} {path} with {name}: {value!r}: {status}")

    assert not wrong, "\n".join(wrong)


async def status_of(
    client: TestClient[Any, Any], method: str, path: str, headers: dict[str, bytes]
) -> int:
    """What a request with these bytes in its headers is answered, with a body that is no JSON."""
    given = {"Host": b"localhost", "Content-Type": b"application/json", **headers}
    lines = b"".join(name.encode() + b": " + value + b"\r\n" for name, value in given.items())
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    try:
        writer.write(
            f"{method} {path} HTTP/1.1\r\nContent-Length: 1\r\nConnection: close\r\n".encode()
            + lines
            + b"\r\n{"
        )
        async with asyncio.timeout(60):
            return int((await reader.readline()).split()[1])
    finally:
        writer.close()


@pytest.mark.parametrize("service", SERVICES)
async def test_the_cookies_of_all_other_programs_on_localhost_are_no_hindrance(
    client: TestClient[Any, Any],
) -> None:
    for size, expected in ((8_700, 200), (60_000, 200), (66_000, 431)):
        cookies = {"Cookie": b"a=" + b"x" * size}
        assert await status_of(client, "GET", "/health/live", cookies) == expected, size


@pytest.mark.parametrize("service", ["frontend"])
@pytest.mark.parametrize("kind", NO_FORM)
async def test_what_is_no_form_is_refused(client: TestClient[Any, Any], kind: str) -> None:
    data, headers = NO_FORM[kind]

    async with client.post("/", data=data, headers=headers) as answer:
        assert answer.status in (400, 415), kind


@pytest.mark.parametrize("service", ["frontend"])
async def test_a_form_with_wrong_fields_comes_back_with_what_was_typed(
    client: TestClient[Any, Any],
) -> None:
    typed = b"name=%3Cb%3E&surname=%00&email=nobody&nonce=%0a&extra=1"

    async with client.post("/", data=typed, headers=FORM) as answer:
        page = await answer.text()

    assert answer.status == 422
    assert "&lt;b&gt;" in page
    assert "nobody" in page
