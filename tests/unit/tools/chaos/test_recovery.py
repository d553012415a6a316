"""Recovery is timed where a kill was the only fault, and where it can be seen."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

from tools.chaos.accounting import Mail, Observations, Registration
from tools.chaos.harness import Harness
from tools.chaos.inject import Happened
from tools.chaos.journal import Journal
from tools.chaos.mail_server import Accepted, FaultyMailServer
from tools.chaos.recovery import Figures, Progress, measure
from tools.chaos.schedule import Fault, Kind

ONE = UUID(int=1)


@dataclass
class Scene:
    """What was seen, at which second."""

    happened: list[Happened] = field(default_factory=list)
    promised: float = 100.0
    stored: float = 100.5
    mailed: float = 101.0
    promises: list[float] = field(default_factory=list)
    rows: list[float] = field(default_factory=list)

    def measured(self) -> Any:
        journal = Journal(accepted={ONE: "a@example.org"}, accepted_at={ONE: self.promised})
        journal.first_answers = [self.promised]
        journal.accepted_at |= {UUID(int=100 + n): at for n, at in enumerate(self.promises)}
        server = FaultyMailServer(seed=1)
        server.taken = [Accepted(str(UUID(int=2)), "a@example.org", self.mailed)]
        observations = Observations(
            journal=journal,
            registrations=[Registration(id=ONE, email="a@example.org", stored_at=self.stored)],
            users={"a@example.org": 1},
            mails=[
                Mail(
                    message_id=UUID(int=2),
                    registration_id=ONE,
                    recipient="a@example.org",
                    status="sent",
                )
            ],
            taken=[],
            put_off={},
            refused={},
            dead=[],
            waiting={},
        )
        harness = cast(Harness, SimpleNamespace(mail_server=server))
        return measure(
            self.happened, observations, Progress(harness, self.rows or [self.stored]), harness
        )


def a_kill(target: str, at: float, ready: float | None = None) -> Happened:
    return Happened(
        Fault(at=0, kind=Kind.KILL, target=target), at, mended=ready or at, ready_again=ready
    )


def an_outage(kind: Kind, target: str, begun: float, mended: float) -> Happened:
    return Happened(Fault(at=0, kind=kind, target=target), begun, mended=mended)


def test_a_service_works_again_when_it_next_does_something() -> None:
    found = Scene([a_kill("queue_receiver", 100.1, ready=101.3)]).measured()

    assert [round(each, 3) for each in found.service] == [0.4]
    assert [round(each, 3) for each in found.instance] == [1.2]
    assert [round(each, 3) for each in found.redelivered] == [0.4]


def test_a_kill_amid_an_outage_says_nothing_of_the_service() -> None:
    outage = an_outage(Kind.POSTGRES_IMMEDIATE, "", 99.0, 101.0)

    found = Scene([outage, a_kill("queue_receiver", 100.1, ready=101.3)]).measured()

    assert found.service == []
    assert [round(each, 3) for each in found.whatever_else] == [1.2]


def test_another_service_that_is_frozen_does_not_matter() -> None:
    frozen = an_outage(Kind.FREEZE, "frontend-2", 80.0, 118.0)

    assert len(Scene([frozen, a_kill("sender", 100.1)]).measured().service) == 1


def test_a_frozen_receiver_is_timed_by_rows_and_a_sender_by_mails() -> None:
    for target, longest in (("queue_receiver-2", 25.0), ("sender", 28.0), ("frontend", None)):
        freeze = an_outage(Kind.FREEZE, target, 99.0, 137.0)

        found = Scene([freeze], promised=100.0, stored=125.0, mailed=128.0).measured()

        assert found.frozen == ([longest] if longest else [])


def test_a_kill_whose_successor_met_an_outage_says_nothing_either() -> None:
    outage = an_outage(Kind.BROKER_RESTART, "", 103.0, 110.0)

    found = Scene([a_kill("frontend", 100.1, ready=110.5), outage]).measured()

    assert found.instance == []
    assert [round(each, 3) for each in found.whatever_else] == [10.4]


def test_a_service_that_stands_still_amid_kills_is_found() -> None:
    kills = [a_kill("sender", float(at)) for at in range(100, 120, 2)]

    assert stood_still(kills, seen=[100.5, 101.0, 114.0, 119.0]) == 13.0


def test_an_outage_and_what_it_takes_to_recover_are_no_standstill() -> None:
    outage = an_outage(Kind.BROKER_KILL, "", 102.0, 110.0)

    assert stood_still([outage], seen=[100.5, 101.0, 116.0, 119.0]) == 3.0


def stood_still(happened: list[Happened], *, seen: list[float]) -> float:
    """Of the receivers, while people registered from second 100 to second 120."""
    scene = Scene(happened)
    scene.promises, scene.rows = [100.0, 120.0], seen
    return float(scene.measured().stood_still["queue_receiver"])


def test_what_was_waiting_long_before_a_freeze_counts_from_its_begin() -> None:
    freeze = an_outage(Kind.FREEZE, "sender", 99.0, 137.0)

    assert Scene([freeze], promised=50.0, stored=51.0, mailed=120.0).measured().frozen == [21.0]
    assert Scene([freeze], promised=50.0, stored=51.0, mailed=90.0).measured().frozen == [0.0]


def test_percentiles_are_of_the_nearest_rank() -> None:
    figures = Figures.of([float(number) for number in range(1, 101)])

    assert (figures.n, figures.p50, figures.p99, figures.longest) == (100, 50.0, 99.0, 100.0)
    assert Figures.of([]).n == 0
