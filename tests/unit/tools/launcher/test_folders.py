import os
import stat
from pathlib import Path

import pytest

from tools.launcher.folders import open_data


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def careless() -> object:
    """A umask that would let everybody read everything."""
    before = os.umask(0)
    yield
    os.umask(before)


def test_new_data_is_closed_to_others(tmp_path: Path) -> None:
    open_data(tmp_path / "a" / "data")

    assert mode(tmp_path / "a" / "data") == 0o700
    assert mode(tmp_path / "a" / "data" / "secrets") == 0o700


def test_data_of_an_earlier_start_is_closed_too(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("logs", "mailbox", "rabbitmq", "reports"):
        (data / name).mkdir(parents=True)

    open_data(data)

    assert mode(data) == 0o700
    assert {mode(folder) for folder in data.iterdir()} == {0o700}


@pytest.mark.parametrize("other", ["file", ".bashrc"])
def test_a_folder_with_other_things_in_it_stays_open(tmp_path: Path, other: str) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / other).touch()
    (tmp_path / "logs").mkdir()

    open_data(tmp_path)

    assert mode(tmp_path) == 0o755
    assert mode(tmp_path / "logs") == 0o700


def test_a_folder_for_all_stays_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)

    open_data(tmp_path)

    assert mode(tmp_path) == 0o1777
