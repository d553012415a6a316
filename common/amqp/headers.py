"""What a message keeps when it is published again: to a retry step, the dead letters, or back."""

from datetime import UTC, datetime
from typing import Any

from common.amqp.message import FIRST_SEEN, TRACEPARENT, WITHOUT_MAIL, Delivery

ERROR_CODE = "x-error-code"
ERROR_DETAIL = "x-error-detail"
ATTEMPTS = "x-failed-attempts"
FAILED_SERVICE = "x-failed-service"
ORIGINAL_ROUTING_KEY = "x-original-routing-key"
"""Why a dead letter is one; see ``common.messaging.dispatcher``."""

FIRST_SEEN_MAX_LENGTH = 40
"""Characters of an ISO 8601 time. All headers must fit into one frame, ours beside the sender's:
a message that the broker will not take back would stop its queue for good."""


def republish_properties(delivery: Delivery) -> dict[str, Any]:
    """What a republished message keeps; ``user_id`` and the like would close the channel."""
    texts = {
        "message_id": str(delivery.id),
        "correlation_id": delivery.correlation_id,
        "type": delivery.type,
        "content_type": delivery.content_type,
        "content_encoding": delivery.content_encoding,
        "app_id": delivery.app_id,
    }
    kept: dict[str, Any] = {
        key: short_text(value) for key, value in texts.items() if isinstance(value, str)
    }
    if isinstance(delivery.timestamp, datetime):
        kept["timestamp"] = delivery.timestamp
    if isinstance(delivery.priority, int):
        # From RabbitMQ 4.3 on it decides who comes first, and a message without one has 4: a
        # copy without it would come before those that still wait with 0, again and again.
        kept["priority"] = delivery.priority
    return kept


def short_text(text: str) -> str:
    """As much of a text as an AMQP short string holds: 255 bytes."""
    return text.encode()[:255].decode(errors="ignore")


def republish_headers(delivery: Delivery) -> dict[str, Any]:
    """Ours only: with a kept ``x-death`` the broker drops the message as a cycle."""
    first_seen = delivery.headers.get(FIRST_SEEN)
    headers: dict[str, Any] = {
        FIRST_SEEN: first_seen
        if isinstance(first_seen, str) and len(first_seen) <= FIRST_SEEN_MAX_LENGTH
        else datetime.now(UTC).isoformat(timespec="milliseconds")
    }
    if delivery.headers.get(WITHOUT_MAIL) is True:
        headers[WITHOUT_MAIL] = True
    if delivery.traceparent:
        headers[TRACEPARENT] = delivery.traceparent
    return headers
