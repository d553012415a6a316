import io
from pathlib import Path

import pytest

from launcher.__main__ import main
from launcher.arguments import parser
from launcher.environment import PROJECT
from launcher.terminal import Terminal


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


def test_a_folder_without_a_name_is_refused() -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(["up", "--data", ""])

    assert ended.value.code == 2


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What the launcher says to people."""
    said = io.StringIO()
    monkeypatch.setattr("launcher.__main__.STDERR", Terminal(said))
    return said


def test_data_is_not_kept_among_the_program(said: io.StringIO) -> None:
    assert main(["up", "--detach", "--data", str(PROJECT)]) == 2

    assert "take one of its own" in said.getvalue()
    assert not (PROJECT / "logs").exists()


@pytest.mark.parametrize("command", [["up", "--detach"], ["status"], ["down"], ["logs"]])
@pytest.mark.parametrize("below", ["", "data"])
def test_a_file_where_a_folder_should_be_is_named(
    command: list[str], below: str, tmp_path: Path, said: io.StringIO
) -> None:
    file = tmp_path / "file"
    file.touch()

    assert main([*command, "--data", str(file / below)]) == 1

    assert str(file) in said.getvalue()
