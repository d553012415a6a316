"""Reads delivery status notifications (RFC 3464): what became of a mail after it was taken.

Anybody can write such a mail, so nothing is trusted: the standard library's parser sees only
what is within the limits below, and of its result only what stands where RFC 3462 puts it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser, BytesParser, HeaderParser
from email.policy import compat32
from typing import Any, TypeAlias
from uuid import UUID

from common.contracts.bounces import DIAGNOSTIC_LENGTH
from common.contracts.notifications import ReportAction
from common.errors import PermanentError

MAX_BYTES = 256 * 1024
"""Of a whole report; one of ours with the mail in it is some 15 kB."""

MAX_LINES = 20_000
MAX_LINE_BYTES = 10_000
"""RFC 5322, 2.1.1 allows 998; some servers do not fold what others said."""

MAX_TYPES = 20
"""Headers that say Content-Type. The parser goes one level deeper with each, two at most."""

MAX_TYPE_BYTES = 1_000
"""Of one such header; taking one apart takes time that grows with the square of its length."""

MAX_RECIPIENTS = 20
"""That one report speaks of; a mail of ours has one."""

MAX_MESSAGE_IDS = 5
"""That are looked up."""

_TYPE_HEADER = re.compile(
    rb"^content-type[ \t]*:[^\n]*(?:\n[ \t][^\n]*)*", re.IGNORECASE | re.MULTILINE
)
_MESSAGE_ID = re.compile(
    r"<\s*([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})@", re.IGNORECASE
)
_STATUS = re.compile(r"(?<![0-9.])([245]\.[0-9]{1,3}\.[0-9]{1,3})(?![0-9.])")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]+")

Part: TypeAlias = "Message[Any, Any]"
"""A mail, a part of one, or a group of fields: all are headers with something below."""

_REPORTS = ("message/delivery-status", "message/global-delivery-status")
_MAILS = ("message/rfc822", "message/global")
_HEADERS = ("text/rfc822-headers", "message/global-headers")

_USUAL_STATUS = {ReportAction.FAILED: "5.0.0", ReportAction.DELAYED: "4.0.0"}


class NotABounceError(PermanentError):
    """What was posted is no delivery status notification."""

    code = "not_a_bounce"
    http_status = 422
    title = "That is no delivery status notification"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipientReport:
    """What became of the mail for one recipient."""

    recipients: tuple[str, ...]
    """Addresses as the report gives them: the one that we wrote to first, where it says so."""

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
    """The report in a mail (message/rfc822).

    Raises:
        NotABounceError: There is none, or it is like none that a mail server writes.
    """
    text = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    _check_limits(text)
    mail = BytesParser(policy=compat32).parsebytes(text)
    if mail.get_content_type() != "multipart/report":
        raise NotABounceError(
            "A delivery status notification is a mail of the type multipart/report (RFC 3462). "
            "Nothing was changed. Post the whole mail as the mail server sent it."
        )
    parts = _children(mail)
    recipients = tuple(
        report
        for part in parts[1:]
        if part.get_content_type() in _REPORTS
        for report in map(_recipient_report, _blocks(part)[:MAX_RECIPIENTS])
        if report is not None
    )[:MAX_RECIPIENTS]
    if not recipients:
        raise NotABounceError(
            "There is no message/delivery-status in it that names a recipient and an action "
            "(RFC 3464, 2.3). Nothing was changed."
        )
    return Report(message_ids=_message_ids(mail, parts), recipients=recipients)


def _check_limits(text: bytes) -> None:
    lines = text.split(b"\n")
    types = _TYPE_HEADER.findall(text)
    if (
        len(text) > MAX_BYTES
        or len(lines) > MAX_LINES
        or max(map(len, lines)) > MAX_LINE_BYTES
        or len(types) > MAX_TYPES
        or any(len(header) > MAX_TYPE_BYTES for header in types)
    ):
        raise NotABounceError(
            f"A report has at most {MAX_BYTES // 1024} KiB, {MAX_LINES:,} lines of up to "
            f"{MAX_LINE_BYTES:,} bytes, and {MAX_TYPES} parts with their types in up to "
            f"{MAX_TYPE_BYTES:,} bytes each. Nothing was changed."
        )


def _children(mail: Part) -> list[Part]:
    payload = mail.get_payload()
    return [part for part in payload if isinstance(part, Message)] if mail.is_multipart() else []


def _blocks(part: Part) -> list[Part]:
    """The groups of fields: the first is about the mail, each other one about a recipient."""
    blocks = _children(part)
    if part.get_content_type() == "message/delivery-status" or not blocks:
        return blocks
    # The parser knows the plain type only; of the one with UTF-8 it makes a mail.
    rest = blocks[0].get_payload()
    more = re.split(r"\n{2,}", rest.strip("\n")) if isinstance(rest, str) else []
    parse = HeaderParser(policy=compat32).parsestr
    return [blocks[0], *(parse(block) for block in more[:MAX_RECIPIENTS])]


def _recipient_report(block: Part) -> RecipientReport | None:
    try:
        action = ReportAction(_field(block, "Action").partition("(")[0].strip().lower())
    except ValueError:  # the group about the mail has none
        return None
    diagnostic = _field(block, "Diagnostic-Code")
    status = _STATUS.search(_field(block, "Status")) or _STATUS.search(diagnostic)
    names = ("Original-Recipient", "Final-Recipient")
    addresses = (_address(_field(block, name)) for name in names)
    return RecipientReport(
        recipients=tuple(dict.fromkeys(address for address in addresses if address)),
        action=action,
        status=status[1] if status else _USUAL_STATUS.get(action, "2.0.0"),
        diagnostic=diagnostic.partition(";")[2].strip() or diagnostic,
    )


def _field(block: Part, name: str) -> str:
    """A field on one line, without what no text may hold."""
    return _UNPRINTABLE.sub(" ", str(block.get(name, "")))[:DIAGNOSTIC_LENGTH].strip()


def _address(field: str) -> str:
    """The address in ``rfc822; ada@example.org``."""
    kind, _, address = field.partition(";")
    return address.strip().strip("<>") if kind.strip().lower() in ("rfc822", "utf-8") else ""


def _message_ids(mail: Part, parts: list[Part]) -> tuple[UUID, ...]:
    """Ids in our form: of the mail that came back, else of what the report answers to."""
    headers = [header for part in parts[1:] for header in _original_headers(part)]
    fields = [str(header.get("Message-ID", "")) for header in headers[:1]]
    fields += [str(mail.get(name, "")) for name in ("In-Reply-To", "References")]
    found = (UUID(text) for field in fields for text in _MESSAGE_ID.findall(field))
    return tuple(dict.fromkeys(found))[:MAX_MESSAGE_IDS]


def _original_headers(part: Part) -> Iterator[Part]:
    """The headers of the mail that came back, where the part holds them."""
    kind = part.get_content_type()
    if kind in _MAILS:
        yield from _children(part)[:1]
    elif kind in _HEADERS:
        inner = part.get_payload(decode=True)
        if isinstance(inner, bytes):
            yield BytesHeaderParser(policy=compat32).parsebytes(inner)
        else:  # message/… is parsed already
            yield from _children(part)[:1]
