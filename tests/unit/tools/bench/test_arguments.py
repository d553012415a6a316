import pytest

from tools.bench.arguments import FULL, QUICK, WORKLOADS, sizes
from tools.launcher.arguments import parser


def test_without_options_everything_is_measured_in_full() -> None:
    given = parser().parse_args(["bench"])

    assert given.only == WORKLOADS
    assert sizes(given) == FULL


def test_quick_is_smaller_and_single_options_win() -> None:
    given = parser().parse_args(["bench", "--quick", "--rounds", "7", "--count", "50"])

    assert (sizes(given).rounds, sizes(given).count) == (7, 50)
    assert sizes(given).users == QUICK.users


def test_some_workloads_are_taken_in_the_usual_order() -> None:
    assert parser().parse_args(["bench", "--only", "report,burst"]).only == ("burst", "report")


@pytest.mark.parametrize("line", ["--only flying", "--rounds 0", "--rounds many", "--only burst,"])
def test_what_makes_no_sense_is_refused_before_anything_starts(line: str) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(["bench", *line.split()])

    assert ended.value.code == 2
