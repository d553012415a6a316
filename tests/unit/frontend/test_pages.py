"""What the pages say, as HTML."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html.parser import HTMLParser
from importlib import resources
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.contracts.registrations import Journey, JourneyStatus
from common.contracts.rules import (
    EMAIL_CHARACTER,
    EMAIL_PATTERN,
    EMAIL_STRAY,
    NAME_CHARACTER,
    NAME_HINT,
    NAME_LETTERLESS,
    NAME_PATTERN,
    NAME_STRAY,
    check_email,
)
from common.errors import FieldError
from frontend.pages import (
    PAGES,
    UNCONFIRMED_NOTICE,
    render_form,
    render_problem,
    render_status,
)

REGISTRATION = UUID("0192f7a4-5b7c-4c3e-9f10-2b6d1c3a4e5f")
MARKUP = '"><img src=x onerror=alert(1)>'

Tag = tuple[str, dict[str, str | None]]


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[Tag] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def tag(page: str, name: str, /, **wanted: str) -> dict[str, str | None]:
    """The attributes of the one element like that."""
    [attributes] = [
        attributes
        for found, attributes in Tags(page).found
        if found == name and wanted.items() <= attributes.items()
    ]
    return attributes


def values_of(name: str = "", surname: str = "", email: str = "") -> dict[str, str]:
    return {"name": name, "surname": surname, "email": email}


def a_form(
    values: Mapping[str, str] | None = None,
    errors: Sequence[FieldError] = (),
    nonce: str = "n0nce",
    notice: str = "",
) -> str:
    return render_form(values or {}, errors, nonce, notice)


def a_journey(status: JourneyStatus) -> Journey:
    moment = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
    return Journey(
        registration_id=REGISTRATION,
        status=status,
        received_at=moment if status is not JourneyStatus.PENDING else None,
        stored_at=moment if status is not JourneyStatus.PENDING else None,
        mailed_at=moment if status is JourneyStatus.MAILED else None,
    )


def shown_states(page: str) -> list[str | None]:
    """What the steps say, from top to bottom."""
    return [
        attributes["data-state"]
        for name, attributes in Tags(page).found
        if name == "li" and "data-state" in attributes
    ]


def test_form_carries_the_shared_rule_in_its_inputs() -> None:
    page = a_form()

    name, surname, email = (
        tag(page, "input", id="name"),
        tag(page, "input", id="surname"),
        tag(page, "input", id="email"),
    )
    assert name["pattern"] == surname["pattern"] == NAME_PATTERN
    assert name["maxlength"] == surname["maxlength"] == "100"
    assert (email["pattern"], email["maxlength"]) == (EMAIL_PATTERN, "254")
    assert name["data-mismatch"] == NAME_LETTERLESS
    assert (name["data-character"], name["data-stray"]) == (NAME_CHARACTER, NAME_STRAY)
    assert (email["data-character"], email["data-stray"]) == (EMAIL_CHARACTER, EMAIL_STRAY)
    assert [field["autocomplete"] for field in (name, surname, email)] == [
        "given-name",
        "family-name",
        "email",
    ]


@settings(deadline=None)
@given(st.emails())
def test_email_pattern_takes_every_address_that_the_server_takes(address: str) -> None:
    try:
        check_email(address)
    except ValueError:
        return  # the server's refusals are its own affair

    assert re.search(EMAIL_PATTERN, address)


@pytest.mark.parametrize("address", ["a@b。org", "a@b．org", "jörg@exämple.org"])  # noqa: RUF001
def test_email_pattern_takes_international_addresses(address: str) -> None:
    check_email(address)

    assert re.search(EMAIL_PATTERN, address)


def test_form_keeps_what_was_typed_and_the_nonce() -> None:
    page = a_form(values_of("Ada", "O'Brien", "ada@example.org"), nonce="n-1", notice="Not yet.")

    assert tag(page, "input", name="name")["value"] == "Ada"
    assert tag(page, "input", name="surname")["value"] == "O'Brien"
    assert tag(page, "input", name="email")["value"] == "ada@example.org"
    assert tag(page, "input", name="nonce")["value"] == "n-1"


def test_form_escapes_what_was_typed_and_what_was_answered() -> None:
    values = values_of(MARKUP, MARKUP, MARKUP)
    errors = [FieldError("/name", MARKUP), FieldError("/other", MARKUP)]

    page = a_form(values, errors, nonce=MARKUP, notice=MARKUP)

    assert tag(page, "input", id="name")["value"] == MARKUP
    assert [attributes for name, attributes in Tags(page).found if "onerror" in attributes] == []


def test_form_shows_errors_at_their_fields_and_above_them() -> None:
    values = values_of("Ada", "R2-D2", "ada@example.org")

    page = a_form(values, [FieldError("/surname", NAME_HINT)])

    assert tag(page, "input", id="surname")["aria-invalid"] == "true"
    assert tag(page, "input", id="name")["aria-invalid"] == "false"
    assert "hidden" not in tag(page, "p", id="surname-error")
    assert "hidden" in tag(page, "p", id="name-error")
    assert "autofocus" in tag(page, "div", id="summary")
    assert f'<a href="#surname">Surname: {NAME_HINT}</a>' in page
    assert "<title>Error: Register" in page


def test_form_asks_for_an_empty_field_by_its_name() -> None:
    page = a_form(values_of("  "), [FieldError("/name", "This field is required.")])

    assert page.count("Enter your first name.</") == 2  # above the form and at the field
    assert "This field is required." not in page


def test_form_shows_an_error_of_no_field_above_the_fields() -> None:
    page = a_form(values_of("Ada"), [FieldError("/nonce", "There is no such field.")])

    assert "<li>There is no such field.</li>" in page
    assert "autofocus" in tag(page, "div", id="summary")


def test_form_shows_a_notice_only_when_there_is_one() -> None:
    quiet, told = a_form(), a_form(notice=UNCONFIRMED_NOTICE)

    assert "hidden" in tag(quiet, "div", id="notice")
    assert "hidden" not in tag(told, "div", id="notice")
    assert "autofocus" in tag(told, "div", id="notice")


@pytest.mark.parametrize(
    ("status", "steps"),
    [
        (JourneyStatus.UNKNOWN, ["absent", "waiting", "waiting"]),
        (JourneyStatus.PENDING, ["done", "current", "waiting"]),
        (JourneyStatus.STORED, ["done", "done", "current"]),
        (JourneyStatus.MAILED, ["done", "done", "done"]),
        (JourneyStatus.MAIL_FAILED, ["done", "done", "failed"]),
    ],
)
def test_status_shows_how_far_the_journey_has_come(status: JourneyStatus, steps: list[str]) -> None:
    page = render_status(a_journey(status), REGISTRATION)

    assert shown_states(page) == steps
    assert "hidden" not in tag(page, "div", **{"data-when": status})
    assert "hidden" in tag(page, "div", id="notice")


def test_status_gives_the_times_that_are_known_in_utc() -> None:
    page = render_status(a_journey(JourneyStatus.STORED), REGISTRATION)

    stored = tag(page, "time", **{"data-moment": "storedAt"})
    mailed = tag(page, "time", **{"data-moment": "mailedAt"})
    assert stored["datetime"] == "2026-01-31T09:30:00+00:00"
    assert "31 January 2026, 09:30:00 UTC" in page
    assert "hidden" in mailed


@pytest.mark.parametrize("status", list(JourneyStatus))
def test_status_reloads_without_a_script_until_the_journey_ends(status: JourneyStatus) -> None:
    journey = a_journey(status)

    page = render_status(journey, REGISTRATION)

    assert ('http-equiv="refresh"' in page) is not journey.finished


def test_status_says_that_it_goes_on_when_it_can_not_be_read() -> None:
    page = render_status(None, REGISTRATION)

    assert shown_states(page) == ["done", "unknown", "unknown"]
    assert "hidden" not in tag(page, "div", id="notice")
    assert "Nothing is lost" in page
    assert 'http-equiv="refresh"' in page


def test_status_of_a_number_that_was_not_given_out_promises_nothing() -> None:
    unknown = render_status(a_journey(JourneyStatus.UNKNOWN), REGISTRATION)
    unreadable = render_status(None, REGISTRATION, accepted=False)

    assert shown_states(unreadable) == ["unknown", "unknown", "unknown"]
    for page in (unknown, unreadable):
        assert "done" not in shown_states(page)
        assert 'http-equiv="refresh"' in page  # it may still come


def test_problem_escapes_what_it_is_told() -> None:
    page = render_problem(404, MARKUP, MARKUP)

    assert "onerror" in page
    assert [attributes for name, attributes in Tags(page).found if "onerror" in attributes] == []


def test_pages_keep_the_content_security_policy() -> None:
    pages = (
        a_form(),
        render_status(a_journey(JourneyStatus.MAILED), REGISTRATION),
        render_problem(404, "Not found", "Check the address."),
    )

    found = [element for page in pages for element in Tags(page).found]

    assert all("src" in attributes for name, attributes in found if name == "script")
    assert "style" not in {name for name, _ in found}
    for _, attributes in found:
        assert not [name for name in attributes if name == "style" or name.startswith("on")]
        for place in ("src", "href", "action"):
            assert (attributes.get(place) or "/").startswith(("/", "#"))


def test_asset_changes_its_address_with_its_content() -> None:
    content = (resources.files("frontend") / "static" / "site.css").read_bytes()

    address = PAGES.asset("site.css")

    assert address == f"/static/site.css?v={hashlib.sha256(content).hexdigest()[:12]}"
