"""The invariants, by ids: what the driver was promised against what is there at the end.

Nothing here talks to anything; see ``tools/chaos/observations.py`` for how the facts are gathered.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from tools.chaos.journal import Journal

LEASE_SECONDS = 30.0
"""A mail passes to another sender at the earliest after so long without a word of the first."""

REGISTRATIONS, MAILS = "user.registration", "email.notifications"

ENDED = frozenset({"sent", "failed", "suppressed", "bounced"})
"""States in which a mail stays."""

UNRECORDED = frozenset({"sending", "unsure"})
"""How an attempt stands whose 250, if there was one, could not be recorded."""

ROW_LOCKED = "row_locked"
"""Code of a message that met a row which was locked through all retries."""

ID_REUSED = "id_reused"
"""Code of a registration whose id belongs to another person."""

EXHAUSTED = frozenset({"mail_deferred", "mail_unsure", "lease_lost"})
"""Codes of mails that were put off to the end of the retry steps."""

MAIL_STEPS = 6
"""Retries of a mail before it is given up."""

LEAST_PERMANENT = 500
"""Of the replies of a mail server (RFC 5321, 4.2.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A row of ``registrations`` with the address of its user."""

    id: UUID
    email: str
    outcome: str = "stored"
    stored_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A row of ``notification_attempts``; instants in seconds since 1970."""

    status: str
    started_at: float
    reply_code: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """A row of ``notification_logs`` with its attempts, first one first."""

    message_id: UUID
    registration_id: UUID | None
    recipient: str
    status: str
    attempts: Sequence[Attempt] = ()


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter as it was read, and left, at the broker."""

    route: str
    message_id: UUID
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """All that is there at the end."""

    journal: Journal
    registrations: Sequence[Registration]
    users: Mapping[str, int]
    """Address in lower case to the number of users that have it."""
    mails: Sequence[Mail]
    taken: Sequence[tuple[str, str]]
    """Message-ID and recipient of every mail that the mail server took."""
    put_off: Mapping[str, int]
    """Recipient to how often the mail server did not take a mail (or did not say so)."""
    refused: Mapping[str, int]
    """Recipient to how often the mail server answered 5yz."""
    dead: Sequence[DeadLetter]
    waiting: Mapping[str, int]
    """Work or retry queue to the messages in it; those without any are left out."""
    reports: Sequence[tuple[UUID, str]] = ()
    """Report and its status."""
    stray_files: Sequence[str] = ()
    """Half-made files that will not be finished."""
    locked: Collection[str] = ()
    """Addresses, in lower case, of users whose rows were locked for a while."""
    ledger: Mapping[str, Any] | None = None
    """What ``GET /api/ledger`` says; None where it was not asked."""
    unpromised: Collection[UUID] = ()
    """Those of whom the ledger says that they were never promised."""
    logs_deleted: int = 0
    """How often the stream of registrations was deleted."""


@dataclass(slots=True)
class Evaluation:
    """What was found; every count but ``recovered`` and the bound must be nothing."""

    broken: dict[str, list[str]] = field(default_factory=dict)
    """Invariant to what breaks it."""
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether every promise was kept."""
        return not any(self.broken.values())


def evaluate(observations: Observations) -> Evaluation:
    """Check every invariant."""
    checks = {
        "lost": lost,
        "stored_twice": stored_twice,
        "unexpected": unexpected,
        "stuck": stuck,
        "dlq_unexplained": dlq_unexplained,
        "malformed_missing": malformed_missing,
        "dup_mail_beyond_bound": mailed_too_often,
        "unmailed": unmailed,
        "failed_unexplained": failed_unexplained,
        "two_answers": lambda observations: map(str, observations.journal.two_answers),
        "reports": reports,
        "reused_untold": reused_untold,
        "ledger_untrue": ledger_untrue,
        "promised_unpromised": promised_unpromised,
    }
    evaluation = Evaluation({name: sorted(check(observations)) for name, check in checks.items()})
    evaluation.counts = _counts(observations) | {
        name: len(found) for name, found in evaluation.broken.items()
    }
    return evaluation


def lost(observations: Observations) -> Iterator[str]:
    """Promised, and neither stored nor among the dead letters; or stored without a user."""
    stored = {row.id for row in observations.registrations}
    dead = {each.message_id for each in observations.dead if each.route == REGISTRATIONS}
    for registration_id, email in observations.journal.accepted.items():
        if registration_id not in stored and registration_id not in dead:
            yield str(registration_id)
        elif registration_id in observations.journal.reused:
            continue  # one of two people, the one handled first; see reused_untold
        elif registration_id in stored and not observations.users.get(email.lower()):
            yield f"{registration_id} (stored, but there is no user)"


def stored_twice(observations: Observations) -> Iterator[str]:
    """One id with two rows, one address with two users or with more rows than were tried."""
    ids = Counter(row.id for row in observations.registrations)
    yield from (f"{each}: {n} rows" for each, n in ids.items() if n > 1)
    yield from (f"{email}: {n} users" for email, n in observations.users.items() if n > 1)
    addresses = Counter(row.email for row in observations.registrations)
    for email, rows in addresses.items():
        tried = observations.journal.attempted.get(email, rows)
        if rows > tried:
            yield f"{email}: {rows} rows, {tried} tried"


def unexpected(observations: Observations) -> Iterator[str]:
    """Stored, though never submitted."""
    for row in observations.registrations:
        if row.email not in observations.journal.attempted:
            yield str(row.id)


def stuck(observations: Observations) -> Iterator[str]:
    """Neither done nor given up: still in a queue, or a mail that no sender will take up."""
    yield from (f"{queue}: {n} messages" for queue, n in observations.waiting.items())
    dead = {each.message_id for each in observations.dead}
    for mail in observations.mails:
        if mail.status not in ENDED and mail.message_id not in dead:
            yield f"mail {mail.message_id}: {mail.status}"


def unmailed(observations: Observations) -> Iterator[str]:
    """Stored, and no mail was taken, refused with a code, suppressed or given up with a reason."""
    dead = {each.message_id for each in observations.dead if each.route == MAILS}
    taken = {message_id for message_id, _ in observations.taken}
    mails = {mail.registration_id: mail for mail in observations.mails}
    for row in observations.registrations:
        mail = mails.get(row.id)
        if mail is None:
            yield f"{row.id}: no mail was asked for"
        elif mail.status == "sent" and str(mail.message_id) not in taken:
            yield f"{row.id}: recorded as sent, but the server never took it"
        elif mail.status not in ENDED and mail.message_id not in dead:
            yield f"{row.id}: {mail.status}"


def failed_unexplained(observations: Observations) -> Iterator[str]:
    """Recorded as failed, without a 5yz of the server."""
    for mail in observations.mails:
        refused = any(
            attempt.status == "failed" and (attempt.reply_code or 0) >= LEAST_PERMANENT
            for attempt in mail.attempts
        )
        if mail.status == "failed" and not (refused and observations.refused.get(mail.recipient)):
            yield str(mail.message_id)


def dlq_unexplained(observations: Observations) -> Iterator[str]:
    """Dead letters that no malformed message and no mail server is the reason of."""
    mails = {mail.message_id: mail for mail in observations.mails}
    reasons = observations.journal.poisoned | observations.journal.malformed
    for dead_letter in observations.dead:
        expected = reasons.get(dead_letter.message_id)
        if dead_letter.route == REGISTRATIONS and expected == dead_letter.code:
            continue
        accepted = observations.journal.accepted.get(dead_letter.message_id, "")
        if dead_letter.code == ID_REUSED and dead_letter.message_id in observations.journal.reused:
            continue
        if dead_letter.code == ROW_LOCKED and accepted.lower() in observations.locked:
            continue
        mail = mails.get(dead_letter.message_id) if dead_letter.route == MAILS else None
        put_off = observations.put_off.get(mail.recipient, 0) if mail else 0
        was_locked = mail is not None and mail.recipient.lower() in observations.locked
        if dead_letter.code in (*EXHAUSTED, ROW_LOCKED) and (put_off > MAIL_STEPS or was_locked):
            continue
        where = f"{dead_letter.route}: {dead_letter.message_id}"
        yield f"{where} ({dead_letter.code}, expected {expected})"


def reused_untold(observations: Observations) -> Iterator[str]:
    """Two people under one id of whom one vanished without a dead letter."""
    told = {each.message_id for each in observations.dead if each.code == ID_REUSED}
    locked = {each.message_id for each in observations.dead if each.code == ROW_LOCKED}
    yield from (str(each) for each in observations.journal.reused - told - locked)


def ledger_untrue(observations: Observations) -> Iterator[str]:
    """What the ledger says against what is there; it has had time to read everything."""
    ledger = observations.ledger
    if ledger is None:
        return
    totals, kinds = ledger["totals"], [each["kind"] for each in ledger["incidents"]]
    stored = {row.id for row in observations.registrations}
    dead = {each.message_id for each in observations.dead if each.route == REGISTRATIONS} - stored
    settled = totals["stored"] + totals["duplicates"]
    if not ledger["caughtUp"]:
        yield "it could not be read to its end"
    if ledger["lost"]:
        yield f"it calls {ledger['lost']} lost"
    parts = settled + totals["missing"] + totals["unpromised"] + ledger["rejected"]
    if totals["accepted"] != parts:
        yield f"its parts do not make up the whole: {totals}"
    if settled > len(stored) or totals["missing"] > len(dead):
        missing = f"{totals['missing']} missing of {len(dead)}"
        yield f"it has {settled} stored of {len(stored)}, {missing}"
    if totals["unpromised"] > observations.journal.unpromised:
        yield f"{totals['unpromised']} unpromised, and {observations.journal.unpromised} gave up"
    if observations.logs_deleted and "replaced" not in kinds:
        yield f"the log was deleted {observations.logs_deleted} times, and it does not say so"
    if unfounded := [kind for kind in kinds if kind != "replaced" or not observations.logs_deleted]:
        yield f"incidents that did not happen: {unfounded}"


def promised_unpromised(observations: Observations) -> Iterator[str]:
    """Answered with 202, and never promised for the ledger: a loss would be hidden."""
    yield from map(str, observations.journal.accepted.keys() & set(observations.unpromised))


def malformed_missing(observations: Observations) -> Iterator[str]:
    """Malformed messages that were taken, but are not among the dead letters."""
    dead = {each.message_id for each in observations.dead}
    yield from (str(each) for each in observations.journal.malformed if each not in dead)


def mailed_too_often(observations: Observations) -> Iterator[str]:
    """Mails that were taken once more than their unrecorded attempts can explain."""
    excused = {str(mail.message_id): _excused(mail.attempts) for mail in observations.mails}
    for message_id, times in Counter(each for each, _ in observations.taken).items():
        if times - 1 > excused.get(message_id, 0):
            yield f"{message_id}: taken {times} times, {excused.get(message_id, 0)} unrecorded"


def _excused(attempts: Sequence[Attempt]) -> int:
    """Attempts whose 250 could not be recorded before the next sender was allowed to try."""
    following: list[Attempt | None] = [*attempts[1:], None]
    return sum(
        attempt.status in UNRECORDED
        or (after is not None and after.started_at - attempt.started_at >= LEASE_SECONDS - 1)
        # A mail that was suppressed has no attempt at all.
        for attempt, after in zip(attempts, following, strict=False)
    )


def reports(observations: Observations) -> Iterator[str]:
    """Promised reports that are not ready or failed, or not there once; files left half-made."""
    rows = Counter(report for report, _ in observations.reports)
    ended = {report for report, status in observations.reports if status in ("ready", "failed")}
    for report in observations.journal.reports:
        if rows[report] != 1:
            yield f"report {report}: {rows[report]} records"
        elif report not in ended:
            yield f"report {report}: not ended"
    yield from (f"file {name}" for name in observations.stray_files)


def _counts(observations: Observations) -> dict[str, int]:
    journal = observations.journal
    by_id: dict[str, int] = defaultdict(int)
    for message_id, _ in observations.taken:
        by_id[message_id] += 1
    excused = {str(mail.message_id): _excused(mail.attempts) for mail in observations.mails}
    stored = {row.id for row in observations.registrations}
    twice = list((Counter(observations.dead) - Counter(set(observations.dead))).elements())
    return {
        "attempted": sum(journal.attempted.values()),
        "accepted": len(journal.accepted),
        "unpromised": journal.unpromised,
        "sent_twice_on_purpose": journal.repeated,
        "malformed": len(journal.malformed),
        "stored": len(stored),
        "duplicate_addresses": _count(
            row.outcome == "duplicate" for row in observations.registrations
        ),
        "ids_reused": len(journal.reused),
        "logs_deleted": observations.logs_deleted,
        "recovered": len(stored - set(journal.accepted)),
        "mailed": len(by_id),
        "mails_failed": _count(mail.status == "failed" for mail in observations.mails),
        "mails_suppressed": _count(mail.status == "suppressed" for mail in observations.mails),
        "dead_letters": len(observations.dead),
        "dead_letters_twice": len(twice),
        "dead_letters_twice_sent_once": _count(
            each.message_id not in journal.insisted for each in twice
        ),
        "dup_mail": sum(times - 1 for times in by_id.values()),
        "dup_mail_bound": sum(min(excused.get(each, 0), n) for each, n in by_id.items()),
        "reports_promised": len(journal.reports),
    }


def _count(facts: Iterable[bool]) -> int:
    return sum(facts)
