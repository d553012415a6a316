"""What ``./userstream chaos`` takes, and what it refuses."""

import pytest

from tools.launcher.arguments import parser


def test_without_options_it_is_one_seed_of_five_thousand() -> None:
    given = parser().parse_args(["chaos"])

    assert (given.seed, given.seeds, given.registrations, given.minutes) == (1, 1, 5_000, 6.0)


def test_every_size_can_be_chosen() -> None:
    sizes = ["--seed", "7", "--seeds", "10", "--registrations", "600", "--minutes", "2.5"]
    given = parser().parse_args(["chaos", *sizes, "--json"])

    assert (given.seed, given.seeds, given.registrations, given.minutes) == (7, 10, 600, 2.5)
    assert given.json


@pytest.mark.parametrize(
    "line", ["--seeds 0", "--registrations 5", "--minutes 0.1", "--minutes 500", "--minutes x"]
)
def test_a_run_without_bounds_or_meaning_is_refused(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["chaos", *line.split()])

    assert line.split(maxsplit=1)[0] in capsys.readouterr().err
