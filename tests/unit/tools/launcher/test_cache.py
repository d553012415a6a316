"""Where fetched things are kept."""

import os
from pathlib import Path

import pytest

from tools.launcher import cache, environment
from tools.launcher.cache import RUN_DIRECTORY, choose, is_personal


def test_the_variable_of_the_desktop_wins(tmp_path: Path) -> None:
    named = {"XDG_CACHE_HOME": str(tmp_path / "xdg"), "HOME": str(tmp_path)}

    assert choose(named) == tmp_path / "xdg" / "userstream"
    assert choose(named).stat().st_mode & 0o777 == 0o700
    assert is_personal(choose(named), named)


@pytest.mark.parametrize("ignored", ["", "relative/path"])
def test_without_it_the_cache_of_the_home_is_taken(tmp_path: Path, ignored: str) -> None:
    named = {"XDG_CACHE_HOME": ignored, "HOME": str(tmp_path)}

    assert choose(named) == tmp_path / ".cache" / "userstream"


@pytest.mark.parametrize("home", ["/proc/nobody", "/dev/null", ""])
def test_where_the_home_can_not_be_written_the_project_keeps_it(home: str) -> None:
    assert choose({"HOME": home}) == RUN_DIRECTORY
    assert not is_personal(RUN_DIRECTORY, {"HOME": home})


def test_where_the_project_can_not_be_written_either_there_is_a_folder_of_this_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "RUN_DIRECTORY", Path("/proc/run"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))

    assert choose({}) == tmp_path / f"userstream-cache-{os.geteuid()}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")
def test_root_makes_nothing_in_the_home_of_somebody_else(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)

    assert choose({"HOME": str(tmp_path)}) == RUN_DIRECTORY


def test_every_copy_of_the_project_links_to_the_same_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "cache" / "python" / "demo-abc"
    target.mkdir(parents=True)
    for copy in ("one", "two"):
        monkeypatch.setattr(environment, "RUN_DIRECTORY", tmp_path / copy)

        assert environment._linked(target) == target
        assert (tmp_path / copy / "python" / "demo-abc").resolve() == target
