"""Redacts the values of a message, which may be personal, and keeps its form."""

import json
import re
from typing import Any

from common.amqp.headers import (
    ATTEMPTS,
    ERROR_CODE,
    ERROR_DETAIL,
    FAILED_SERVICE,
    ORIGINAL_ROUTING_KEY,
)
from common.amqp.message import (
    ATTEMPT,
    DEFERRALS,
    FIRST_SEEN,
    MAX_BODY_BYTES,
    PREVIOUS_DELIVERIES,
    TRACEPARENT,
    Delivery,
)
from common.contracts import strict_json
from common.errors import MalformedError

REDACTED = "•••"
"""In place of a value."""

_PLAIN_FIELDS = {
    *("template", "userId", "registrationId", "timestamp"),
    *("format", "columns", "startDate", "endDate"),
}
"""Fields of our contracts that are not personal."""

_PLAIN_HEADERS = {
    *(ATTEMPT, FIRST_SEEN, PREVIOUS_DELIVERIES, DEFERRALS, TRACEPARENT),
    *(ATTEMPTS, ERROR_CODE, ERROR_DETAIL, FAILED_SERVICE, ORIGINAL_ROUTING_KEY),
    *("x-death", "x-delivery-count", "x-acquired-count"),
    *(
        f"x-{which}-death-{what}"
        for which in ("first", "last")
        for what in ("exchange", "queue", "reason")
    ),
}
"""Ours and the broker's."""

_PLAIN_VALUE = re.compile(r"[A-Za-z0-9_.:+-]{1,40}")
"""What a plain field holds; any other value in one is redacted all the same."""

_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")

_MAX_FIELDS = 50
_MAX_DEPTH = 4


def redacted_body(body: bytes) -> str:
    """The fields of a JSON body with their values redacted; of any other body only its size."""
    if len(body) > MAX_BODY_BYTES:
        return f"({len(body)} bytes)"
    try:
        value = strict_json.loads(body)
    except MalformedError:
        return f"({len(body)} bytes, not JSON)"
    return json.dumps(_redacted("", value, 0), indent=2, ensure_ascii=False)


def unmasked_body(body: bytes) -> str:
    """The body as text; invalid UTF-8 is replaced, and the text cut to 64 KiB."""
    text = body[:MAX_BODY_BYTES].decode("utf-8", errors="replace")
    cut = len(body) - MAX_BODY_BYTES
    return f"{text}\n… and {cut} bytes more" if cut > 0 else text


def shown_headers(delivery: Delivery, *, unmask: bool) -> dict[str, str]:
    """All headers; the values of those that are neither ours nor the broker's are redacted."""
    return {
        str(name)[:100]: _text(value) if unmask or name in _PLAIN_HEADERS else REDACTED
        for name, value in list(delivery.headers.items())[:_MAX_FIELDS]
    }


def _text(value: Any) -> str:
    return (value if isinstance(value, str) else repr(value))[:1000]


def _redacted(field: str, value: object, depth: int) -> object:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, dict) and depth < _MAX_DEPTH:
        return {
            name if _PLAIN_NAME.fullmatch(name) else REDACTED: _redacted(name, item, depth + 1)
            for name, item in list(value.items())[:_MAX_FIELDS]
        }
    if isinstance(value, list) and depth < _MAX_DEPTH:
        return [_redacted(field, item, depth + 1) for item in value[:_MAX_FIELDS]]
    if field in _PLAIN_FIELDS and _PLAIN_VALUE.fullmatch(str(value)):
        return value
    return f"{REDACTED} ({len(value)} characters)" if isinstance(value, str) else REDACTED
