"""Figures of several runs: percentiles, medians with their range, ratios."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some runs and how far they lay apart."""

    median: float
    low: float
    high: float


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which ``percent`` of all lie; between two, in proportion.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("There is no percentile of nothing.")
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def spread(values: Sequence[float]) -> Spread:
    """Median, lowest and highest."""
    return Spread(median(values), min(values), max(values))


def ratio(ours: Sequence[float], baseline: Sequence[float]) -> Spread:
    """How many times the baseline ours is.

    Runs of the same round are compared with each other, because the machine drifts between
    rounds. Where there are not as many of both, their medians are.
    """
    if len(ours) != len(baseline):
        ours, baseline = [median(ours)], [median(baseline)]
    return spread([_divided(a, b) for a, b in zip(ours, baseline, strict=True)])


def _divided(value: float, by: float) -> float:
    # CPU time is counted in hundredths of a second: a tiny run may have used none.
    return value / by if by else float("inf") if value else 1.0
