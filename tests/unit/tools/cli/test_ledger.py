import io
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from common.contracts.ledger import Incident
from tools.cli import ledger
from tools.launcher.arguments import parser
from tools.launcher.terminal import Terminal

LOST: dict[str, Any] = {
    "registrationId": "cc05d4a5-0000-4000-8000-000000000001",
    "acceptedAt": "2026-01-31T09:30:00Z",
    "ageSeconds": 4210,
    "streamOffset": 17,
}


def a_ledger(**changes: Any) -> dict[str, Any]:
    mails = {
        **dict.fromkeys(("mailed", "suppressed", "failed", "bounced", "unsure", "waiting"), 0),
        "mailed": 12_300,
    }
    totals = {
        "accepted": 12_345,
        "repeated": 0,
        "stored": 12_300,
        "duplicates": 40,
        "missing": 5,
        "mails": mails,
        "truncated": 0,
        "restarts": 0,
        "vanished": 0,
        "unpromised": 0,
    }
    base = {
        "asOf": "2026-01-31T10:40:10.123Z",
        "readUpTo": 12_345,
        "caughtUp": True,
        "totals": totals,
        "inFlight": 3,
        "inFlightByPlace": {"ready": 1, "unacknowledged": 2, "retrying": 0},
        "deadLettered": 2,
        "deadLetteredByCode": {"malformed": 2},
        "rejected": 0,
        "rejectedByCode": {},
        "lost": 0,
        "lostAfterSeconds": 600.0,
        "lostRegistrations": [],
        "workBinding": "present",
        "incidents": [],
    }
    return base | changes


class Receiver:
    """Answers what the tests say, one answer after the other; the last one for ever."""

    def __init__(self, *ledgers: dict[str, Any], repair: dict[str, Any] | None = None) -> None:
        self.ledgers = list(ledgers)
        self.repair = repair
        self.asked: list[str] = []
        self.bodies: list[object] = []

    def ask(self, _data: Path, service: str, method: str, path: str, body: object = None) -> Any:
        assert service == "queue_receiver"
        self.asked.append(f"{method} {path}")
        self.bodies += [body] if body is not None else []
        if method == "POST":
            return self.repair
        return self.ledgers.pop(0) if len(self.ledgers) > 1 else self.ledgers[0]


def shown(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver, *options: str
) -> tuple[bool, list[str]]:
    monkeypatch.setattr(ledger, "ask", receiver.ask)
    monkeypatch.setattr(ledger, "POLL_SECONDS", 0)
    given: Namespace = parser().parse_args(["ledger", *options])
    stream = io.StringIO()
    is_whole = ledger.run(given, Terminal(stream))
    return is_whole, stream.getvalue().splitlines()


def test_a_ledger_in_which_nothing_is_lost_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    is_whole, lines = shown(monkeypatch, Receiver(a_ledger()))

    assert is_whole
    assert lines[-1] == "Nothing is lost."
    (stored,) = [line for line in lines if line.startswith("    stored")]
    assert stored.split() == ["stored", "12,300"]
    (dead,) = [line for line in lines if "dead letters" in line]
    assert dead.endswith("malformed 2")


def test_who_is_lost_is_named_with_age_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    is_whole, lines = shown(monkeypatch, Receiver(a_ledger(lost=103, lostRegistrations=[LOST] * 3)))

    text = "\n".join(lines)
    assert not is_whole
    assert LOST["registrationId"] in text
    assert "4,210" in text
    assert "and 100 more" in text
    assert "--repair" in lines[-1]


def test_what_was_not_promised_is_shown_and_is_no_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    totals = a_ledger()["totals"]
    ledger = a_ledger(totals={**totals, "unpromised": 1_002})

    is_whole, lines = shown(monkeypatch, Receiver(ledger))

    assert (is_whole, lines[-1]) == (True, "Nothing is lost.")
    (unpromised,) = [line for line in lines if line.startswith("    unpromised")]
    assert unpromised.split()[1] == "1,002"
    assert "503" in unpromised
    _, lines = shown(monkeypatch, Receiver(a_ledger()))
    assert not any("unpromised" in line for line in lines)


def test_figures_are_in_line(monkeypatch: pytest.MonkeyPatch) -> None:
    _, lines = shown(monkeypatch, Receiver(a_ledger()))

    figures = [line for line in lines if line.startswith("  ") and line[-1] != "s"][:4]
    ends = {re.match(r"\D+[\d,]+", line).end() for line in figures}  # type: ignore[union-attr]
    assert len(ends) == 1, figures


def test_a_missing_binding_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = Receiver(a_ledger(workBinding="missing"))

    _, lines = shown(monkeypatch, receiver)

    assert any("not bound" in line for line in lines)


def test_it_is_read_to_the_end_of_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    part, more = a_ledger(caughtUp=False, readUpTo=5), a_ledger(caughtUp=False, readUpTo=9)
    receiver = Receiver(part, more, a_ledger())

    shown(monkeypatch, receiver, "--json")

    assert receiver.asked == ["GET /api/ledger"] * 3


def test_a_stream_that_cannot_be_read_is_told_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    receiver = Receiver(a_ledger(caughtUp=False))

    is_whole, lines = shown(monkeypatch, receiver)

    assert not is_whole
    assert len(receiver.asked) == 2
    assert any("cannot be read to its end" in line for line in lines)
    assert lines[-1] != "Nothing is lost."


def an_incident(kind: str) -> dict[str, Any]:
    """One as the receiver answers it."""
    values = {
        "incidentId": 1,
        "kind": kind,
        "noticedAt": "2026-01-31T09:30:00.000Z",
        "lastReadAt": "2026-01-31T09:29:00.000Z",
        "acceptedBefore": 1000,
        "storedByThen": 700,
        "notProvable": 300,
    }
    return Incident.model_validate(values).model_dump(mode="json")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            "replaced",
            "of 1,000 accepted before, 700 were stored by then. What became of 300",
        ),
        ("truncated", "dropped 300 messages"),
        ("restored", "restored from a backup"),
        ("vanished", "300 rows of registrations"),
    ],
)
def test_what_cannot_be_accounted_for_is_told_and_is_no_success(
    monkeypatch: pytest.MonkeyPatch, kind: str, words: str
) -> None:
    incident = an_incident(kind)

    is_whole, lines = shown(monkeypatch, Receiver(a_ledger(incidents=[incident])))

    text = "\n".join(lines)
    assert not is_whole
    assert words in text
    assert "2026-01-31 09:30:00 UTC" in text
    assert "--acknowledge" in text
    assert "Nothing is lost." not in lines


def test_an_acknowledgement_says_why_and_by_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "person", lambda: "ada")
    receiver = Receiver(a_ledger(), repair={"acknowledged": [an_incident("replaced")]})

    is_whole, _ = shown(monkeypatch, receiver, "--acknowledge", "a disk was replaced")

    assert is_whole
    assert receiver.asked[0] == "POST /api/ledger/acknowledgements"
    assert receiver.bodies == [{"reason": "a disk was replaced", "acknowledgedBy": "ada"}]


@pytest.mark.parametrize(
    ("options", "query"), [((), ""), (("--mail", "auto"), ""), (("--mail", "all"), "?mail=all")]
)
def test_a_repair_says_whom_it_mails(
    monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], query: str
) -> None:
    repair = {"lost": 3, "republished": 3, "withoutMail": 2, "notInStream": []}
    receiver = Receiver(a_ledger(), repair=repair)

    _, lines = shown(monkeypatch, receiver, "--repair", *options)

    assert f"POST /api/ledger/repairs{query}" in receiver.asked
    assert any("2 without a mail" in line for line in lines)


def test_a_repair_waits_until_all_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    repair = {"lost": 3, "republished": 3, "withoutMail": 0, "notInStream": []}
    gone = a_ledger(lost=3, lostRegistrations=[LOST] * 3)
    receiver = Receiver(gone, gone, gone, a_ledger(), repair=repair)

    is_whole, lines = shown(monkeypatch, receiver, "--repair")

    assert is_whole
    assert receiver.asked[:2] == ["GET /api/ledger", "POST /api/ledger/repairs"]
    assert lines[0] == "Sent again: 3 of 3 that were lost."


def test_what_the_stream_has_forgotten_is_named_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forgotten = str(LOST["registrationId"])
    repair = {"lost": 2, "republished": 1, "withoutMail": 0, "notInStream": [forgotten]}
    receiver = Receiver(a_ledger(lost=1, lostRegistrations=[LOST]), repair=repair)

    is_whole, lines = shown(monkeypatch, receiver, "--repair")

    assert not is_whole
    assert f"  {forgotten}" in lines
