import re
from pathlib import Path

import pytest

from tools.launcher import plain_paths
from tools.launcher.errors import LauncherError
from tools.launcher.plain_paths import plain


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(plain_paths, "cache_directory", lambda: tmp_path)
    return tmp_path


def test_a_plain_path_stays_as_it_is() -> None:
    assert plain(Path("/srv/user-stream_1.0/data")) == Path("/srv/user-stream_1.0/data")


@pytest.mark.parametrize("name", ["a b", "it's", 'a"b', "Zoë", "a$b", "a;b", "a\\b", "100%", "a#b"])
def test_any_other_is_reached_by_a_link_that_is_plain(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "file").touch()

    reached = plain(folder)

    assert re.fullmatch(r"[\w./-]+", str(reached), re.ASCII)
    assert (reached / "file").exists()
    assert plain(folder) == reached


def test_a_link_that_leads_elsewhere_is_put_right(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    link = plain(folder)
    link.unlink()
    link.symlink_to("/nowhere")

    assert plain(folder) == link
    assert link.resolve() == folder


def test_where_no_link_can_be_made_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_paths, "_places", lambda: [Path("/proc/links")])

    with pytest.raises(LauncherError, match="--data"):
        plain(tmp_path / "a b")
