"""What ``./userstream test`` runs."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tools.launcher import test_command as checks
from tools.launcher.terminal import STDERR


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


def test_the_checks_come_before_the_tests(commands: list[tuple[str, ...]]) -> None:
    assert checks.run(["tests/unit"], STDERR) == 0
    assert commands == [*checks.STATIC_CHECKS, ("pytest", "tests/unit")]
