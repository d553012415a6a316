"""Reads JSON without the liberties that Python's own reader takes."""

import json
import math
from typing import NoReturn

from common.errors import MalformedError


def loads(raw: bytes) -> object:
    """The value that ``raw`` holds as JSON (RFC 8259) in UTF-8.

    Raises:
        MalformedError: It is not JSON, a name comes twice, a number is not finite or has
            thousands of digits, a string holds half of a surrogate pair, or it nests too deep.
    """
    try:
        value = _DECODER.decode(raw.decode("utf-8"))
        if b"\\u" in raw:
            _refuse_lone_surrogates(value)
    except RecursionError as error:
        raise MalformedError("The JSON nests too deep.") from error
    except UnicodeError as error:
        raise MalformedError("The text is not valid UTF-8 or holds a lone surrogate.") from error
    except ValueError as error:
        raise MalformedError(f"The body is not valid JSON: {_reason(error)}") from error
    return value


def _reason(error: ValueError) -> str:
    """What is wrong and where, without quoting the input."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}."
    if isinstance(error, _RefusedError):
        return str(error)
    return "a number has too many digits."


class _RefusedError(ValueError):
    """Valid for Python's reader, but not for us."""


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _RefusedError("a name comes twice in one object.")
    return value


def _refuse_constant(_name: str) -> NoReturn:
    raise _RefusedError("NaN and Infinity are no JSON.")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _RefusedError("a number is too large.")
    return value


def _refuse_lone_surrogates(value: object) -> None:
    """Raise UnicodeEncodeError for what cannot be written as UTF-8 again."""
    json.dumps(value, ensure_ascii=False).encode("utf-8")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant, parse_float=_finite
)
"""Made once: ``json.loads`` with hooks makes a new one for each call."""
