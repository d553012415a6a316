"""What the code of a dead letter means, what to do about it, and whether it can pass again.

Said once: pages, API and commands show it, and ``docs/observability.md`` is compared with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Remedy(StrEnum):
    """What helps a message of a kind."""

    SEND_BACK = "send_back"
    """It may pass as it is, once its cause is gone."""

    CORRECT = "correct"
    """As it is, it fails again; with another body it may pass."""

    DISCARD = "discard"
    """It cannot pass under its id, whatever its body."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Messages of one code."""

    meaning: str
    advice: str
    remedy: Remedy = Remedy.SEND_BACK


_NEIGHBOUR = Kind(
    "A fault of ours or of a neighbour.",
    "Find delivery.dead_lettered in the log by its message_id; repair it, then send it back.",
)
_ALONE = Kind(
    "This one message failed again and again while others got through: a mail server that answers "
    "421 to one recipient, dead letters that are full.",
    "Repair what the log's reason says; then send it back.",
)
_MAIL_SERVER = Kind(
    "The mail server put it off for 26 hours, or refused it for what is not the recipient's fault.",
    "Look at its attempts for the server's words, repair that, then send it back.",
)
_STORAGE = Kind(
    "A report could not be written.",
    "Free space, then send it back or ask for the report again.",
)

KINDS: Mapping[str, Kind] = {
    "malformed": Kind(
        "Not JSON, or not the contract; its detail names the fields.",
        "Tell its author. Correct it, or discard it.",
        Remedy.CORRECT,
    ),
    "too_large": Kind("Over 64 KiB.", "Tell its author, and discard it.", Remedy.DISCARD),
    "unknown_version": Kind(
        "Of a type that this service does not read.",
        "Deploy the version that does, then send it back; or tell its author.",
        Remedy.CORRECT,
    ),
    "template_data_missing": Kind(
        "A mail request without what its template needs.",
        "Tell its author. Correct it, or discard it.",
        Remedy.CORRECT,
    ),
    "invalid": Kind(
        "The database refused a value.",
        "Tell its author. Correct it, or discard it.",
        Remedy.CORRECT,
    ),
    "id_reused": Kind(
        "A registration whose message_id was another person's before: a publisher whose counter "
        "begins at 1 again.",
        "Tell its author that ids are for ever; send it back: it gets an id of its own.",
    ),
    "mail_deferred": _MAIL_SERVER,
    "mail_unsure": _MAIL_SERVER,
    "lease_lost": Kind(
        "Senders stood still again and again.",
        "Are the machines overloaded or frozen? Send it back.",
    ),
    "storage_failed": _STORAGE,
    "no_space": _STORAGE,
    "delivery_limit": Kind(
        "A hundred deliveries in vain, of the message or of its copies that were put aside; nobody "
        "knows why.",
        "Does a process die again and again, without a folder for notes that outlives it?",
    ),
    "process_killed": Kind(
        "Five processes died with nothing but this message in hand: suspects.",
        "Find out why (the end of the log before each start); repair it, then send it back.",
    ),
    "mail_server_unavailable": _ALONE,
    "database_service_unavailable": _ALONE,
    "broker_unavailable": _ALONE,
    "row_locked": Kind(
        "A transaction of somebody else held its row in PostgreSQL through all retries.",
        "End that transaction (SELECT * FROM pg_stat_activity WHERE state = 'idle in "
        "transaction'), then send it back.",
    ),
    "upstream_error": _NEIGHBOUR,
    "upstream_timeout": _NEIGHBOUR,
    "unexpected_error": _NEIGHBOUR,
}

UNKNOWN_KIND = Kind(
    "Nothing is known of this code: another program may have put it here.",
    "Look at it, and make a dry run before you send it back.",
)


def kind_of(code: str) -> Kind:
    """What messages of a code are."""
    return KINDS.get(code, UNKNOWN_KIND)
