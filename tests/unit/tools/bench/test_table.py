from tools.bench.comparison import Comparison, Figure, Run
from tools.bench.goals import Evaluation, Goal, evaluate
from tools.bench.procfs import Usage
from tools.bench.table import figures_table, goals_table, markdown, plain, usage_table


def comparison(**runs: list[float]) -> Comparison:
    """Registrations per second of each contender; the baseline is ``theirs``."""
    return Comparison(
        name="burst",
        how="as fast as it goes",
        figures=(Figure("registrations_per_s", "registrations/s"), Figure("other", "other", 1)),
        baseline="theirs",
        runs={
            name: [Run(figures={"registrations_per_s": value}) for value in values]
            for name, values in runs.items()
        },
    )


def test_a_figure_is_shown_with_its_range_and_as_a_multiple_of_the_baseline() -> None:
    table = figures_table(comparison(ours=[3000, 2000, 2500], theirs=[300, 250, 250]))

    assert table == [
        ["", "ours", "theirs", "ours / theirs"],
        ["registrations/s", "2,500 (2,000–3,000)", "250 (250–300)", "10.0 × (8.00–10.0)"],
        ["other", "–", "–", "–"],
    ]


def test_a_single_run_has_no_range() -> None:
    table = figures_table(comparison(ours=[500], theirs=[250]))

    assert table[1] == ["registrations/s", "500", "250", "2.00 ×"]


def test_each_process_has_its_line() -> None:
    found = comparison(ours=[1], theirs=[1])
    used = {"sender": Usage(cpu_seconds=1.5, peak_rss=60_000_000)}
    found = Comparison(
        name=found.name,
        how=found.how,
        figures=found.figures,
        baseline=found.baseline,
        runs={**found.runs, "ours": [Run(figures={}, usage=used)]},
    )

    assert usage_table(found)[1:] == [["ours", "sender", "1.50", "60"]]


def test_where_no_process_was_measured_there_is_no_table() -> None:
    assert usage_table(comparison(ours=[1], theirs=[1])) == []


def test_columns_are_aligned_without_trailing_spaces() -> None:
    assert plain([["", "a"], ["long", "1"], ["x", ""]]) == "        a\n  long  1\n  x"


def test_a_table_becomes_markdown() -> None:
    assert markdown([["", "a"], ["x", "1"]]) == "|  | a |\n| --- | --- |\n| x | 1 |"


def test_a_goal_is_judged_by_the_median_multiple() -> None:
    found = comparison(ours=[3000, 900, 1000], theirs=[300, 300, 200])

    (evaluation,) = evaluate({"burst": found})

    assert evaluation.measured == 5
    assert (evaluation.must_met, evaluation.aim_met) == (True, False)
    assert goals_table([evaluation])[1] == [
        "burst: registrations/s", "5.00 ×", "≥ 4.00 ×", "met", "≥ 10.0 ×", "NOT MET",
    ]  # fmt: skip


def test_of_several_contenders_the_worst_is_judged() -> None:
    goal = Goal(workload="paging", figure="registrations_per_s", text="", must=2)
    found = comparison(middle=[15], end=[30], theirs=[10])

    assert goal.measured(found) == 3
    assert not Evaluation(goal, 3).must_met


def test_a_figure_by_itself_is_judged_in_its_unit() -> None:
    goal = Goal(workload="report", figure="registrations_per_s", text="", must=64, unit="MB")

    assert goal.measured(comparison(ours=[60], theirs=[1])) == 60
    assert Evaluation(goal, 64).must_met
    assert Evaluation(goal, 64).aim_met is None


def test_what_was_not_measured_is_not_judged() -> None:
    assert evaluate({}) == []
