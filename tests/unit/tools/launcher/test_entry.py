"""The script itself: from wherever it is started, and whatever the locale is."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tools.launcher.cache import PROJECT

pytestmark = pytest.mark.slow  # each starts the script in a process of its own

LINE = "2026-01-31T09:30:00Z   ✓ Starting sender — “ready” 名前"


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """A folder with nothing but a log in it, which every locale has trouble with."""
    logs = tmp_path / "da ta" / "logs"
    logs.mkdir(parents=True)
    (logs / "launcher.log").write_text(f"{LINE}\n", "utf-8")
    return logs.parent


def run(command: list[str], **variables: str) -> subprocess.CompletedProcess[bytes]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        command, env={**kept, **variables}, cwd="/", capture_output=True, timeout=60, check=False
    )


def test_links_lead_to_it(tmp_path: Path, stack: Path) -> None:
    folder = tmp_path / "some where"
    (folder / "bin").mkdir(parents=True)
    (folder / "userstream").symlink_to(PROJECT / "userstream")
    (folder / "bin" / "us").symlink_to("../userstream")  # to a link, by a relative path

    done = run([str(folder / "bin" / "us"), "logs", "--data", str(stack)])

    assert done.returncode == 0, done.stderr
    assert b"Starting sender" in done.stdout


def test_it_is_found_through_the_path(tmp_path: Path, stack: Path) -> None:
    (tmp_path / "us").symlink_to(PROJECT / "userstream")
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"

    done = run(["sh", "-c", f"us logs --data '{stack}'"], PATH=path)

    assert done.returncode == 0, done.stderr
    assert b"Starting sender" in done.stdout


def test_it_runs_from_a_folder_with_a_blank_in_its_name(tmp_path: Path, stack: Path) -> None:
    copy = tmp_path / "a copy"
    copy.mkdir()
    shutil.copy(PROJECT / "userstream", copy / "userstream")
    for package in ("tools", "common", "rabbitmq"):
        (copy / package).symlink_to(PROJECT / package)

    done = run([str(copy / "userstream"), "logs", "--data", str(stack)])

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "variables",
    [
        {"LANG": "ja_JP.EUC-JP"},
        {"LC_ALL": "C"},
        {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "euc-jp"},
        {"PYTHONIOENCODING": "ascii"},
    ],
    ids=str,
)
@pytest.mark.parametrize("command", [["logs"], ["logs", "--help"], ["--help"], ["status"]])
def test_no_locale_makes_it_fail(
    variables: dict[str, str], command: list[str], stack: Path
) -> None:
    done = run([str(PROJECT / "userstream"), *command, "--data", str(stack)], **variables)

    assert b"Traceback" not in done.stderr
    assert done.returncode == (1 if command == ["status"] else 0), done.stderr


@pytest.mark.parametrize("command", ["status --json", "--help", "logs"])
def test_a_reader_that_goes_away_is_no_failure_of_ours(command: str, stack: Path) -> None:
    line = f"'{PROJECT / 'userstream'}' {command} --data '{stack}'"

    done = run(["sh", "-c", f"{line} | true"])

    assert done.stderr == b""


def test_what_a_terminal_lacks_is_written_with_what_it_has(stack: Path) -> None:
    command = [str(PROJECT / "userstream"), "logs", "--data", str(stack)]

    done = run(command, PYTHONIOENCODING="latin-1")

    assert b'+ Starting sender - "ready" ??' in done.stdout
