"""``./userstream test-versions``: what it runs where, and what is left behind."""

import io
import os
import subprocess
from pathlib import Path

import pytest

from tools.launcher import versions
from tools.launcher.cache import PROJECT
from tools.launcher.errors import LauncherError
from tools.launcher.terminal import Terminal
from tools.testing.ephemeral_stack import own_mounts


@pytest.fixture
def terminal() -> Terminal:
    return Terminal(io.StringIO())


def test_it_fails_where_one_of_them_fails_and_runs_them_all(
    monkeypatch: pytest.MonkeyPatch, terminal: Terminal
) -> None:
    codes = {"3.12": 1, "3.13": 0}
    ran: dict[str, list[str]] = {}

    def prepare(name: str, _terminal: Terminal) -> versions.Start:
        def start(arguments: list[str]) -> int:
            ran[name] = arguments
            return codes[name]

        return start

    monkeypatch.setattr(versions, "_prepare", prepare)

    assert versions.run(["3.13"], [], terminal) == 0
    assert ran == {"3.13": list(versions.TESTS)}
    assert versions.run(["3.12", "3.13"], ["tests/unit", "-x"], terminal) == 1
    assert ran == {"3.12": ["tests/unit", "-x"], "3.13": ["tests/unit", "-x"]}


def test_the_tests_that_it_runs_are_there() -> None:
    assert [test for test in versions.TESTS if not (PROJECT / test).exists()] == []


@pytest.mark.parametrize("name", ["potato", "3.12", "sid", "./nothing-here"])
def test_what_can_not_be_had_is_said_before_anything_runs(
    name: str, monkeypatch: pytest.MonkeyPatch, terminal: Terminal, tmp_path: Path
) -> None:
    monkeypatch.setattr(versions, "RUN_DIRECTORY", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # no Python, no debootstrap, no unshare

    with pytest.raises(LauncherError):
        versions.run([name], [], terminal)


@pytest.mark.skipif(os.geteuid() != 0 or not own_mounts(), reason="only root may mount")
def test_what_is_shown_inside_is_mounted_nowhere_else(tmp_path: Path) -> None:
    source, place = tmp_path / "the project", tmp_path / "it's here"
    for folder in (source, place):
        folder.mkdir()
    (source / "file").write_text("shown")

    # This machine's own system stands for an installed one.
    command = versions._inside(Path("/"), ["cat", str(place / "file")], {source: place})
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert done.stdout == "shown"
    assert list(place.iterdir()) == []
