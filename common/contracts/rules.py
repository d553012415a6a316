"""The rules for values that people type, shared by pages, API and consumers."""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any
from urllib.parse import unquote

from email_validator import (
    SPECIAL_USE_DOMAIN_NAMES,
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
    TypeAdapter,
    WithJsonSchema,
)

NAME_MAX_LENGTH = 100
"""Characters in a name after trimming and NFC."""

NAME_TYPED_LENGTH = 10 * NAME_MAX_LENGTH
"""Characters that are brought into one form: letters may come apart from their marks, with spaces
and invisible characters between them."""

EMAIL_MAX_LENGTH = 254
"""Characters in an address (RFC 5321, 4.5.3.1.3 less the angle brackets)."""

_NAME_MARKS = r" '’‘՚׳״.·・\-\u058A\u05BE\u0970\u0E2F\u0F0B\u1361\u1806\u3007\u30A0"  # noqa: RUF001
"""Beside letters and marks: apostrophes, geresh and gershayim, full stops and their like in other
scripts, middle dots, hyphens, the Tibetan tsheg, the Ethiopic word space, the Chinese zero."""

_FOLDED_MARKS = {
    "\t": " ",
    **dict.fromkeys("`´\u1fef\u1ffd′＇‛", "'"),  # noqa: RUF001
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe58\ufe63\uff0d", "-"),
    **dict.fromkeys("\u2024\uff0e", "."),
    **dict.fromkeys("\u0387\u2022\u2027\u2219\u22c5", "·"),
    "\u0f0c": "\u0f0b",
    "\uff65": "・",
}
"""What keyboards, editors and web pages put in place of one of ``_NAME_MARKS``."""

_FORMATS = r"\u00AD\u061C\u180E\u200B-\u200F\u202A-\u202E\u2060-\u2064\u2066-\u206F\uFEFF"
"""Characters that show nothing: soft hyphen, joiners, marks of direction, byte order mark."""

_SPACES = r"\u00A0\u1680\u2000-\u200A\u202F\u205F\u3000"
"""Spaces of any width but the plain one, which is one of ``_NAME_MARKS``."""

_NO_LETTERS = (
    r"\p{M}" + _SPACES + _FORMATS + _NAME_MARKS + "".join(_FOLDED_MARKS).replace("\t", r"\t")
)

NAME_CHARACTER = rf"[\p{{L}}{_NO_LETTERS}]"
r"""One character that may be typed in a name, as ECMA 262 writes it with the flag ``u``: any
space and what is invisible are folded."""

NAME_PATTERN = rf"^[{_NO_LETTERS}]*\p{{L}}{NAME_CHARACTER}*$"
"""A name as it may be typed, with at least one letter; for browsers and JSON Schema (ECMA 262,
flag ``u``). It refuses nothing that ``clean_name`` and ``check_name`` take."""

EMAIL_CHARACTER = r"[^\s,;:()\[\]\\\x22\x00-\x1F\x7F-\x9F]"
"""One character that may be typed in an address or around it, in the same syntax."""

EMAIL_PATTERN = (
    r"^(?:[^<>@\uFF20]*<)?[^\s<>@\uFF20]+[@\uFF20][^\s<>@\uFF20]+[.\u3002\uFF0E\uFF61]"
    r"[^\s<>@\uFF20]+[\s>.,;\u3001\u3002\uFF0C\uFF1B\x22]*$"
)
"""What every address has as it may be typed: one at-sign, and after it a dot or one of the dots of
IDNA 2003; maybe with a name in front of it and a comma behind it.

For a first check in the browser; ``check_email`` has the last word and accepts nothing else.
"""

CACHED_NAMES = 1024
"""Names beyond plain ASCII of which a process caches the form, some 0.5 MB."""

CACHED_ADDRESSES = 1024
"""Addresses of which a process caches the outcome: those in flight at once, some 0.3 MB."""

NAME_HINT = "Use letters, spaces, hyphens, apostrophes and full stops only."
NAME_STRAY = f"{{character}} cannot be part of a name. {NAME_HINT}"
NAME_LETTERLESS = "A name needs at least one letter."
EMAIL_HINT = "Enter an e-mail address like ada@example.org."
EMAIL_STRAY = f"{{character}} cannot be part of an e-mail address. {EMAIL_HINT}"


def clean_name(value: object) -> object:
    """Normalise a name; what is no text is left for pydantic to refuse.

    Composed (NFC), one plain space wherever there are spaces of any kind, none at the ends, plain
    hyphens and apostrophes for their look-alikes, and nothing invisible except what a script needs
    (``_without_invisible``).
    """
    if not isinstance(value, str) or _PLAIN_NAME.fullmatch(value):
        return value
    if len(value) <= NAME_MAX_LENGTH:
        # Cached: each name passes here three times on its way.
        return _in_one_form(value)
    value = value.strip()
    # To compose many marks behind one letter takes time that grows with their square. What is
    # left as it is here is too long for a name.
    return _in_one_form.__wrapped__(value) if len(value) <= NAME_TYPED_LENGTH else value


@lru_cache(maxsize=CACHED_NAMES)
def _in_one_form(name: str) -> str:
    visible = _without_invisible(unicodedata.normalize("NFC", name))
    folded = "".join(map(_folded, visible))
    # Once more: what was invisible may have kept a letter from its accent.
    return _MANY_SPACES.sub(" ", unicodedata.normalize("NFC", folded)).strip()


_PLAIN_NAME = re.compile(r"[A-Za-z]+(?:[ '.-][A-Za-z]+)*")
"""Names on which ``clean_name`` changes nothing: with it they cost a third of a microsecond."""

_MANY_SPACES = re.compile(" {2,}")


@lru_cache(maxsize=4096)
def _folded(character: str) -> str:
    if character in _FOLDED_MARKS:
        return _FOLDED_MARKS[character]
    return " " if unicodedata.category(character) == "Zs" else character


_JOINERS = "\u200c\u200d\u180e"
"""Zero width non-joiner and joiner, Mongolian vowel separator."""

_JOINING = re.compile(
    "[\u0600-\u0dff\u1000-\u109f\u1700-\u180d\u180f-\u18af\u1900-\u1cff\ua800-\uabff"
    "\ufb50-\ufdff\ufe70-\ufefc\U00010a00-\U00011fff\U0001e900-\U0001e95f]"
)
"""Characters of scripts in which a joiner changes how a word is written or read: Arabic and its
kin, the scripts of India and of South-East Asia, Mongolian."""

_VARIATIONS = re.compile(
    "[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff][\ufe00-\ufe02\U000e0100-\U000e01ef]"
    "|[\u1800-\u18af][\u180b-\u180d\u180f]"
    "|[\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f]\ufe00"
)
"""A character, and the selector that says which of its forms a person's name has."""

_VIRAMA = 9
"""Combining class of the sign that takes a consonant's vowel away; a joiner may follow it at the
end of a word, too."""


def _without_invisible(text: str) -> str:
    """The text without characters that cannot be seen and mean nothing.

    A joiner stays between two characters of a script that needs it, and after a virama; a
    variation selector stays after a character that has such a form.
    """
    if text.isascii():
        return text
    kept: list[str] = []
    shown = [character for character in text if not _is_invisible(character)]
    for position, character in enumerate(shown):
        before = kept[-1] if kept else ""
        if character in _JOINERS:
            after = shown[position + 1] if position + 1 < len(shown) else ""
            is_needed = _JOINING.fullmatch(before) and (
                _JOINING.fullmatch(after) or unicodedata.combining(before) == _VIRAMA
            )
        elif _is_selector(character):
            is_needed = _VARIATIONS.fullmatch(before + character)
        else:
            is_needed = True
        if is_needed:
            kept.append(character)
    return "".join(kept)


@lru_cache(maxsize=4096)
def _is_invisible(character: str) -> bool:
    """Whether it shows nothing and no script needs it (Unicode: Default_Ignorable_Code_Point)."""
    if _FORMAT.fullmatch(character):
        return character not in _JOINERS
    return character in "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"


_FORMAT = re.compile(f"[{_FORMATS}]")


def _is_selector(character: str) -> bool:
    return (
        "\ufe00" <= character <= "\ufe0f"
        or "\U000e0100" <= character <= "\U000e01ef"
        or character in "\u180b\u180c\u180d\u180f"
    )


def check_name(value: str) -> str:
    """Refuse characters that no name has, and names without a letter.

    Raises:
        ValueError: With a message for the person who typed it, naming the character.
    """
    if _PLAIN_NAME.fullmatch(value):
        return value
    for character in value:
        if not _may_stand_in_a_name(character):
            raise ValueError(NAME_STRAY.format(character=shown(character)))
    if not any(map(str.isalpha, value)):
        raise ValueError(NAME_LETTERLESS)
    return value


def shown(character: str) -> str:
    """A character as the subject of a sentence: by its number where it is invisible."""
    if character == " ":
        return "A space"
    return f"“{character}”" if character.isprintable() else f"The character U+{ord(character):04X}"


@lru_cache(maxsize=4096)
def _may_stand_in_a_name(character: str) -> bool:
    r"""Letters and marks of any script, joiners that were kept, and ``_NAME_MARKS``.

    Python's ``re`` knows no ``\p{L}``, and to spell it out costs 0.2 s at each start.
    """
    return (
        unicodedata.category(character)[0] in "LM"
        or _NAME_MARK.fullmatch(character) is not None
        or character in _JOINERS
    )


_NAME_MARK = re.compile(f"[{_NAME_MARKS}]")


def clean_email(value: object) -> object:
    """Take an address out of what was pasted; what is no text is left for pydantic to refuse.

    Without invisible characters, full-width forms as plain ones; of ``Ada <ada@example.org>``
    what stands in the brackets; without ``mailto:``, and without a comma or full stop at the end.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.isascii() and text[-1:].isalpha() and text[:7].lower() != _MAILTO:
        return text
    text = _without_invisible(text.translate(_HALF_WIDTH)).strip().rstrip(_AFTER_ADDRESS)
    if match := _IN_BRACKETS.fullmatch(text):
        text = match[1].strip()
    if text[:7].lower() == _MAILTO:
        text = unquote(text[7:].partition("?")[0])
    return text.strip().rstrip(_AFTER_ADDRESS)


_MAILTO = "mailto:"
_IN_BRACKETS = re.compile(r"[^<>@]*<([^<>]*)>")
_AFTER_ADDRESS = " .,;\u3001\u3002"
_HALF_WIDTH = {number: number - 0xFEE0 for number in range(0xFF01, 0xFF5F)}
"""The full-width forms of ASCII, as keyboards for Chinese and Japanese type them."""


@lru_cache(maxsize=CACHED_ADDRESSES)
def check_email(value: str) -> str:
    """Normalise an address: domain in lower case, composed characters.

    DNS is not asked: its outage must not refuse people. The last addresses are cached, because
    each passes here three times on its way.

    Raises:
        ValueError: With a message for the person who typed it.
    """
    if _PLAIN_EMAIL.fullmatch(value) and not value.lower().endswith(_SPECIAL_DOMAINS):
        local, _, domain = value.rpartition("@")
        if local.lower() not in CASE_INSENSITIVE_MAILBOX_NAMES:
            return f"{local}@{domain.lower()}"
    try:
        address = validate_email(value, check_deliverability=False).normalized
    except (ValueError, UnicodeError) as error:  # also lone surrogates, from below the library
        raise ValueError(_refusal(value)) from error
    if len(address) > EMAIL_MAX_LENGTH:
        raise ValueError(EMAIL_HINT)
    return address


def _refusal(address: str) -> str:
    """The message for an invalid address: its wrong character, where one is to blame."""
    stray = _NOT_IN_EMAIL.search(address)
    return EMAIL_STRAY.format(character=shown(stray[0])) if stray else EMAIL_HINT


_NOT_IN_EMAIL = re.compile(EMAIL_CHARACTER.replace("[^", "[<>", 1))


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
    """Refuse what PostgreSQL cannot store as text, and control characters.

    Raises:
        ValueError: There is a control character or a lone surrogate.
    """
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
        raise ValueError("Control characters are not allowed.")
    return value


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
            "examples": ["Ada"],
            "description": f"At least one letter. {NAME_HINT}",
        }
    ),
]
"""A name or surname: O'Brien, Jean-Luc, Nguyễn and María José are people."""

EmailAddress = Annotated[
    str,
    StringConstraints(min_length=1, max_length=EMAIL_MAX_LENGTH),
    BeforeValidator(clean_email),
    AfterValidator(check_email),
    WithJsonSchema(
        {
            "type": "string",
            "format": "email",
            "maxLength": EMAIL_MAX_LENGTH,
            "examples": ["ada@example.org"],
        }
    ),
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

Text = Annotated[
    str,
    AfterValidator(check_text),
    _Documented({"pattern": TEXT_PATTERN, "examples": ["A line of text."]}),
]
"""Any printable text; bound its length with ``StringConstraints`` where it is used."""


def _in_utc(value: datetime) -> datetime:
    try:
        moment = value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("The date is out of range.") from error
    if not 1970 <= moment.year <= 9998:  # noqa: PLR2004 - room for any zone
        raise ValueError("The date is out of range.")
    return moment


_AWARE = TypeAdapter(AwareDatetime)


def _as_written(value: object) -> datetime:
    """Parse a text, as pydantic does not when strict; refuse numbers (seconds since 1970)."""
    if isinstance(value, datetime):
        return value
    if isinstance(value, str) and "-" in value[1:]:
        return _AWARE.validate_python(value)
    raise ValueError("Write a time like 2026-01-31T09:30:00Z.")


Instant = Annotated[AwareDatetime, BeforeValidator(_as_written), AfterValidator(_in_utc)]
"""A point in time, kept in UTC."""

MAX_BIGINT = 2**63 - 1
"""The largest number that the database can keep."""

RowId = Annotated[int, Field(ge=1, le=MAX_BIGINT)]
"""The number of a user, given by the database."""
