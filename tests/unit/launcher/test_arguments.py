from pathlib import Path

import pytest

from launcher.arguments import parser


@pytest.mark.parametrize(
    "line", ["demo --port-offset 100 --data here", "--port-offset 100 --data here demo"]
)
def test_options_may_stand_before_or_after_the_command(line: str) -> None:
    given = parser().parse_args(line.split())

    assert (given.command, given.port_offset, given.data) == ("demo", 100, Path("here"))


def test_options_have_defaults_wherever_they_could_stand() -> None:
    given = parser().parse_args(["status"])

    assert (given.port_offset, given.data, given.json) == (0, None, False)


def test_test_hands_everything_behind_it_to_pytest() -> None:
    given = parser().parse_args(["test", "tests/unit", "-k", "ports", "-x"])

    assert given.pytest == ["tests/unit", "-k", "ports", "-x"]


@pytest.mark.parametrize("line", ["", "fly", "demo --detach", "--port-offset many demo"])
def test_a_line_that_makes_no_sense_ends_with_exit_code_2(line: str) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(line.split())

    assert ended.value.code == 2
