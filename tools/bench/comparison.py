"""What a workload found: runs of several contenders, one of them the baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from tools.bench.figures import Spread, ratio, spread
from tools.bench.procfs import Usage


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that is measured in every run."""

    key: str
    """Its name in JSON; ends with the unit."""
    label: str
    digits: int = 0
    """Decimals that mean something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of one contender."""

    figures: Mapping[str, float]
    usage: Mapping[str, Usage] = field(default_factory=dict)
    """What each process used, by name."""
    problems: Sequence[str] = ()
    """What was promised and did not come; empty if the run is complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All runs of one workload."""

    name: str
    how: str
    """What is compared with what, and how, for a reader who doubts it."""
    figures: tuple[Figure, ...]
    baseline: str
    """The contender that the others are compared with."""
    runs: Mapping[str, Sequence[Run]]
    """Contender to its runs, round by round."""

    @property
    def problems(self) -> list[str]:
        """What was incomplete, and where."""
        return [
            f"{self.name}, {contender}, run {number}: {problem}"
            for contender, runs in self.runs.items()
            for number, run in enumerate(runs, start=1)
            for problem in run.problems
        ]

    @property
    def challengers(self) -> list[str]:
        """All contenders but the baseline."""
        return [name for name in self.runs if name != self.baseline]

    def values(self, contender: str, key: str) -> list[float]:
        """One figure of all runs that have it."""
        return [run.figures[key] for run in self.runs[contender] if key in run.figures]

    def spread(self, contender: str, key: str) -> Spread | None:
        """Median and range of one figure; None where it was not measured."""
        values = self.values(contender, key)
        return spread(values) if values else None

    def ratio(self, contender: str, key: str) -> Spread | None:
        """One figure as a multiple of the baseline's; None where one of them lacks it."""
        ours, baseline = self.values(contender, key), self.values(self.baseline, key)
        return ratio(ours, baseline) if ours and baseline else None

    def usage(self, contender: str) -> dict[str, dict[str, Spread]]:
        """Per process: CPU seconds and the peak of resident memory in MB, over all runs."""
        runs = self.runs[contender]
        return {
            name: {
                "cpu_s": spread([run.usage[name].cpu_seconds for run in runs]),
                "rss_mb": spread([run.usage[name].peak_rss / 1e6 for run in runs]),
            }
            for name in (runs[0].usage if runs else ())
        }

    def as_json(self) -> dict[str, Any]:
        """Everything, single runs included, as plain values."""
        keys = [figure.key for figure in self.figures]
        return {
            "how": self.how,
            "baseline": self.baseline,
            "contenders": {
                name: {
                    "figures": _plain({key: self.spread(name, key) for key in keys}),
                    "ratio": _plain({key: self.ratio(name, key) for key in keys})
                    if name != self.baseline
                    else None,
                    "processes": {
                        process: _plain(used) for process, used in self.usage(name).items()
                    },
                    "runs": [dict(run.figures) for run in runs],
                }
                for name, runs in self.runs.items()
            },
        }


def _plain(spreads: Mapping[str, Spread | None]) -> dict[str, Any]:
    return {
        key: {"median": found.median, "low": found.low, "high": found.high}
        for key, found in spreads.items()
        if found is not None and isfinite(found.high)  # JSON knows no infinity
    }
