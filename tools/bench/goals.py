"""What the figures should be, and whether they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tools.bench.comparison import Comparison

HIGHER, LOWER = "≥", "≤"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One figure of one workload, as a multiple of the baseline's or by itself."""

    workload: str
    figure: str
    text: str
    direction: str = LOWER
    must: float
    aim: float | None = None
    unit: str = "×"
    """``×`` for a multiple of the baseline; else the figure itself is judged."""

    def measured(self, comparison: Comparison) -> float | None:
        """The median; of several contenders the one that is worst."""
        spreads = [
            comparison.ratio(name, self.figure)
            if self.unit == "×"
            else comparison.spread(name, self.figure)
            for name in comparison.challengers
        ]
        medians = [spread.median for spread in spreads if spread]
        if not medians:
            return None
        return max(medians) if self.direction == LOWER else min(medians)

    def met(self, value: float, bound: float) -> bool:
        """Whether a value is on the right side."""
        return value <= bound if self.direction == LOWER else value >= bound


GOALS = (
    Goal(
        workload="burst",
        figure="registrations_per_s",
        text="burst: registrations/s",
        direction=HIGHER,
        must=4,
        aim=10,
    ),
    Goal(
        workload="burst",
        figure="cpu_ms",
        text="burst: CPU per registration",
        must=1 / 3,
        aim=1 / 10,
    ),
    Goal(
        workload="steady 50/s",
        figure="mail_p99_ms",
        text="steady 50/s: POST to mail p99",
        must=1,
    ),
    Goal(
        workload="steady 200/s",
        figure="mail_p99_ms",
        text="steady 200/s: POST to mail p99",
        must=1,
        aim=0.5,
    ),
    Goal(
        workload="accept",
        figure="posts_per_s",
        text="accept: POSTs/s of one process",
        direction=HIGHER,
        must=2,
        aim=5,
    ),
    Goal(
        workload="backlog",
        figure="ms_per_registration",
        text="backlog: time per registration",
        must=1,
    ),
    Goal(
        workload="backlog",
        figure="rss_growth",
        text="backlog: memory, last quarter to first",
        must=1.1,
        unit="",
    ),
    Goal(
        workload="report",
        figure="seconds",
        text="report: time",
        must=2,
        aim=1.3,
    ),
    Goal(
        workload="report",
        figure="database_service_rss_mb",
        text="report: memory of database_service",
        must=64,
        unit="MB",
    ),
    Goal(
        workload="report",
        figure="report_generator_rss_mb",
        text="report: memory of report_generator",
        must=64,
        unit="MB",
    ),
    Goal(
        workload="paging",
        figure="p50_ms",
        text="paging: any page against page 1",
        must=2,
        aim=1.2,
    ),
)
"""``must`` is what a release needs; ``aim`` is what is hoped for. An aim of "equal" is 1.2,
as the same page asked twice differs by as much."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A goal and what was measured."""

    goal: Goal
    measured: float

    @property
    def must_met(self) -> bool:
        """Whether a release may go out."""
        return self.goal.met(self.measured, self.goal.must)

    @property
    def aim_met(self) -> bool | None:
        """Whether it is as good as hoped; None where nothing more is hoped for."""
        return None if self.goal.aim is None else self.goal.met(self.measured, self.goal.aim)

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "goal": self.goal.text,
            "direction": self.goal.direction,
            "unit": self.goal.unit,
            "measured": self.measured,
            "must": self.goal.must,
            "must_met": self.must_met,
            "aim": self.goal.aim,
            "aim_met": self.aim_met,
        }


def evaluate(comparisons: Mapping[str, Comparison]) -> list[Evaluation]:
    """The evaluations on everything that was measured."""
    return [
        Evaluation(goal, measured)
        for goal in GOALS
        if (comparison := comparisons.get(goal.workload))
        and (measured := goal.measured(comparison)) is not None
    ]
