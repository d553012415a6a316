"""Every naughty string in every field, as JSON and by the form: refused, or kept in one form."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode
from uuid import UUID, uuid4

import aiohttp

from common.contracts.rules import check_email, clean_email, clean_name
from tests.e2e.stack import CONNECTIONS, Stack
from tests.naughty import naughty_strings

DRAIN_SECONDS = 120.0

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}

REFUSED = (400, 422)


@dataclass(eq=False, kw_only=True)
class Attempt:
    """One string in one field, in one of the ways in which it can travel."""

    field: str
    text: str
    way: str
    values: dict[str, str]

    async def send(self, session: aiohttp.ClientSession) -> tuple[int, str]:
        """Status, and the id of the registration or the answer's text."""
        async with session.post(
            "/" if self.way == "form" else "/api/registrations",
            data=self._body,
            headers=FORM if self.way == "form" else JSON,
            allow_redirects=False,
        ) as answer:
            text = await answer.text()
            if answer.status == 303:
                return answer.status, answer.headers["Location"].rpartition("/")[2]
            if answer.status == 202:
                return answer.status, json.loads(text)["registrationId"]
            return answer.status, text

    @property
    def _body(self) -> bytes:
        if self.way == "form":
            return urlencode(self.values).encode()
        return json.dumps(self.values, ensure_ascii=self.way == "escaped").encode()


def attempts() -> Iterator[Attempt]:
    run = uuid4().hex[:8]
    for number, text in enumerate(naughty_strings()):
        for field in ("name", "surname", "email"):
            for way in ("plain", "escaped", "form"):
                good = {
                    "name": "Ada",
                    "surname": "Lovelace",
                    "email": f"{way}-{field}-{number}-{run}@example.org",
                }
                yield Attempt(field=field, text=text, way=way, values=good | {field: text})


async def test_no_text_breaks_anything_and_what_is_accepted_is_kept_as_it_was_written(
    stack: Stack,
) -> None:
    answers: dict[Attempt, tuple[int, str]] = {}
    waiting = list(attempts())

    async with aiohttp.ClientSession(stack.services["frontend"]) as session:

        async def client() -> None:
            while waiting:
                attempt = waiting.pop()
                answers[attempt] = await attempt.send(session)

        await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    await stack.drained(DRAIN_SECONDS)

    odd = {(a.text[:40], a.field, a.way): s for a, (s, _) in answers.items() if s not in EXPECTED}
    assert odd == {}
    assert disagreements(answers) == []
    assert echoes(answers) == []
    accepted = {attempt: UUID(said) for attempt, (s, said) in answers.items() if s in (202, 303)}
    assert await changed(stack, accepted) == []
    assert len({a.text for a in accepted}) > 100
    assert len({a.text for a in answers} - {a.text for a in accepted}) > 100


EXPECTED = (202, 303, *REFUSED)


def disagreements(answers: dict[Attempt, tuple[int, str]]) -> list[object]:
    """Texts that are accepted in one way and refused in another."""
    decisions: dict[tuple[str, str], set[bool]] = {}
    for attempt, (status, _) in answers.items():
        decisions.setdefault((attempt.field, attempt.text), set()).add(status in REFUSED)
    return [key for key, decided in decisions.items() if len(decided) > 1]


def echoes(answers: dict[Attempt, tuple[int, str]]) -> list[str]:
    """Markup that came back as markup."""
    return [
        attempt.text
        for attempt, (status, page) in answers.items()
        if status in REFUSED and attempt.way == "form"
        if "<" in attempt.text and attempt.text in page
    ]


async def changed(stack: Stack, accepted: dict[Attempt, UUID]) -> list[object]:
    """What the database holds otherwise than it was typed."""
    rows = await stack.rows(
        """
        SELECT r.registration_id, u.name, u.surname, u.email
          FROM registrations AS r
          JOIN users AS u ON u.id = r.user_id
         WHERE r.registration_id = ANY($1::uuid[])
        """,
        list(accepted.values()),
    )
    stored = {row["registration_id"]: row for row in rows}
    return [
        (attempt.field, attempt.text, stored.get(registration_id))
        for attempt, registration_id in accepted.items()
        if not kept(attempt, stored.get(registration_id))
    ]


def kept(attempt: Attempt, row: Any) -> bool:
    if row is None:
        return False
    if attempt.field == "email":
        # In lower case: whoever came first with an address has written the row.
        wanted = check_email(str(clean_email(attempt.text)))
        return bool(row["email"].lower() == wanted.lower())
    return bool(row[attempt.field] == clean_name(attempt.text))
