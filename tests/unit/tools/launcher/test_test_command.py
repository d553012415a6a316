"""What ``./userstream test`` runs."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tools.launcher import test_command as checks
from tools.launcher.terminal import STDERR, Terminal


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, ...]]:
    """What would have been run."""
    ran: list[tuple[str, ...]] = []

    def run(command: Any, **_options: object) -> subprocess.CompletedProcess[str]:
        ran.append(tuple(command))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(checks, "ensure_environment", lambda *_: tmp_path)
    monkeypatch.setattr(checks, "_provide_browser", lambda _: None)
    monkeypatch.setattr(subprocess, "run", run)
    return ran


@pytest.mark.parametrize("option", ["--help", "-h", "--version"])
def test_who_asks_for_help_waits_for_no_check(commands: list[tuple[str, ...]], option: str) -> None:
    assert checks.run([option], STDERR) == 0
    assert commands == [("pytest", option)]


def test_without_arguments_everything_is_checked_and_tested(
    commands: list[tuple[str, ...]],
) -> None:
    assert checks.run([], STDERR) == 0
    assert commands == [*checks.STATIC_CHECKS.values(), ("pytest", *checks.ALL_TESTS)]


@pytest.mark.parametrize(
    ("line", "pytest_line"),
    [
        ("tests/unit", "tests/unit"),
        ("-x --unit", "-x --unit"),
        ("--unit", " ".join(checks.UNIT_TESTS)),
        ("--unit -x -k ports", f"{' '.join(checks.UNIT_TESTS)} -x -k ports"),
        ("--coverage", f"{' '.join(checks.COVERAGE)} {' '.join(checks.ALL_TESTS)}"),
        ("--coverage tests/unit", f"{' '.join(checks.COVERAGE)} tests/unit"),
        ("--unit --coverage", f"{' '.join(checks.UNIT_TESTS)} {' '.join(checks.COVERAGE)}"),
    ],
)
def test_with_arguments_only_pytest_runs(
    commands: list[tuple[str, ...]], line: str, pytest_line: str
) -> None:
    assert checks.run(line.split(), STDERR) == 0
    assert [" ".join(command) for command in commands] == [f"pytest {pytest_line}"]


def test_check_runs_every_check_whatever_fails_and_names_what_did(
    commands: list[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(command: Sequence[str], **_options: object) -> subprocess.CompletedProcess[str]:
        commands.append(tuple(command))
        return subprocess.CompletedProcess([], int(command[0] == "mypy"))

    monkeypatch.setattr(subprocess, "run", run)

    assert checks.check([], Terminal(sys.stdout)) == 1
    assert commands == [*checks.STATIC_CHECKS.values(), checks.CONTRACTS]
    shown = capsys.readouterr().out
    assert "✓ lint" in shown
    assert "✗ types found something" in shown


def test_only_the_named_checks_run(commands: list[tuple[str, ...]]) -> None:
    assert checks.check(["types"], STDERR) == 0
    assert commands == [("mypy", ".")]


def test_a_failing_check_fails_the_whole_and_the_tests_run_all_the_same(
    commands: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: Sequence[str], **_options: object) -> subprocess.CompletedProcess[str]:
        commands.append(tuple(command))
        return subprocess.CompletedProcess([], int(command[0] == "ruff"))

    monkeypatch.setattr(subprocess, "run", run)

    assert checks.run([], STDERR) == 1
    assert commands[-1] == ("pytest", *checks.ALL_TESTS)
