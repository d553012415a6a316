"""Writes the results into ``docs/performance.md``, between two marks; the prose stays."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.bench.comparison import Comparison
from tools.bench.goals import Evaluation
from tools.bench.table import figures_table, goals_table, markdown, usage_table
from tools.launcher.cache import PROJECT
from tools.launcher.errors import LauncherError

PAGE = PROJECT / "docs" / "performance.md"

BEGIN = "<!-- begin of what `./userstream bench --write` wrote -->"
END = "<!-- end of what `./userstream bench --write` wrote -->"

About = Mapping[str, Mapping[str, str]]
"""Machine, versions and settings, by name."""


def results(
    about: About, comparisons: Sequence[Comparison], evaluations: Sequence[Evaluation]
) -> str:
    """Everything as Markdown."""
    sections = [_about(about), "### Goals", markdown(goals_table(evaluations))]
    for comparison in comparisons:
        heading = comparison.name[0].upper() + comparison.name[1:]
        sections += [f"### {heading}", comparison.how, markdown(figures_table(comparison))]
        if usage := usage_table(comparison):
            sections.append(markdown(usage))
    return "\n\n".join(sections)


def write(text: str, page: Path = PAGE) -> None:
    """Put the text between the marks.

    Raises:
        LauncherError: The page or a mark is missing.
    """
    try:
        before, begin, rest = page.read_text("utf-8").partition(BEGIN)
    except FileNotFoundError as error:
        raise LauncherError(f"{page} is not there, so nothing was written.") from error
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise LauncherError(
            f"{page} lacks the lines between which the results go, so nothing was written:\n"
            f"{BEGIN}\n{END}"
        )
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", "utf-8")


def _about(about: About) -> str:
    machine, versions, settings = about["machine"], about["versions"], about["settings"]
    chosen = ", ".join(f"`{name}={value}`" for name, value in settings.items())
    rows = [
        ["", ""],
        ["measured on", machine["date"]],
        ["machine", f"{machine['cores']} cores, {machine['processor']}, {machine['memory']}"],
        ["system", machine["kernel"]],
        ["load before the start", machine["load_before"]],
        *([name, value] for name, value in versions.items()),
        ["settings", chosen or "all as by default"],
    ]
    return markdown(rows)
