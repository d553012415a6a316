"""What is printed at the end: the promise lines, and the same as JSON."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tools.chaos.accounting import Evaluation
from tools.chaos.harness import SHORTENED
from tools.chaos.inject import Happened
from tools.chaos.journal import Journal
from tools.chaos.mail_server import SmtpFault
from tools.chaos.observations import Rest
from tools.chaos.recovery import Figures, Recovery
from tools.chaos.schedule import Fault, Kind

PROMISES = ("lost", "stored_twice", "unexpected", "stuck", "dlq_unexplained")
"""Invariants that the first promise line names; the others are named where they break."""

POSTGRES = (Kind.POSTGRES_IMMEDIATE, Kind.POSTGRES_BACKEND_KILL)
BROKER = (Kind.BROKER_RESTART, Kind.BROKER_KILL)

SHOWN = 5
"""Ids that are named for each broken invariant on the terminal; JSON has more."""

IN_JSON = 100


@dataclass(slots=True)
class Run:
    """One seed, from its first registration to the evaluation."""

    seed: int
    registrations: int
    seconds: float
    evaluation: Evaluation
    happened: Sequence[Happened]
    faults: dict[SmtpFault, int]
    recovery: Recovery
    rest: Rest
    journal: Journal
    notes: Sequence[str]

    @property
    def holds(self) -> bool:
        """Whether every promise was kept."""
        return self.evaluation.holds

    def as_json(self) -> dict[str, Any]:
        """Everything that a program may want to know."""
        journal = self.journal
        return {
            "seed": self.seed,
            "registrations": self.registrations,
            "load_seconds": round(self.seconds, 1),
            "drain_seconds": round(self.rest.seconds, 1),
            "left_after_drain": self.rest.left,
            "holds": self.holds,
            "counts": self.evaluation.counts,
            "broken": {name: ids[:IN_JSON] for name, ids in self.evaluation.broken.items() if ids},
            "faults": _doses(self.happened),
            "faults_skipped": dict(Counter(h.skipped for h in self.happened if h.skipped)),
            "fault_log": [_fault(each, self.happened[0].begun) for each in self.happened],
            "smtp": {fault.value: number for fault, number in self.faults.items()},
            "http_answers": {str(status): n for status, n in sorted(journal.statuses.items())},
            "accept_seconds": Figures.of(journal.seconds).as_json(),
            "slowest_refusal_s": round(journal.slowest_refusal, 3),
            "recovery": self.recovery.as_json(),
            "notes": list(self.notes),
        }


@dataclass(slots=True)
class Report:
    """All seeds of one call."""

    machine: dict[str, str]
    date: str
    runs: list[Run] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether every promise was kept in every run."""
        return all(run.holds for run in self.runs)

    def total(self, name: str) -> int:
        """A count, summed over the seeds."""
        return sum(run.evaluation.counts.get(name, 0) for run in self.runs)

    def recovery(self) -> Recovery:
        """What all seeds measured together."""
        joined = Recovery()
        for run in self.runs:
            joined.add(run.recovery)
        return joined

    def lines(self) -> list[str]:
        """The promise lines, and what breaks them."""
        happened = [each for run in self.runs for each in run.happened]
        did = Counter(each.fault.kind for each in happened if not each.skipped)
        others = [kind for kind in Kind if kind not in (*POSTGRES, *BROKER, *_NAMED)]
        smtp = sum(sum(run.faults.values()) for run in self.runs)
        joined = self.recovery()
        works, ready = Figures.of(joined.service), Figures.of(joined.instance)
        frozen, again = Figures.of(joined.frozen), Figures.of(joined.redelivered)
        more = " ".join(f"{kind.value}={did[kind]}" for kind in others)
        broken = {
            name: self.total(name)
            for name in (self.runs[0].evaluation.broken if self.runs else {})
            if name not in PROMISES and self.total(name)
        }
        lines = [
            (
                f"seeds={len(self.runs)} registrations={sum(r.registrations for r in self.runs)}"
                f" accepted={self.total('accepted')} stored={self.total('stored')}"
                f" mailed={self.total('mailed')} malformed={self.total('malformed')}"
                f" ids_reused={self.total('ids_reused')} faults:"
                f" kill9={did[Kind.KILL]} freeze={did[Kind.FREEZE]}"
                f" broker={_sum(did, BROKER)} pg={_sum(did, POSTGRES)} net={did[Kind.LINK]} {more}"
                f" smtp_bad={smtp}"
            ),
            " ".join(f"{name}={self.total(name)}" for name in PROMISES)
            + f" dup_mail={self.total('dup_mail')} (bound {self.total('dup_mail_bound')})"
            + f" recovery_p99={works.p99:.2f} s",
            (
                f"recovery: after kill -9 the service works again after p50={works.p50:.2f}"
                f" p99={works.p99:.2f} max={works.longest:.2f} s (n={works.n}); what a"
                f" receiver held is stored after p99={again.p99:.2f} max={again.longest:.2f} s;"
                f" the instance in its place is ready after p50={ready.p50:.2f}"
                f" p99={ready.p99:.2f} max={ready.longest:.2f} s;"
                f" after a freeze max={frozen.longest:.1f} s (n={frozen.n})"
            ),
            "outside of outages nothing was seen of a service for at most "
            + " ".join(f"{name}={took:.1f}" for name, took in joined.stood_still.items())
            + " s",
        ]
        lines += [f"BROKEN {name}={number}" for name, number in broken.items()]
        for run in self.runs:
            for name, ids in run.evaluation.broken.items():
                lines += [f"  seed {run.seed}: {name}: {each}" for each in ids[:SHOWN]]
            if run.rest.left:
                lines.append(f"  seed {run.seed}: not at rest after the drain: {run.rest.left}")
        lines += [f"note: {note}" for note in sorted({n for run in self.runs for n in run.notes})]
        return [
            *lines,
            f"shortened waits: {_shortened()}",
            f"{self.date}, {_machine(self.machine)}",
        ]

    def as_json(self) -> dict[str, Any]:
        """One object."""
        joined = self.recovery()
        return {
            "date": self.date,
            "machine": self.machine,
            "holds": self.holds,
            "promise_lines": self.lines(),
            "recovery": joined.as_json(),
            "shortened": SHORTENED,
            "runs": [run.as_json() for run in self.runs],
        }


_NAMED = (Kind.KILL, Kind.FREEZE, Kind.LINK)


def _sum(did: Counter[Kind], kinds: Sequence[Kind]) -> int:
    return sum(did[kind] for kind in kinds)


def _doses(happened: Sequence[Happened]) -> dict[str, int]:
    return dict(Counter(each.fault.kind.value for each in happened if not each.skipped))


def _fault(each: Happened, begun: float) -> dict[str, Any]:
    fault: Fault = each.fault
    said: dict[str, Any] = {
        "at_s": round(each.begun - begun, 2),
        "kind": fault.kind.value,
        "target": fault.target,
        "mode": fault.mode,
        "amount": fault.amount,
        "mended_after_s": round(each.mended - each.begun, 2),
        "ready_after_s": each.ready_again and round(each.ready_again - each.begun, 2),
        "skipped": each.skipped,
    }
    return {name: value for name, value in said.items() if value not in ("", 0, None)}


def _shortened() -> str:
    return ", ".join(
        f"{service} {name}={value}"
        for service, settings in SHORTENED.items()
        for name, value in settings.items()
    )


def _machine(machine: dict[str, str]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in machine.items())
