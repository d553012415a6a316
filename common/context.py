"""The ids that travel with a request or message through every service and log line.

This is also the one place where a caller's identity will be added and checked:
``outgoing_headers`` is called for every request between services, ``enter_request`` for
every request that comes in.
"""

import random
import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass

REQUEST_ID = "X-Request-Id"
CORRELATION_ID = "X-Correlation-Id"
TRACEPARENT = "traceparent"

_VALID_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}")
_TRACEPARENT = re.compile(
    r"([0-9a-f]{2})-((?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(-.{0,200})?"
)


@dataclass(frozen=True, slots=True)
class Context:
    """The ids of the work in progress; empty ones are unknown."""

    request_id: str = ""
    correlation_id: str = ""
    message_id: str = ""
    traceparent: str = ""


_current: ContextVar[Context] = ContextVar("userstream_context", default=Context())  # noqa: B039 - frozen


def current() -> Context:
    """The context of the running task."""
    return _current.get()


def current_ids() -> dict[str, str]:
    """The known ids, as log lines carry them."""
    context = _current.get()
    ids = {
        "request_id": context.request_id,
        "correlation_id": context.correlation_id,
        "message_id": context.message_id,
        "trace_id": context.traceparent[3:35],
    }
    return {name: value for name, value in ids.items() if value}


def enter_request(headers: Mapping[str, str]) -> Context:
    """Adopt the ids of an incoming request, or make them; invalid ids are replaced.

    The request is a span of its own in its trace, as Trace Context (3.2.2.4) demands. So no two
    requests share a span, whatever their clients send.
    """
    request_id = valid_id(headers.get(REQUEST_ID)) or _hex(128)
    context = Context(
        request_id=request_id,
        correlation_id=valid_id(headers.get(CORRELATION_ID)) or request_id,
        traceparent=_new_span(valid_traceparent(headers.get(TRACEPARENT))) or _new_traceparent(),
    )
    _current.set(context)
    return context


def enter_message(message_id: str, correlation_id: str, traceparent: str) -> None:
    """Adopt the ids of a delivery for the running task."""
    _current.set(
        Context(message_id=message_id, correlation_id=correlation_id, traceparent=traceparent)
    )


def outgoing_headers() -> dict[str, str]:
    """The headers that hand the ids on to another service."""
    context = _current.get()
    headers = {
        REQUEST_ID: context.request_id,
        CORRELATION_ID: context.correlation_id,
        TRACEPARENT: context.traceparent,
    }
    return {name: value for name, value in headers.items() if value}


def valid_id(value: object) -> str:
    """The value if it is an id that may stand in logs and headers, else nothing."""
    return value if isinstance(value, str) and _VALID_ID.fullmatch(value) else ""


def valid_traceparent(value: object) -> str:
    """The W3C trace context that the value holds, as version 00; else nothing.

    Later versions may only add to it, so their beginning is read (Trace Context, 3.2.2).
    """
    found = _TRACEPARENT.fullmatch(value) if isinstance(value, str) else None
    if found is None or found[1] == "ff" or (found[1] == "00" and found[3]):
        return ""
    return f"00-{found[2]}"


def span_of(traceparent: str) -> str:
    """The parent-id of a valid trace context: 16 hexadecimal digits; empty if there is none."""
    return traceparent[36:52]


def _new_span(traceparent: str) -> str:
    """The same trace, with a new parent-id."""
    return traceparent and f"{traceparent[:36]}{_hex(64)}{traceparent[52:]}"


def _new_traceparent() -> str:
    ids = _hex(192)
    return f"00-{ids[:32]}-{ids[32:]}-00"


def _hex(bits: int) -> str:
    """A random id; these name things and open nothing, so the system is not asked for it."""
    return random.randbytes(bits // 8).hex()  # noqa: S311
