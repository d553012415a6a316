"""Every broken promise is found, and a kept one is not called broken."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from tools.chaos.accounting import Attempt, DeadLetter, Mail, Observations, Registration, evaluate
from tools.chaos.journal import Journal

ADA, BOB = UUID(int=1), UUID(int=2)
ADAS_MAIL, BOBS_MAIL = UUID(int=11), UUID(int=12)
POISON = UUID(int=99)

SENT = Attempt(status="sent", started_at=100.0)
UNSURE = Attempt(status="unsure", started_at=90.0)


def a_mail(message_id: UUID, registration_id: UUID, email: str, **changes: Any) -> Mail:
    mail = Mail(
        message_id=message_id,
        registration_id=registration_id,
        recipient=email,
        status="sent",
        attempts=[SENT],
    )
    return replace(mail, **changes)


def observations(**changes: Any) -> Observations:
    """Two people, each stored and mailed once, and one malformed message among the dead."""
    found = Observations(
        journal=Journal(
            attempted={"ada@example.org": 1, "bob@example.org": 1},
            accepted={ADA: "ada@example.org", BOB: "bob@example.org"},
            malformed={POISON: "malformed"},
        ),
        registrations=[
            Registration(id=ADA, email="ada@example.org"),
            Registration(id=BOB, email="bob@example.org"),
        ],
        users={"ada@example.org": 1, "bob@example.org": 1},
        mails=[
            a_mail(ADAS_MAIL, ADA, "ada@example.org"),
            a_mail(BOBS_MAIL, BOB, "bob@example.org"),
        ],
        taken=[(str(ADAS_MAIL), "ada@example.org"), (str(BOBS_MAIL), "bob@example.org")],
        put_off={},
        refused={},
        dead=[DeadLetter("user.registration", POISON, "malformed")],
        waiting={},
    )
    return replace(found, **changes)


def broken(found: Observations) -> dict[str, list[str]]:
    return {name: ids for name, ids in evaluate(found).broken.items() if ids}


def adas_mail(**changes: Any) -> list[Mail]:
    whole = observations().mails
    return [replace(whole[0], **changes), whole[1]]


def test_nothing_is_broken_where_everything_arrived() -> None:
    evaluation = evaluate(observations())

    assert evaluation.holds
    assert (
        evaluation.counts["accepted"]
        == evaluation.counts["stored"]
        == evaluation.counts["mailed"]
        == 2
    )


def without_bob() -> Observations:
    whole = observations()
    return observations(registrations=whole.registrations[:1], mails=whole.mails[:1])


def twice_the_same_id() -> Observations:
    whole = observations()
    return observations(registrations=[*whole.registrations, whole.registrations[0]])


def a_second_row() -> Observations:
    more = Registration(id=UUID(int=3), email="ada@example.org", outcome="duplicate")
    mail = a_mail(UUID(int=13), more.id, "ada@example.org", status="suppressed", attempts=[])
    whole = observations()
    return observations(registrations=[*whole.registrations, more], mails=[*whole.mails, mail])


def an_unknown_person() -> Observations:
    eve = Registration(id=UUID(int=4), email="eve@example.org")
    mail = a_mail(UUID(int=14), eve.id, "eve@example.org", status="suppressed", attempts=[])
    whole = observations()
    return observations(registrations=[*whole.registrations, eve], mails=[*whole.mails, mail])


def taken_again(attempts: list[Attempt]) -> Observations:
    again = (str(ADAS_MAIL), "ada@example.org")
    return observations(taken=[*observations().taken, again], mails=adas_mail(attempts=attempts))


def a_dead_letter(code: str, message_id: UUID = BOBS_MAIL) -> Observations:
    dead_letter = DeadLetter("email.notifications", message_id, code)
    return observations(dead=[*observations().dead, dead_letter])


@pytest.mark.parametrize(
    ("found", "names"),
    [
        (without_bob, {"lost"}),
        (lambda: observations(users={"bob@example.org": 1}), {"lost"}),
        (twice_the_same_id, {"stored_twice"}),
        (a_second_row, {"stored_twice"}),
        (
            lambda: observations(users={"ada@example.org": 2, "bob@example.org": 1}),
            {"stored_twice"},
        ),
        (an_unknown_person, {"unexpected"}),
        (lambda: observations(waiting={"user.registration.retry.1": 1}), {"stuck"}),
        (lambda: observations(mails=adas_mail(status="sending")), {"stuck", "unmailed"}),
        (lambda: observations(mails=observations().mails[1:]), {"unmailed"}),
        (lambda: observations(taken=observations().taken[1:]), {"unmailed"}),
        (lambda: observations(mails=adas_mail(status="failed")), {"failed_unexplained"}),
        (lambda: a_dead_letter("upstream_timeout"), {"dlq_unexplained"}),
        (lambda: a_dead_letter("mail_deferred"), {"dlq_unexplained"}),
        (
            lambda: observations(dead=[DeadLetter("user.registration", POISON, "too_large")]),
            {"dlq_unexplained"},
        ),
        (lambda: observations(dead=[]), {"malformed_missing"}),
        (lambda: taken_again([SENT]), {"dup_mail_beyond_bound"}),
        (lambda: taken_again([replace(SENT, started_at=90.0), SENT]), {"dup_mail_beyond_bound"}),
        (
            lambda: observations(
                journal=replace(observations().journal, two_answers=[UUID(int=5)])
            ),
            {"two_answers"},
        ),
        (lambda: observations(journal=replace(observations().journal, reports=[ADA])), {"reports"}),
        (lambda: observations(stray_files=["a.csv.tmp-1"]), {"reports"}),
    ],
)
def test_each_broken_promise_is_named(found: Callable[[], Observations], names: set[str]) -> None:
    assert set(broken(found())) == names


@pytest.mark.parametrize(
    "attempts",
    [
        [UNSURE, SENT],
        [replace(UNSURE, status="sending"), SENT],
        # A sender froze between the 250 and its record; the lease ran out, another one sent.
        [replace(SENT, started_at=60.0), SENT],
    ],
)
def test_a_second_mail_is_excused_by_an_attempt_nobody_could_record(
    attempts: list[Attempt],
) -> None:
    evaluation = evaluate(taken_again(attempts))

    assert evaluation.holds
    assert evaluation.counts["dup_mail"] == evaluation.counts["dup_mail_bound"] == 1


def test_a_mail_that_was_put_off_to_the_end_is_explained() -> None:
    found = a_dead_letter("mail_deferred")
    deferred = replace(found.mails[1], status="deferred")

    found = replace(
        found,
        mails=[found.mails[0], deferred],
        taken=found.taken[:1],
        put_off={"bob@example.org": 7},
    )

    assert broken(found) == {}


def test_a_registration_whose_row_was_locked_is_explained() -> None:
    lost_row = observations(
        registrations=observations().registrations[:1],
        mails=observations().mails[:1],
        taken=observations().taken[:1],
        users={"ada@example.org": 1},
        dead=[*observations().dead, DeadLetter("user.registration", BOB, "row_locked")],
    )

    assert broken(replace(lost_row, locked={"bob@example.org"})) == {}
    assert list(broken(replace(lost_row, locked={"ada@example.org"}))) == ["dlq_unexplained"]


def test_a_mail_whose_users_row_was_locked_may_be_given_up() -> None:
    found = a_dead_letter("mail_deferred")
    deferred = replace(found.mails[1], status="deferred")
    found = replace(found, mails=[found.mails[0], deferred], taken=found.taken[:1])

    assert broken(replace(found, locked={"bob@example.org"})) == {}
    assert "dlq_unexplained" in broken(found)


def test_a_refused_mail_is_explained_by_the_reply() -> None:
    refused = Attempt(status="failed", started_at=1.0, reply_code=550)

    found = observations(
        mails=adas_mail(status="failed", attempts=[refused]),
        taken=observations().taken[1:],
        refused={"ada@example.org": 1},
    )

    assert broken(found) == {}


def test_what_was_stored_without_a_promise_is_counted_and_allowed() -> None:
    whole = observations()
    journal = replace(whole.journal, accepted={ADA: "ada@example.org"})

    evaluation = evaluate(replace(whole, journal=journal))

    assert evaluation.holds
    assert evaluation.counts["recovered"] == 1


def a_ledger(**changes: Any) -> dict[str, Any]:
    """Both people stored, and the malformed message missing."""
    ledger: dict[str, Any] = {
        "caughtUp": True,
        "lost": 0,
        "rejected": 0,
        "incidents": [],
        "totals": totals(),
    }
    return ledger | changes


def totals(**changes: int) -> dict[str, int]:
    return {"accepted": 3, "stored": 2, "duplicates": 0, "missing": 1, "unpromised": 0} | changes


def test_a_ledger_that_is_true_is_not_called_untrue() -> None:
    replaced = a_ledger(incidents=[{"kind": "replaced"}])

    assert broken(observations(ledger=a_ledger())) == {}
    assert broken(observations(ledger=replaced, logs_deleted=2)) == {}


@pytest.mark.parametrize(
    ("changes", "logs_deleted"),
    [
        ({"caughtUp": False}, 0),
        ({"lost": 1}, 0),
        ({"totals": totals(accepted=4)}, 0),
        ({"totals": totals(accepted=4, stored=3)}, 0),
        ({"totals": totals(accepted=4, missing=2)}, 0),
        ({"totals": totals(accepted=4, unpromised=1)}, 0),
        ({"totals": totals(unpromised=1)}, 0),
        ({}, 1),
        ({"incidents": [{"kind": "replaced"}]}, 0),
        ({"incidents": [{"kind": "replaced"}, {"kind": "vanished"}]}, 1),
    ],
)
def test_a_ledger_that_does_not_tell_what_is_there_is_broken(
    changes: dict[str, Any], logs_deleted: int
) -> None:
    found = observations(ledger=a_ledger(**changes), logs_deleted=logs_deleted)

    assert broken(found).keys() == {"ledger_untrue"}


def test_who_gave_up_may_be_unpromised_and_who_was_promised_may_not() -> None:
    gave_up, whole = UUID(int=7), observations()
    journal = replace(whole.journal, unpromised=1)
    ledger = a_ledger(totals=totals(accepted=4, unpromised=1))

    for key, expected in ((gave_up, set()), (ADA, {"promised_unpromised"})):
        found = replace(whole, journal=journal, ledger=ledger, unpromised=[key])
        assert broken(found).keys() == expected


def test_of_two_people_under_one_id_the_second_is_a_dead_letter() -> None:
    found = observations()
    found.journal.reused.add(BOB)
    told = [*found.dead, DeadLetter("user.registration", BOB, "id_reused")]

    assert broken(replace(found, dead=told)) == {}
    assert broken(found) == {"reused_untold": [str(BOB)]}


def test_a_reused_id_that_nobody_reused_is_unexplained() -> None:
    found = observations()
    told = [*found.dead, DeadLetter("user.registration", BOB, "id_reused")]

    assert broken(replace(found, dead=told)).keys() == {"dlq_unexplained"}
