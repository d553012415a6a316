"""The HTTP APIs of the real system beside models of what they promise; chance chooses the steps.

A model is the shortest program that keeps the promise: a dictionary of users, the ids that were
given for keys, how far a journey has come. After each step both have to agree.
"""

import hashlib
import re
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import quote
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    multiple,
    rule,
    run_state_machine_as_test,
)

from tests.e2e.http_api import Answered, HttpApi
from tests.e2e.stack import Stack
from tests.scale import scaled

pytestmark = pytest.mark.timeout(scaled(300))

EXAMPLES = settings(
    max_examples=scaled(20),
    stateful_step_count=40,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

PATIENCE_SECONDS = 60.0

NAMES = st.one_of(
    st.sampled_from(["Ada", "O'Brien", "Jean-Luc", " Nguyễn ", "Zoe\u0308", "山田", "A."]),
    st.text(st.characters(categories=["L"]), min_size=1, max_size=20).filter(str.strip),
)

LOCAL_PARTS = st.sampled_from(["ada", "ADA", "Ada", "eve", "Eve", "bob", "a.d.a", "o'brien"])
"""Few, so that they meet; in several cases, because addresses are compared without them."""


def kept(name: str) -> str:
    """How a name comes back."""
    return unicodedata.normalize("NFC", name).strip()


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen: {value!r}"
        time.sleep(0.02)
    return value


class Machine(RuleBasedStateMachine):
    """What the machines have in common: the system, and names that nobody else uses."""

    stack: ClassVar[Stack]

    def __init__(self) -> None:
        super().__init__()
        self.run = uuid4().hex[:8]
        self.apis = {name: HttpApi(url) for name, url in self.stack.services.items()}

    def teardown(self) -> None:
        for api in self.apis.values():
            api.close()

    def address(self, local: str) -> str:
        return f"{local}@{self.run}.example.org"


@dataclass(eq=False, slots=True)
class Person:
    """A user as the model knows it."""

    id: int
    values: dict[str, str]
    etag: str
    deleted: bool = False


class Users(Machine):
    """Users, one by one and in pages, with conditions on what is changed."""

    people: Bundle[Person] = Bundle("people")

    def __init__(self) -> None:
        super().__init__()
        self.known: list[Person] = []

    @rule(target=people, name=NAMES, surname=NAMES, local=LOCAL_PARTS)
    def create(self, name: str, surname: str, local: str) -> Any:
        values = {"name": name, "surname": surname, "email": self.address(local)}
        answer = self.ask("POST", "/api/users", values)
        if self.owner(values["email"]):
            assert answer.status == 409
            assert answer.json["code"] == "duplicate_email"
            return multiple()
        assert answer.status == 201
        person = Person(answer.json["id"], values, answer.headers["etag"])
        assert answer.headers["location"] == f"/api/users/{person.id}"
        assert all(person.id > other.id for other in self.known)
        self.known.append(person)
        self.agree(answer, person)
        return person

    @rule(person=people)
    def read(self, person: Person) -> None:
        self.agree(self.ask("GET", f"/api/users/{person.id}"), person)

    @rule(person=people, change_case=st.sampled_from([str.lower, str.upper, str.swapcase]))
    def find_by_address(self, person: Person, change_case: Callable[[str], str]) -> None:
        email = person.values["email"]
        answer = self.ask("GET", f"/api/users/email/{quote(change_case(email), safe='')}")
        owner = self.owner(email)
        if owner is None:
            assert answer.status == 404
        else:
            self.agree(answer, owner)

    @rule(person=people, name=NAMES, local=LOCAL_PARTS, condition=st.integers(0, 5))
    def replace(self, person: Person, name: str, local: str, condition: int) -> None:
        values = person.values | {"name": name, "email": self.address(local)}
        header, holds = self.condition(person, condition)
        answer = self.ask("PUT", f"/api/users/{person.id}", values, header)
        if person.deleted:
            assert answer.status == 404
        elif not holds:
            assert answer.status == 412
        elif self.owner(values["email"]) not in (None, person):
            assert answer.status == 409
        else:
            person.values, person.etag = values, answer.headers["etag"]
            self.agree(answer, person)
        self.read(person)

    @rule(person=people, condition=st.integers(0, 5))
    def delete(self, person: Person, condition: int) -> None:
        header, holds = self.condition(person, condition)
        answer = self.ask("DELETE", f"/api/users/{person.id}", headers=header)
        if person.deleted:
            assert answer.status == 404
        elif not holds:
            assert answer.status == 412
        else:
            assert answer.status == 204
            person.deleted = True
        self.read(person)

    @rule(limit=st.integers(1, 7))
    def turn_the_pages(self, limit: int) -> None:
        if not self.known:
            return
        found: list[int] = []
        path: str | None = f"/api/users?after={self.known[0].id - 1}&limit={limit}"
        while path:
            answer = self.ask("GET", path)
            assert answer.status == 200
            page = [user["id"] for user in answer.json["users"]]
            assert len(page) <= limit
            found += page
            following = re.fullmatch(r'<(.+)>; rel="next"', answer.headers.get("link", ""))
            path = following[1] if following else None
        assert found == sorted(set(found))
        ours = {person.id for person in self.known}
        assert [i for i in found if i in ours] == [p.id for p in self.known if not p.deleted]

    def ask(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> Answered:
        return self.apis["database_service"].call(method, path, body, headers)

    def agree(self, answer: Answered, person: Person) -> None:
        if person.deleted:
            assert answer.status == 404
            return
        assert answer.status in (200, 201)
        assert answer.headers["etag"] == person.etag
        wanted = person.values | {name: kept(person.values[name]) for name in ("name", "surname")}
        found = {name: answer.json[name] for name in wanted}
        assert found == wanted
        assert answer.json["id"] == person.id

    def owner(self, email: str) -> Person | None:
        owners = [
            person
            for person in self.known
            if not person.deleted and person.values["email"].lower() == email.lower()
        ]
        assert len(owners) < 2
        return owners[0] if owners else None

    def condition(self, person: Person, kind: int) -> tuple[dict[str, str], bool]:
        """A header ``If-Match``, and whether what it says holds for one that exists."""
        old = f'"{int(person.etag.strip(chr(34))) + 1_000_000}"'
        return (
            ({}, True),
            ({"If-Match": person.etag}, True),
            ({"If-Match": "*"}, True),
            ({"If-Match": f"{old}, {person.etag}"}, True),
            ({"If-Match": old}, False),
            ({"If-Match": f"W/{person.etag}"}, False),
        )[kind]


@dataclass(eq=False, slots=True)
class Registration:
    """A registration as the model knows it."""

    id: str
    email: str
    progress: int = 0


class Registrations(Machine):
    """Registrations under keys, and their journeys."""

    registrations: Bundle[Registration] = Bundle("registrations")

    STEPS: ClassVar = ("pending", "stored", "mailed")

    def __init__(self) -> None:
        super().__init__()
        self.by_key: dict[str, tuple[dict[str, str], Registration]] = {}
        self.ids: set[str] = set()
        self.names: dict[str, set[str]] = {}

    @rule(target=registrations, name=NAMES, local=LOCAL_PARTS, key=st.integers(0, 8))
    def register(self, name: str, local: str, key: int) -> Any:
        body = {"name": name, "surname": "Lovelace", "email": self.address(local)}
        header = {"Idempotency-Key": f"{self.run}-{key}"} if key else {}
        answer = self.ask("POST", "/api/registrations", body, header)
        before = self.by_key.get(header.get("Idempotency-Key", ""))
        wanted = {**body, "name": kept(name)}
        if before and before[0] != wanted:
            assert answer.status == 422
            assert answer.json["code"] == "idempotency_key_reused"
            return multiple()
        assert answer.status == 202
        if before:
            assert answer.json["registrationId"] == before[1].id
            return before[1]
        registration = Registration(answer.json["registrationId"], body["email"])
        assert registration.id not in self.ids
        self.ids.add(registration.id)
        self.names.setdefault(body["email"].lower(), set()).add(wanted["name"])
        if header:
            self.by_key[header["Idempotency-Key"]] = (wanted, registration)
        return registration

    @rule(registration=registrations)
    def follow(self, registration: Registration) -> None:
        answer = self.ask("GET", f"/api/registrations/{registration.id}")
        assert answer.status == 200
        assert registration.email not in answer.content.decode()
        progress = self.STEPS.index(answer.json["status"])
        assert progress >= registration.progress, "a journey went back"
        registration.progress = progress

    @rule(registration=registrations)
    def arrive(self, registration: Registration) -> None:
        def mailed() -> bool:
            self.follow(registration)
            return registration.progress == len(self.STEPS) - 1

        until(mailed, f"mailing {registration.id}")
        path = f"/api/users/email/{quote(registration.email, safe='')}"
        user = self.apis["database_service"].call("GET", path)
        assert user.status == 200
        assert user.json["name"] in self.names[registration.email.lower()]

    @rule()
    def follow_nobody(self) -> None:
        answer = self.ask("GET", f"/api/registrations/{uuid4()}")
        assert (answer.status, answer.json["status"]) == (200, "unknown")

    def ask(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> Answered:
        return self.apis["frontend"].call(method, path, body, headers)


@dataclass(eq=False, slots=True)
class Report:
    """A report as the model knows it."""

    id: str
    name: str
    columns: list[str]
    progress: int = 0


class Reports(Machine):
    """Reports under keys, until they are there, and what their files hold."""

    reports: Bundle[Report] = Bundle("reports")

    STEPS: ClassVar = ("requested", "generating", "ready")

    def __init__(self) -> None:
        super().__init__()
        self.by_wish: dict[tuple[str, str], Report] = {}

    @rule(
        target=reports,
        columns=st.lists(st.sampled_from(["id", "email", "name"]), min_size=1, unique=True),
        key=st.integers(0, 4),
    )
    def request(self, columns: list[str], key: int) -> Report:
        body = {"reportName": self.run, "columns": columns, "endDate": "1999-12-31"}
        header = {"Idempotency-Key": f"{self.run}-{key}"} if key else {}
        answer = self.ask("POST", "/api/reports/generate", body, header)
        assert answer.status == 202
        wish = (header.get("Idempotency-Key", str(uuid4())), str(columns))
        report = self.by_wish.setdefault(wish, Report(answer.json["reportId"], self.run, columns))
        assert answer.json["reportId"] == report.id
        return report

    @rule(report=reports)
    def look(self, report: Report) -> None:
        self.ready(report)

    def ready(self, report: Report) -> dict[str, Any] | None:
        """What is said of a report once it is ready."""
        answer = self.ask("GET", f"/api/reports/{report.id}/status")
        assert answer.status == 200
        progress = self.STEPS.index(answer.json["status"])
        assert progress >= report.progress, "a report went back"
        report.progress = progress
        ready = answer.json["status"] == "ready"
        assert ready == (answer.json["downloadUrl"] is not None)
        found: dict[str, Any] = answer.json
        return found if ready else None

    @rule(report=reports)
    def download_now(self, report: Report) -> None:
        answer = self.ask("GET", f"/api/reports/{report.id}/download")
        assert answer.status == 200 if report.progress == 2 else answer.status in (200, 409)

    @rule(report=reports)
    def download(self, report: Report) -> None:
        ready = until(lambda: self.ready(report), f"making {report.id}")
        answer = self.ask("GET", ready["downloadUrl"])
        assert answer.status == 200
        assert hashlib.sha256(answer.content).hexdigest() == ready["sha256"]
        assert len(answer.content) == ready["sizeBytes"]
        headings = {"id": "ID", "email": "Email", "name": "Name"}
        assert answer.content.decode() == ",".join(headings[name] for name in report.columns) + "\n"

    @rule()
    def list_newest_first(self) -> None:
        answer = self.ask("GET", "/api/reports?limit=500")
        assert answer.status == 200
        listed = [row["reportId"] for row in answer.json["reports"]]
        assert len(listed) == len(set(listed))
        assert {report.id for report in self.by_wish.values()} <= set(listed)

    def ask(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> Answered:
        return self.apis["report_generator"].call(method, path, body, headers)


def test_users_are_what_was_last_written_under_the_condition_that_was_named(stack: Stack) -> None:
    Users.stack = stack
    run_state_machine_as_test(Users, settings=EXAMPLES)


def test_a_key_names_one_registration_and_every_journey_arrives(stack: Stack) -> None:
    Registrations.stack = stack
    run_state_machine_as_test(Registrations, settings=EXAMPLES)


def test_a_report_is_asked_for_once_and_holds_what_it_says(stack: Stack) -> None:
    Reports.stack = stack
    run_state_machine_as_test(Reports, settings=EXAMPLES)
