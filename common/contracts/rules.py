"""The one rule for each value that a person types; pages, API and consumers all use it."""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any

from email_validator import (
    SPECIAL_USE_DOMAIN_NAMES,
    EmailNotValidError,
    validate_email,
)
from email_validator.rfc_constants import CASE_INSENSITIVE_MAILBOX_NAMES
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
    WithJsonSchema,
)

NAME_MAX_LENGTH = 100
"""Characters in a name after trimming and NFC."""

EMAIL_MAX_LENGTH = 254
"""Characters in an address (RFC 5321, 4.5.3.1.3 less the angle brackets)."""

NAME_PATTERN = r"^[\p{L}\p{M} '’.\-]+$"  # noqa: RUF001 - people do type the curly apostrophe
"""The characters of a name, as browsers and JSON Schema (ECMA 262, flag ``u``) write it."""

EMAIL_PATTERN = r"^[^\s@]+@[^\s@]+[.\u3002\uFF0E\uFF61][^\s@]+$"
"""What every address has: one at-sign, and after it a dot or one of the dots of IDNA 2003.

For a first check in the browser; ``check_email`` has the last word and accepts nothing else.
"""

REMEMBERED_ADDRESSES = 1024
"""Addresses of which a process knows the outcome: those in hand at once, some 0.3 MB."""

NAME_HINT = "Use letters, spaces, hyphens, apostrophes and full stops only."
EMAIL_HINT = "Enter an e-mail address like ada@example.org."


def clean_name(value: object) -> object:
    """Trim and compose (NFC); what is no text is left for pydantic to refuse."""
    return unicodedata.normalize("NFC", value).strip() if isinstance(value, str) else value


def check_name(value: str) -> str:
    """Refuse characters that no name has.

    Raises:
        ValueError: In words for the person who typed it.
    """
    if not all(map(_may_stand_in_a_name, value)):
        raise ValueError(NAME_HINT)
    return value


@lru_cache(maxsize=4096)
def _may_stand_in_a_name(character: str) -> bool:
    r"""Letters and marks of any script, and four others.

    Python's ``re`` knows no ``\p{L}``, and to spell it out costs 0.2 s at each start.
    """
    return character in " '’.-" or unicodedata.category(character)[0] in "LM"  # noqa: RUF001


@lru_cache(maxsize=REMEMBERED_ADDRESSES)
def check_email(value: str) -> str:
    """Normalise an address: domain in lower case, composed characters.

    No DNS is asked: an outage of it must not refuse people. The last addresses are
    remembered, because each passes here three times on its way through a service.

    Raises:
        ValueError: In words for the person who typed it.
    """
    if _PLAIN_EMAIL.fullmatch(value) and not value.lower().endswith(_SPECIAL_DOMAINS):
        local, _, domain = value.rpartition("@")
        if local.lower() not in CASE_INSENSITIVE_MAILBOX_NAMES:
            return f"{local}@{domain.lower()}"
    try:
        address = validate_email(value, check_deliverability=False).normalized
    except EmailNotValidError as error:
        raise ValueError(EMAIL_HINT) from error
    except (ValueError, UnicodeError) as error:  # lone surrogates, from below the library
        raise ValueError(EMAIL_HINT) from error
    if len(address) > EMAIL_MAX_LENGTH:
        raise ValueError(EMAIL_HINT)
    return address


_PLAIN_EMAIL = re.compile(
    r"(?=.{1,254}\Z)(?=[^@]{1,64}@)"
    r"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*"
    r"@(?:(?!.?.?--)[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,63}"
)
"""Addresses that email-validator is known to take as they are: nearly all there are.

It costs a tenth of a service's time; what does not match is asked of it. A test compares.
"""

_SPECIAL_DOMAINS = tuple(f"{dot}{name}" for name in SPECIAL_USE_DOMAIN_NAMES for dot in ".@")
"""Ends of addresses under names that lead nowhere (RFC 6761), which email-validator refuses."""


def check_text(value: str) -> str:
    """Refuse what PostgreSQL can not store as text, and control characters.

    Raises:
        ValueError: There is a control character or a lone surrogate.
    """
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
        raise ValueError("Control characters are not allowed.")
    return value


def _strip(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


PersonName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=NAME_MAX_LENGTH),
    BeforeValidator(clean_name),
    AfterValidator(check_name),
    WithJsonSchema(
        {
            "type": "string",
            "minLength": 1,
            "maxLength": NAME_MAX_LENGTH,
            "pattern": NAME_PATTERN,
            "description": f"Trimmed, NFC. {NAME_HINT}",
        }
    ),
]
"""A name or surname: O'Brien, Jean-Luc, Nguyễn and María José are people."""

EmailAddress = Annotated[
    str,
    StringConstraints(min_length=1, max_length=EMAIL_MAX_LENGTH),
    BeforeValidator(_strip),
    AfterValidator(check_email),
    WithJsonSchema({"type": "string", "format": "email", "maxLength": EMAIL_MAX_LENGTH}),
]
"""An e-mail address; compared in lower case by the database."""


@dataclass(frozen=True, eq=False)
class _Documented:
    """Adds to a JSON schema what only the code knows; what stands there already wins."""

    schema: Mapping[str, Any]

    def __get_pydantic_json_schema__(
        self, core_schema: Any, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**self.schema, **handler(core_schema)}


TEXT_PATTERN = r"^[^\x00-\x1F\x7F-\x9F]*$"
"""No control characters, as JSON Schema (ECMA 262) writes it."""

Text = Annotated[str, AfterValidator(check_text), _Documented({"pattern": TEXT_PATTERN})]
"""Any printable text; bound its length with ``StringConstraints`` where it is used."""


def _year_is_plausible(value: datetime) -> datetime:
    if not 1970 <= value.astimezone(UTC).year <= 9998:  # noqa: PLR2004 - room for any zone
        raise ValueError("The date is out of range.")
    return value


def _in_utc(value: datetime) -> datetime:
    try:
        return _year_is_plausible(value).astimezone(UTC)
    except OverflowError as error:
        raise ValueError("The date is out of range.") from error


def _as_written(value: object) -> object:
    """Refuse numbers, which pydantic would take for seconds since 1970."""
    if isinstance(value, datetime) or (isinstance(value, str) and "-" in value[1:]):
        return value
    raise ValueError("Write a time like 2026-01-31T09:30:00Z.")


Instant = Annotated[AwareDatetime, BeforeValidator(_as_written), AfterValidator(_in_utc)]
"""A point in time, kept in UTC."""

MAX_BIGINT = 2**63 - 1
"""The largest number that the database can keep."""

RowId = Annotated[int, Field(ge=1, le=MAX_BIGINT)]
"""The number of a user, given by the database."""
