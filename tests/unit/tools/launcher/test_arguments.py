import io
import re
import shlex
from pathlib import Path

import pytest

from tools.launcher.__main__ import main
from tools.launcher.arguments import COMMANDS, EXAMPLES, parser
from tools.launcher.cache import PROJECT
from tools.launcher.terminal import Terminal


@pytest.mark.parametrize(
    "line", ["demo --port-offset 100 --data here", "--port-offset 100 --data here demo"]
)
def test_options_may_stand_before_or_after_the_command(line: str) -> None:
    given = parser().parse_args(line.split())

    assert (given.command, given.port_offset, given.data) == ("demo", 100, Path("here"))


def test_options_have_defaults_wherever_they_could_stand() -> None:
    given = parser().parse_args(["status"])

    assert (given.port_offset, given.data, given.json) == (0, None, False)


@pytest.mark.parametrize(
    "line",
    [
        "tests/unit -k ports -x",
        "--collect-only -q",
        "-q",
        "-k ports --data x",
        "--help",
        "-- tests",
        "--port-offset=3 demo",
        "",
    ],
)
def test_test_hands_everything_behind_it_to_pytest_as_it_is(line: str) -> None:
    given = parser().parse_args(["--port-offset", "7", "test", *line.split()])

    assert (given.command, given.pytest) == ("test", line.split())
    assert given.port_offset == 7


def test_without_a_command_it_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0

    text = capsys.readouterr().out
    assert "Examples:" in text
    for command in COMMANDS:
        assert f"    {command} " in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_is_a_line_that_the_launcher_takes(command: str) -> None:
    assert EXAMPLES[command]

    for example in EXAMPLES[command]:
        words = shlex.split(re.split(r"   | \| ", example)[0])
        line = words[words.index("./userstream") + 1 :]
        given = parser().parse_args(line)
        assert given.command == command


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"test"}))
def test_the_help_of_every_command_ends_with_examples(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args([command, "--help"])

    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.rstrip().endswith(EXAMPLES[command][-1].rstrip())
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("line", ["fly", "demo --detach", "--port-offset many demo"])
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
    monkeypatch.setattr("tools.launcher.__main__.STDERR", Terminal(said))
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
