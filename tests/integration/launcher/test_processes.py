"""Child processes as the launcher starts them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.launcher.errors import LauncherError
from tools.launcher.processes import Program, start

PARENT = """
import sys, time
from pathlib import Path
from tools.launcher.processes import Program, start
program = Program(
    name="child", argv=("sleep", "300"), environment={}, directory=Path("/"),
    log=Path(sys.argv[1]), is_ready=lambda: True,
)
print(start(program).pid, flush=True)
time.sleep(300)
"""


def a_program(tmp_path: Path, *argv: str, ready: bool = True) -> Program:
    return Program(
        name="child",
        argv=argv,
        environment={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        directory=tmp_path,
        log=tmp_path / "child.log",
        is_ready=lambda: ready,
        ready_within=0.3,
        stop_within=0.3,
    )


def test_child_does_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert _runs(child)

        parent.kill()

    deadline = time.monotonic() + 10
    while _runs(child):
        assert time.monotonic() < deadline, "the child is still there"
        time.sleep(0.02)


def test_child_gets_only_the_environment_it_was_given(tmp_path: Path) -> None:
    running = start(a_program(tmp_path, "env"))

    running.popen.wait()

    assert running.program.log.read_text().split() == ["PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8"]


def test_program_that_ends_too_early_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    running = start(a_program(tmp_path, "sh", "-c", "echo no such table; exit 3", ready=False))

    with pytest.raises(LauncherError, match=r"(?s)child ended with exit code 3.*no such table"):
        running.wait_until_ready()


def test_program_that_does_not_become_ready_is_reported(tmp_path: Path) -> None:
    running = start(a_program(tmp_path, "sleep", "300", ready=False))

    with pytest.raises(LauncherError, match="is not ready after 0 s"):
        running.wait_until_ready()

    running.kill()


def test_program_that_ignores_its_stop_signal_is_ended_by_force(tmp_path: Path) -> None:
    running = start(a_program(tmp_path, "sh", "-c", "trap '' TERM; echo up; sleep 300"))
    deadline = time.monotonic() + 10
    while "up" not in running.program.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)

    running.stop()

    assert running.exit_code == -signal.SIGKILL


def _runs(pid: int) -> bool:
    """Whether the process is there and not just waiting to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False
    except OSError:
        os.kill(pid, 0)
        return True
