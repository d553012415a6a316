"""The CSV of users: every row, harmless cells, whole or visibly broken."""

import asyncio
import csv
import io
import itertools
from collections import Counter
from datetime import datetime
from typing import Any

import asyncpg
import pytest
from aiohttp import ClientPayloadError, ClientSession
from structlog.testing import capture_logs

from tests.integration.database_service.builders import eventually

FORMULA_STARTS = "=+-@\t\r\n＝＋－＠"  # noqa: RUF001 - what spreadsheets fold


@pytest.fixture
async def table(client: ClientSession, database_dsn: str) -> Any:
    """The tables themselves, to put in what the API would refuse."""
    assert client is not None  # which has made them
    connection = await asyncpg.connect(database_dsn)
    yield connection
    await connection.close()


async def report(client: ClientSession, **query: str) -> str:
    async with client.get("/api/users/report", params=query) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/csv"
        return (await response.read()).decode()


def hostile_names() -> list[str]:
    """Texts of all kinds, each first character that a spreadsheet minds among them."""
    return [
        "Ada",
        "=1+1",
        '=HYPERLINK("http://x","y")',
        'She said "no", twice',
        "a,b;c|d\te",
        "two\nlines",
        "\\.",
        "'",
        "''",
        '"',
        "=",
        " =space first",
        "Nguyễn 😀",
        "NULL",
        "\\N",
        "\v\f\x1f",
        *(f"{start}cmd|'/c calc'!A1" for start in FORMULA_STARTS),
    ]


async def test_every_value_survives_the_way_and_no_cell_is_a_formula(
    client: ClientSession, table: asyncpg.Connection
) -> None:
    texts = hostile_names()
    pairs = list(itertools.islice(itertools.cycle(itertools.product(texts, texts)), 20_000))
    await table.execute(
        "INSERT INTO users (name, surname, email) SELECT name, surname, '=' || place || '@x.org'"
        " FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS t (name, surname, place)",
        [name for name, _ in pairs],
        [surname for _, surname in pairs],
    )

    rows = list(csv.reader(io.StringIO(await report(client), newline="")))

    assert rows[0] == ["ID", "Name", "Surname", "Email", "Created At", "Updated At"]
    cells = [row[1:4] for row in rows[1:]]
    assert not [cell for cell in itertools.chain(*cells) if cell[:1] in tuple(FORMULA_STARTS)]
    stored = await table.fetch("SELECT id, name, surname, email, created_at FROM users ORDER BY id")
    assert len(rows) == len(stored) + 1 == 20_001
    for row, record in zip(rows[1:], stored, strict=True):
        assert row[0] == str(record["id"])
        assert [unquoted(cell) for cell in row[1:4]] == list(record.values())[1:4]
        assert datetime.fromisoformat(row[4]) == record["created_at"]


def unquoted(cell: str) -> str:
    """The value of a cell, without the mark that keeps it from being run."""
    return cell[1:] if cell[:1] == "'" and cell[1:2] in tuple(FORMULA_STARTS) else cell


async def add(table: asyncpg.Connection, email: str, created_at: str) -> None:
    await table.execute(
        "INSERT INTO users (name, surname, email, created_at, updated_at)"
        " VALUES ('A', 'B', $1, $2, $2)",
        email,
        datetime.fromisoformat(created_at),
    )


async def test_both_ends_of_the_range_count_as_whole_days_in_utc(
    client: ClientSession, table: asyncpg.Connection
) -> None:
    await add(table, "before@x.org", "2026-01-30T23:59:59.999999Z")
    await add(table, "first@x.org", "2026-01-31T00:00:00Z")
    await add(table, "zone@x.org", "2026-02-01T00:30:00+01:00")
    await add(table, "last@x.org", "2026-02-01T23:59:59.999999Z")
    await add(table, "after@x.org", "2026-02-02T00:00:00Z")

    async def addresses(**query: str) -> list[str]:
        text = await report(client, columns="email", header="false", **query)
        return [line.removesuffix("@x.org") for line in text.splitlines()]

    both = await addresses(startDate="2026-01-31", endDate="2026-02-01")
    assert both == ["first", "zone", "last"]
    assert await addresses(endDate="2026-01-30") == ["before"]
    assert await addresses(startDate="2026-02-02") == ["after"]
    assert len(await addresses(startDate="0001-01-01", endDate="9999-12-31")) == 5


async def test_the_columns_come_as_chosen(client: ClientSession, table: asyncpg.Connection) -> None:
    await add(table, "a@x.org", "2026-01-31T09:30:00.5Z")

    text = await report(client, columns="updatedAt,email,id", delimiter=";")

    assert text == "Updated At;Email;ID\n2026-01-31T09:30:00.500000Z;a@x.org;1\n"


async def test_an_edited_user_has_two_times(
    client: ClientSession, table: asyncpg.Connection
) -> None:
    await add(table, "a@x.org", "2026-01-31T09:30:00Z")
    await table.execute("UPDATE users SET updated_at = '2026-02-01T10:00:00Z'")

    text = await report(client, columns="createdAt,updatedAt", header="false")

    assert text == "2026-01-31T09:30:00.000000Z,2026-02-01T10:00:00.000000Z\n"


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
@pytest.mark.parametrize("quote", ['"', "'"])
async def test_any_allowed_delimiter_and_quote_can_be_read_back(
    client: ClientSession, table: asyncpg.Connection, delimiter: str, quote: str
) -> None:
    texts = hostile_names()
    await table.execute(
        "INSERT INTO users (name, surname, email) SELECT name, 'x', place || '@x.org'"
        " FROM unnest($1::text[]) WITH ORDINALITY AS t (name, place)",
        texts,
    )

    text = await report(client, columns="name", header="false", delimiter=delimiter, quote=quote)

    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quotechar=quote)
    assert [unquoted(cell) for (cell,) in reader] == texts


async def test_without_users_there_is_only_the_header(client: ClientSession) -> None:
    assert await report(client) == "ID,Name,Surname,Email,Created At,Updated At\n"
    assert await report(client, header="false") == ""


@pytest.mark.parametrize(
    "query",
    [
        {"delimiter": "'"},
        {"delimiter": ",', QUOTE"},
        {"quote": "x"},
        {"quote": "'''"},
        {"columns": "id,password"},
        {"columns": "id,id"},
        {"columns": ""},
        {"format": "xlsx"},
        {"startDate": "2026-02-01", "endDate": "2026-01-31"},
        {"startDate": "yesterday"},
        {"header": "perhaps"},
    ],
)
async def test_what_is_not_offered_is_refused(client: ClientSession, query: dict[str, str]) -> None:
    async with client.get("/api/users/report", params=query) as response:
        assert response.status == 422
        assert response.content_type == "application/problem+json"


MANY = 60_000
"""Rows that do not fit into the buffers on the way: 14 MB."""


async def fill(table: asyncpg.Connection, *, first: int = 1, last: int = MANY) -> None:
    await table.execute(
        "INSERT INTO users (name, surname, email) SELECT repeat('x', 100), repeat('y', 100),"
        " place || '@x.org' FROM generate_series($1::integer, $2) AS place",
        first,
        last,
    )


SELECT_COPY = """
    SELECT pid
      FROM pg_stat_activity
     WHERE datname = current_database() AND query LIKE 'COPY%' AND state = 'active'
"""


async def test_a_report_that_breaks_off_can_not_be_taken_for_a_whole_one(
    client: ClientSession, table: asyncpg.Connection
) -> None:
    await fill(table)

    async with client.get("/api/users/report") as response:
        assert response.status == 200
        await response.content.readexactly(1000)
        (copy,) = await table.fetch(SELECT_COPY)
        await table.execute("SELECT pg_terminate_backend($1)", copy["pid"])

        with pytest.raises(ClientPayloadError):
            await response.read()

    assert (await report(client, columns="id")).count("\n") == MANY + 1


async def test_a_reader_that_goes_away_ends_the_query_and_frees_the_connection(
    client: ClientSession, table: asyncpg.Connection
) -> None:
    await fill(table)

    async def nobody_reads() -> bool:
        return not await table.fetch(SELECT_COPY)

    with capture_logs() as events:
        for _ in range(12):  # more than there are connections
            response = await client.get("/api/users/report")
            await response.content.readexactly(1000)
            response.close()
        await eventually(nobody_reads)

    names = Counter(event["event"] for event in events)
    assert names["report.reader_gone"] == 12
    assert set(names) <= {"report.reader_gone", "http.answered"}
    assert (await report(client, columns="id")).count("\n") == MANY + 1


async def test_reports_leave_connections_for_everybody_else(
    client: ClientSession, table: asyncpg.Connection
) -> None:
    await fill(table)
    stalled = await asyncio.gather(*(client.get("/api/users/report") for _ in range(5)))

    async with client.get("/api/users") as response:
        assert response.status == 200
    async with client.get("/api/users/report") as response:
        assert response.status == 503
        assert "Retry-After" in response.headers

    for response in stalled:
        response.close()


async def test_the_rows_are_those_of_one_moment(
    client: ClientSession, table: asyncpg.Connection
) -> None:
    await fill(table)

    async with client.get("/api/users/report") as response:
        await response.content.readexactly(1000)
        await table.execute("DELETE FROM users WHERE id > $1", MANY - 1000)
        await fill(table, first=MANY + 1, last=MANY + 10)
        rest = await response.read()

    assert rest.splitlines()[-1].startswith(f"{MANY},".encode())
