"""The tables that people read, on the terminal and in ``docs/performance.md``."""

from collections.abc import Sequence

from tools.bench.comparison import Comparison
from tools.bench.figures import Spread
from tools.bench.goals import Evaluation

Table = list[list[str]]
"""Rows of cells, the head first."""


def figures_table(comparison: Comparison) -> Table:
    """Each figure of each contender: the median, and the range in brackets."""
    challengers = comparison.challengers
    contenders = [*challengers, comparison.baseline]
    multiples = [f"{name} / {comparison.baseline}" for name in challengers]
    rows = [["", *contenders, *multiples]]
    for figure in comparison.figures:
        cells = [_spread(comparison.spread(name, figure.key), figure.digits) for name in contenders]
        ratios = [comparison.ratio(name, figure.key) for name in challengers]
        rows.append([figure.label, *cells, *(_ratio(found) for found in ratios)])
    return rows


def usage_table(comparison: Comparison) -> Table:
    """CPU and memory of each process; empty where they were not measured."""
    rows = [
        [contender, process, _spread(used["cpu_s"], 2), _spread(used["rss_mb"], 0)]
        for contender in [*comparison.challengers, comparison.baseline]
        for process, used in comparison.usage(contender).items()
    ]
    return [["", "process", "CPU, s", "peak memory, MB"], *rows] if rows else []


def goals_table(evaluations: Sequence[Evaluation]) -> Table:
    """Each goal, and whether it is met."""
    rows = [["goal", "measured", "must", "", "aim", ""]]
    for evaluation in evaluations:
        goal = evaluation.goal
        rows.append(
            [
                goal.text,
                _with_unit(evaluation.measured, goal.unit),
                f"{goal.direction} {_with_unit(goal.must, goal.unit)}",
                _yes(met=evaluation.must_met),
                f"{goal.direction} {_with_unit(goal.aim, goal.unit)}" if goal.aim else "",
                "" if evaluation.aim_met is None else _yes(met=evaluation.aim_met),
            ]
        )
    return rows


def plain(table: Table) -> str:
    """For a terminal: columns aligned, figures to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    return "\n".join(f"  {line}" for line in lines)


def markdown(table: Table) -> str:
    """For a page."""
    head, *rows = table
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _spread(found: Spread | None, digits: int) -> str:
    if found is None:
        return "–"
    if found.low == found.high:
        return f"{found.median:,.{digits}f}"
    return f"{found.median:,.{digits}f} ({found.low:,.{digits}f}–{found.high:,.{digits}f})"


def _ratio(found: Spread | None) -> str:
    if found is None:
        return "–"
    shown = f"{_short(found.median)} ×"
    if found.low == found.high:
        return shown
    return f"{shown} ({_short(found.low)}–{_short(found.high)})"


def _with_unit(value: float, unit: str) -> str:
    return f"{_short(value)} {unit}".rstrip()


def _short(value: float) -> str:
    """Two decimals below ten, one below a hundred, then none."""
    digits = 2 if value < 10 else 1 if value < 100 else 0  # noqa: PLR2004
    return f"{value:,.{digits}f}"


def _yes(*, met: bool) -> str:
    return "met" if met else "NOT MET"
