"""The promise lines say what was broken, how often, and what it cost."""

import json

from tools.chaos.accounting import Evaluation
from tools.chaos.inject import Happened
from tools.chaos.journal import Journal
from tools.chaos.mail_server import SmtpFault
from tools.chaos.observations import Rest
from tools.chaos.recovery import Recovery
from tools.chaos.report import Report, Run
from tools.chaos.schedule import Fault, Kind

MACHINE = {"cores": "2"}


def a_run(seed: int, **broken: list[str]) -> Run:
    counts = {"accepted": 10, "stored": 10, "mailed": 9, "dup_mail": 1, "dup_mail_bound": 2}
    evaluation = Evaluation({"lost": [], "unmailed": [], **broken})
    evaluation.counts = counts | {name: len(ids) for name, ids in evaluation.broken.items()}
    kill = Happened(Fault(at=1, kind=Kind.KILL, target="sender"), 100.0, mended=101.0)
    spared = Happened(Fault(at=2, kind=Kind.DISK_FULL), 102.0, mended=102.0, skipped="no root")
    return Run(
        seed=seed,
        registrations=10,
        seconds=60.0,
        evaluation=evaluation,
        happened=[kill, spared],
        faults={SmtpFault.DEFER: 3},
        recovery=Recovery(service=[0.5], by_service={"sender": [0.5]}),
        rest=Rest(4.0),
        journal=Journal(),
        notes=["disk full: not injected"],
    )


def test_seeds_are_summed_up() -> None:
    lines = Report(MACHINE, "2026-01-31", [a_run(1), a_run(2)]).lines()

    assert lines[0].startswith("seeds=2 registrations=20 accepted=20 stored=20 mailed=18 ")
    assert "kill9=2 " in lines[0]
    assert "disk_full=0" in lines[0]
    assert "smtp_bad=6" in lines[0]
    assert lines[1].startswith("lost=0 stored_twice=0 unexpected=0 stuck=0 dlq_unexplained=0 ")
    assert "dup_mail=2 (bound 4) recovery_p99=0.50 s" in lines[1]
    assert "note: disk full: not injected" in lines


def test_what_was_broken_is_named_with_its_seed() -> None:
    report = Report(MACHINE, "2026-01-31", [a_run(1), a_run(2, lost=["an-id"], unmailed=["other"])])

    assert not report.holds
    assert report.lines()[1].startswith("lost=1 ")
    assert "BROKEN unmailed=1" in report.lines()
    assert "  seed 2: lost: an-id" in report.lines()


def test_the_report_is_json() -> None:
    document = json.loads(json.dumps(Report(MACHINE, "2026-01-31", [a_run(3)]).as_json()))

    (run,) = document["runs"]
    assert document["holds"] is True
    assert run["faults"] == {"kill9": 1}
    assert run["faults_skipped"] == {"no root": 1}
    assert run["recovery"]["service_works_again"]["p99_s"] == 0.5
