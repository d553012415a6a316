"""The memory that the broker is told of: the machine's, or less where less is granted."""

import os
from pathlib import Path

import pytest

from tools.launcher import memory
from tools.launcher.memory import available_memory

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
LIMIT = 64 * 1024**2


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "ROOT", tmp_path)
    return tmp_path


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def test_without_control_groups_it_is_the_machines(root: Path) -> None:
    assert not list(root.iterdir())
    assert available_memory() == MACHINE


@pytest.mark.parametrize("group", ["/", "/user.slice/session.scope", "/docker/0123"])
def test_a_limit_of_this_group_or_one_above_it_counts(root: Path, group: str) -> None:
    write(root / "proc/self/cgroup", f"0::{group}")
    write(root / f"sys/fs/cgroup{group}/memory.max", "max")
    write(root / "sys/fs/cgroup/memory.max", str(LIMIT))

    assert available_memory() == LIMIT


def test_the_older_control_groups_count_too(root: Path) -> None:
    write(root / "proc/self/cgroup", "5:cpu,cpuacct:/a\n4:memory:/docker/0123\n1:name=systemd:/x")
    write(root / "sys/fs/cgroup/memory/memory.limit_in_bytes", str(LIMIT))  # seen from inside

    assert available_memory() == LIMIT


def test_a_limit_beyond_the_machine_is_none(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/")
    write(root / "sys/fs/cgroup/memory.max", str(MACHINE * 1000))

    assert available_memory() == MACHINE
