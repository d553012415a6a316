"""What a JSON schema cannot say of our values, for ``schemathesis``."""

import json
import unicodedata
from datetime import UTC, datetime
from typing import Any

import jsonschema_rs
import schemathesis
from hypothesis import strategies as st
from schemathesis import Case, HookContext, Response
from schemathesis.core.failures import AcceptedNegativeData, Failure, ServerError
from schemathesis.openapi.checks import RejectedPositiveData

from common.contracts.rules import NAME_HINT, NAME_LETTERLESS
from common.http.validation import WHOLE_NUMBER

BEYOND_SCHEMAS = (
    ("/api/registrations", "A registration with this key was accepted before"),
    ("/api/submit", "A registration with this key was accepted before"),
    ("/api/reports", "There is no report with this id."),  # of `after`, the place to go on
    ("/api/reports", "The page cannot be found: after."),
    ("/api/notifications/send", "template_data_missing"),
    ("/api/bounces", "no part message/delivery-status"),
    ("/api/dead-letters/discard", "Name ids, a route or a code"),
    ("/api/dead-letters/redrive", "Name ids, a route or a code"),
    ("/api/dead-letters/dry-run", "Name ids, a route or a code"),
    ("/dead-letters/discard", "Name ids, a route or a code"),
    ("/dead-letters/redrive", "Name ids, a route or a code"),
    ("/dead-letters/dry-run", "Name ids, a route or a code"),
    ("/api/reports/generate", "The end date lies before the start date."),
    ("/api/users/report", "The end date lies before the start date."),
    ("/api/users/report", "Columns are: id, name, surname"),  # that each stands once is no pattern
    ("/api/canaries/{canary_id}", "This is not the id of a canary"),
    ("/api/notifications/claims", "PostgreSQL cannot store"),  # a user that there is not
    ("/api/ledger/entries", "PostgreSQL cannot store"),  # a sum beyond 64 bits
)
"""Operation, and its words for what is right by the schema and wrong beside another value."""

_FORMS = (
    "p{}@example.org",
    "P.{}+tag@Example.org",
    "{}@a-{}.example.org",
    "_{}@xn--mller-kva.example.org",
)

_FAR_FUTURE = 250_000_000_000
"""Seconds since 1970: the year 9892."""


def _addresses() -> st.SearchStrategy[str]:
    """Addresses under names that lead somewhere; a schema knows nothing of ``.test``."""
    return st.builds(
        lambda form, number: form.format(number, number),
        st.sampled_from(_FORMS),
        st.integers(0, 10**12),
    )


def _times() -> st.SearchStrategy[str]:
    """Times that a computer may have said, from 1970 on."""
    return st.integers(0, _FAR_FUTURE).map(
        lambda seconds: datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    )


def _is_assigned(text: str) -> bool:
    r"""Whether Unicode has all its characters; ``\p{M}`` is made into ranges with gaps in them."""
    return not any(unicodedata.category(character) == "Cn" for character in text)


schemathesis.openapi.format("email", _addresses())
schemathesis.openapi.format("date-time", _times())


@schemathesis.hook
def filter_failure(
    context: HookContext,  # noqa: ARG001 - found by its name
    failure: Failure,
    case: Case[Any],
    response: Response,
) -> bool:
    """Whether a failure is one."""
    if isinstance(failure, AcceptedNegativeData):
        return _is_wrong(case, failure)
    if isinstance(failure, RejectedPositiveData):
        return _is_right(case, response)
    if isinstance(failure, ServerError):
        # A client may watch a hundred at a time; on a busy machine this one closes them late.
        return "urn:userstream:problem:too_many_watchers" not in response.text
    return True


def _is_wrong(case: Case[Any], failure: AcceptedNegativeData) -> bool:
    """Whether what was accepted should have been refused."""
    # What is left empty on a page is left out.
    if case.operation.path == "/dead-letters" and "" in case.query.values():
        return False
    return "Invalid component: in body" not in failure.message or not _is_as_documented(case)


def _is_right(case: Case[Any], response: Response) -> bool:
    """Whether what was refused should have been accepted."""
    # Links between operations, guessed by name, carry a null of an answer into a path.
    if "None" in map(str, (case.path_parameters or {}).values()):
        return False
    # A form knows no null; it is sent as the text "null".
    if case.media_type == "application/x-www-form-urlencoded" and _has_null(case.body):
        return False
    # By JSON Schema 1.0 is an integer.
    if WHOLE_NUMBER in response.text and _has_whole_float(case.body):
        return False
    if (NAME_HINT in response.text or NAME_LETTERLESS in response.text) and not _is_assigned(
        json.dumps(case.body, ensure_ascii=False, default=str)
    ):
        return False
    return not any(
        case.operation.path == path and words in response.text for path, words in BEYOND_SCHEMAS
    )


def _is_as_documented(case: Case[Any]) -> bool:
    r"""Whether a body keeps to the document as it is written.

    ``schemathesis`` reads ``\p{L}`` as the Latin alphabet alone, and takes a Chinese name
    for a wrong one.
    """
    document = case.operation.schema.raw_schema
    operation = document["paths"][case.operation.path][case.operation.method.lower()]
    schema = operation["requestBody"]["content"][case.media_type]["schema"]
    validator = jsonschema_rs.validator_for(
        {**schema, "components": document["components"]}, validate_formats=True
    )
    return validator.is_valid(case.body)


def _has_whole_float(value: object) -> bool:
    if isinstance(value, dict):
        value = [*value.values()]
    if isinstance(value, list):
        return any(map(_has_whole_float, value))
    return isinstance(value, float) and value.is_integer()


def _has_null(body: object) -> bool:
    return isinstance(body, dict) and None in body.values()
