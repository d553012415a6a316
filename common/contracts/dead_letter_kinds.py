"""What the code of a dead letter means, what to do about it, and whether it can succeed again.

Pages, API and commands show it; a test compares it with ``docs/observability.md``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Remedy(StrEnum):
    """What helps messages of a kind."""

    SEND_BACK = "send_back"
    """They may succeed as they are, once the cause is gone."""

    CORRECT = "correct"
    """They fail again as they are; with another body they may succeed."""

    DISCARD = "discard"
    """They cannot succeed under their id, whatever the body."""


@dataclass(frozen=True, slots=True)
class Kind:
    """The dead letters of one code."""

    meaning: str
    advice: str
    remedy: Remedy = Remedy.SEND_BACK


_INTERNAL = Kind(
    "A fault of this service or of another one.",
    "Find delivery.dead_lettered in the log by its message_id; fix the cause, then send it back.",
)
_SINGLE = Kind(
    "This one message failed repeatedly while others succeeded: a mail server that answers 421 to "
    "one recipient, a dead-letter queue that is full.",
    "Fix what the log's reason names; then send it back.",
)
_MAIL_SERVER = Kind(
    "The mail server deferred it for 26 hours, or refused it for a reason that is not the "
    "recipient.",
    "Find the server's reply among its attempts, fix the cause, then send it back.",
)
_STORAGE = Kind(
    "A report could not be written.",
    "Free space, then send it back or ask for the report again.",
)

KINDS: Mapping[str, Kind] = {
    "malformed": Kind(
        "Not JSON, or not the contract; its detail names the fields.",
        "Inform the publisher. Correct it, or discard it.",
        Remedy.CORRECT,
    ),
    "too_large": Kind("Over 64 KiB.", "Inform the publisher, and discard it.", Remedy.DISCARD),
    "unknown_version": Kind(
        "Of a type that this service does not read.",
        "Deploy the version that does, then send it back; or inform the publisher.",
        Remedy.CORRECT,
    ),
    "template_data_missing": Kind(
        "A mail request without what its template needs.",
        "Inform the publisher. Correct it, or discard it.",
        Remedy.CORRECT,
    ),
    "invalid": Kind(
        "The database refused a value.",
        "Inform the publisher. Correct it, or discard it.",
        Remedy.CORRECT,
    ),
    "id_reused": Kind(
        "A registration with the message_id of another person: a publisher whose counter restarted "
        "at 1.",
        "Inform the publisher that ids must never be reused. Send it back: it gets a new id.",
    ),
    "mail_deferred": _MAIL_SERVER,
    "mail_unsure": _MAIL_SERVER,
    "lease_lost": Kind(
        "Senders were paused or frozen repeatedly, for longer than their lease.",
        "Check the machines for overload; then send it back.",
    ),
    "storage_failed": _STORAGE,
    "no_space": _STORAGE,
    "delivery_limit": Kind(
        "A hundred deliveries without success, of the message or of its deferred copies; the cause "
        "is unknown.",
        "Check whether a process crashes repeatedly without a folder for crash markers that "
        "outlives it.",
    ),
    "process_killed": Kind(
        "Five processes died with only this message in flight: quarantine.",
        "Find out why (the end of the log before each start); fix the cause, then send it back.",
    ),
    "mail_server_unavailable": _SINGLE,
    "database_service_unavailable": _SINGLE,
    "broker_unavailable": _SINGLE,
    "row_locked": Kind(
        "Another transaction held a lock on its row in PostgreSQL through all retries.",
        "End that transaction (SELECT * FROM pg_stat_activity WHERE state = 'idle in "
        "transaction'), then send it back.",
    ),
    "upstream_error": _INTERNAL,
    "upstream_timeout": _INTERNAL,
    "unexpected_error": _INTERNAL,
}

UNKNOWN_KIND = Kind(
    "This code is unknown: another program may have published the message here.",
    "Inspect it, and try it in a dry run before you send it back.",
)


def kind_of(code: str) -> Kind:
    """What a code stands for."""
    return KINDS.get(code, UNKNOWN_KIND)
