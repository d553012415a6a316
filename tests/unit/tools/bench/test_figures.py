import pytest

from tools.bench.figures import Spread, percentile, ratio, spread


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 10), (25, 20), (50, 30), (90, 46), (100, 50)]
)
def test_a_percentile_between_two_values_is_in_proportion(percent: float, expected: float) -> None:
    assert percentile([50, 10, 40, 20, 30], percent) == pytest.approx(expected)


def test_every_percentile_of_one_value_is_that_value() -> None:
    assert [percentile([7], percent) for percent in (0, 50, 99, 100)] == [7, 7, 7, 7]


def test_there_is_no_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 50)


def test_a_spread_is_the_median_and_the_range() -> None:
    assert spread([3, 1, 10]) == Spread(median=3, low=1, high=10)


def test_a_ratio_compares_the_runs_of_the_same_round() -> None:
    # A machine that is half as fast in the second round changes nothing.
    assert ratio([400, 200], [100, 50]) == Spread(4, 4, 4)


def test_a_ratio_of_unequal_numbers_of_runs_is_that_of_their_medians() -> None:
    assert ratio([30], [10, 20, 15]) == Spread(2, 2, 2)


@pytest.mark.parametrize(("ours", "expected"), [(0.0, 1.0), (0.5, float("inf"))])
def test_a_baseline_of_nothing_is_no_error(ours: float, expected: float) -> None:
    assert ratio([ours], [0.0]).median == expected
