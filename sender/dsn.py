"""Reads delivery status notifications (RFC 3464): what became of a mail after it was accepted.

The report is a part of the type ``message/delivery-status``, anywhere in the mail: some servers put
it into ``multipart/mixed``, and people forward reports. It is read line by line, since servers
write it differently. Anyone can write such a mail, so nothing is trusted, and each line costs the
same, whatever it holds.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from uuid import UUID

from common.contracts.bounces import DIAGNOSTIC_LENGTH
from common.contracts.notifications import ReportAction
from common.errors import PermanentError
from sender.parts import HEADER_LENGTH, Headers, Part, read_parts

MAX_BYTES = 256 * 1024
"""Of a whole report; one of ours with the mail in it is some 15 kB."""

MAX_RECIPIENTS = 20
"""Of one report; a mail of ours has one."""

MAX_MESSAGE_IDS = 5
"""That are looked up."""

REPORTS = ("message/delivery-status", "message/global-delivery-status")

_MESSAGE_ID = re.compile(
    r"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})@", re.IGNORECASE
)
_STATUS = re.compile(r"(?<![0-9.])([245]\.[0-9]{1,3}\.[0-9]{1,3})(?![0-9.])")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
_FIELD = re.compile(r"([A-Za-z][A-Za-z0-9-]{0,60})[ \t]*:[ \t]*(.*)", re.DOTALL)
_WORD = re.compile(r"[a-z]+")

_RECIPIENTS = ("original-recipient", "final-recipient")
_FIELDS = frozenset(
    {
        *(*_RECIPIENTS, "action", "status", "diagnostic-code", "remote-mta", "final-log-id"),
        *("last-attempt-date", "will-retry-until", "original-envelope-id", "reporting-mta"),
        *("dsn-gateway", "received-from-mta", "arrival-date"),
    }
)
"""RFC 3464, 2.2 and 2.3. Any other line goes on with the field before it, unless it begins with
``X-``: some servers do not fold the replies of others."""

_ACTIONS = {
    **{action.value: action for action in ReportAction},
    "failure": ReportAction.FAILED,
    "expired": ReportAction.FAILED,
}
EXPIRED = "expired"
_USUAL_STATUS = {"failed": "5.0.0", "failure": "5.0.0", EXPIRED: "4.4.7", "delayed": "4.0.0"}
"""Where neither Status nor the diagnostic has one."""


class NotABounceError(PermanentError):
    """The posted mail is no delivery status notification."""

    code = "not_a_bounce"
    http_status = 422
    title = "Not a delivery status notification"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipientReport:
    """What became of the mail for one recipient."""

    recipients: tuple[str, ...]
    """Addresses as the report gives them: the original recipient first, where it names one."""

    action: ReportAction
    status: str
    """RFC 3463, such as 5.1.1."""

    diagnostic: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A delivery status notification."""

    message_ids: tuple[UUID, ...]
    """Of mails that it may be about, the likeliest first."""

    recipients: tuple[RecipientReport, ...]


def read_report(raw: bytes) -> Report:
    """Read the report in a mail (message/rfc822).

    Raises:
        NotABounceError: There is none, or it is too large.
    """
    if len(raw) > MAX_BYTES:
        raise NotABounceError(
            f"A report has at most {MAX_BYTES // 1024} KiB. Nothing was changed. "
            "Have the mail server return headers only, or cut off the mail that came back."
        )
    parts = list(read_parts(raw, REPORTS))
    groups = [group for part in parts if part.kind in REPORTS for group in _groups(part.lines)]
    recipients = tuple(filter(None, map(_recipient_report, groups)))[:MAX_RECIPIENTS]
    if not recipients:
        raise NotABounceError(
            "It has no part message/delivery-status with an action (RFC 3464, 2.3). "
            "Nothing was changed. Post the whole mail as the mail server sent it."
        )
    return Report(message_ids=_message_ids(parts, groups), recipients=recipients)


def _groups(lines: list[str]) -> list[Headers]:
    """Group fields by recipient; the first group has those about the mail."""
    groups: list[Headers] = [{}]
    last = ""
    is_parted = False
    for line in lines:
        match = _FIELD.fullmatch(line[:HEADER_LENGTH])
        name = match[1].lower() if match else ""
        if match and (name in _FIELDS or name.startswith("x-")):
            if _begins_group(groups[-1], name, is_parted=is_parted):
                groups.append({})
            is_parted = False
            last = "" if name in groups[-1] else name
            groups[-1].setdefault(name, match[2].strip())
        elif not line.strip():
            is_parted, last = True, ""
        elif last and len(groups[-1][last]) < HEADER_LENGTH:
            groups[-1][last] += " " + line.strip()[:HEADER_LENGTH]
    return groups[: MAX_RECIPIENTS + 1]


def _begins_group(group: Headers, name: str, *, is_parted: bool) -> bool:
    """Whether a field is about another recipient than those before it.

    An empty line alone proves nothing: some servers put one between all fields.
    """
    is_whole = "action" in group and any(field in group for field in _RECIPIENTS)
    if name in _RECIPIENTS:
        return is_whole or name in group
    return name in group and (name == "action" or (is_whole and is_parted))


def _recipient_report(group: Headers) -> RecipientReport | None:
    word = _WORD.match(_text(group, "action").lower())
    action = _ACTIONS.get(word[0]) if word else None
    if word is None or action is None:  # of the mail only; or nothing that the standard defines
        return None
    diagnostic = _text(group, "diagnostic-code")
    status = _STATUS.search(_text(group, "status")) or _STATUS.search(diagnostic)
    addresses = (_address(_text(group, name)) for name in _RECIPIENTS)
    return RecipientReport(
        recipients=tuple(dict.fromkeys(address for address in addresses if address)),
        action=action,
        status=status[1] if status else _USUAL_STATUS.get(word[0], "2.0.0"),
        diagnostic=diagnostic.partition(";")[2].strip() or diagnostic,
    )


def _text(group: Headers, name: str) -> str:
    """Return a field without control characters."""
    return _UNPRINTABLE.sub(" ", group.get(name, ""))[:DIAGNOSTIC_LENGTH].strip()


def _address(field: str) -> str:
    """Return the address in ``rfc822; ada@example.org``, or in a field without the type."""
    kind, is_typed, address = field.partition(";")
    if not is_typed:
        return field.strip("<> ") if "@" in field else ""
    return address.strip().strip("<>") if kind.strip().lower() in ("rfc822", "utf-8") else ""


def _message_ids(parts: list[Part], groups: list[Headers]) -> tuple[UUID, ...]:
    """Return ids in our form: of the mail that came back, else of what the report answers.

    The mail that came back stands behind the report. A mail inside of that one was forwarded.
    """
    kinds = [part.kind in REPORTS for part in parts]
    report = kinds.index(True)
    behind = [part.headers for part in parts[report:] if part.kind == "headers"]
    around = [part.headers for part in parts[:report] if part.kind == "headers"]
    fields = [*_fields(behind[:1], "message-id", *_ORIGINAL), *_fields(groups, *_ORIGINAL)]
    fields += _fields(reversed(around), *_ORIGINAL, "in-reply-to", "references")
    if not behind:
        fields += _fields(around[1:], "message-id")  # it stands before the report
    found = (UUID(text) for field in fields for text in _MESSAGE_ID.findall(field))
    return tuple(dict.fromkeys(found))[:MAX_MESSAGE_IDS]


_ORIGINAL = ("x-original-message-id", "original-message-id")
"""Where a server that gives mails ids of its own puts ours."""


def _fields(groups: Iterable[Headers], *names: str) -> Iterator[str]:
    return (group[name] for group in groups for name in names if name in group)
