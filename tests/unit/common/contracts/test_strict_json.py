import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.contracts import strict_json
from common.errors import MalformedError

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)  # fmt: skip


@given(JSON, st.booleans())
def test_loads_gives_back_what_was_written(value: Any, ascii_only: bool) -> None:  # noqa: FBT001
    raw = json.dumps(value, ensure_ascii=ascii_only).encode()

    assert strict_json.loads(raw) == value


@given(st.binary() | st.text('{}[]",:\\u0dD8eE+-.Nafin1\n').map(str.encode))
@example(b"\xef\xbb\xbf{}")
@example(b'["\\ud800"]')
@example(b"[" * 500 + b'"\\ud83d\\ude00"' + b"]" * 500)
def test_loads_refuses_with_nothing_but_malformed(raw: bytes) -> None:
    try:
        value = strict_json.loads(raw)
    except MalformedError:
        return

    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # what is read can be written


REFUSED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "line 1, column 1"),
    "truncated": (b'{\n"name": ', "line 2, column 9"),
    "two values": (b"1 2", "not valid JSON"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "not valid JSON"),
    "UTF-16": ('{"a": 1}'.encode("utf-16-le"), "not valid JSON"),
    "Latin-1": ('"é"'.encode("latin-1"), "UTF-8"),
    "an encoded surrogate": (b'"\xed\xa0\x80"', "UTF-8"),
    "half a pair": (b'["\\ud800"]', "surrogate"),
    "half a pair in a name": (b'{"\\udc00": 1}', "surrogate"),
    "a name twice": (b'{"a": 1, "a": 1}', "twice"),
    "a name twice, deeper": (b'[{"x": {"a": 1, "\\u0061": 2}}]', "twice"),
    "NaN": (b"NaN", "NaN"),
    "Infinity": (b"[-Infinity]", "Infinity"),
    "a float beyond the largest": (b"1e999", "too large"),
    "a number of 5,000 digits": (b"9" * 5000, "too many digits"),
    "100,000 brackets": (b"[" * 100_000, "nests too deep"),
    "100,000 objects": (b'{"a":' * 100_000, "nests too deep"),
    "single quotes": (b"{'a': 1}", "not valid JSON"),
    "a trailing comma": (b"[1,]", "not valid JSON"),
    "a raw line break in a string": (b'"a\nb"', "not valid JSON"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_loads_says_what_is_wrong(kind: str) -> None:
    raw, words = REFUSED[kind]

    with pytest.raises(MalformedError, match=words):
        strict_json.loads(raw)


def test_the_refusal_does_not_quote_the_input() -> None:
    with pytest.raises(MalformedError) as caught:
        strict_json.loads(b'{"email": "ada@example.org", ada}')

    assert "ada" not in caught.value.detail


def test_numbers_that_python_reads_exactly_are_kept() -> None:
    assert strict_json.loads(b"[9007199254740993, 1.5, -0.0]") == [9007199254740993, 1.5, 0.0]
    assert math.copysign(1, float(str(strict_json.loads(b"-0.0")))) == -1
