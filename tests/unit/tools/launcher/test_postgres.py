"""Where the data of PostgreSQL is, seen from the files alone."""

import os
import tempfile
from pathlib import Path

import pytest

from tools.launcher import postgres as module
from tools.launcher.errors import LauncherError
from tools.launcher.postgres import Postgres, unprivileged_owner


def a_server(directory: Path) -> Postgres:
    return Postgres(
        directory=directory,
        secrets_directory=directory.parent / "secrets",
        port=1,
        programs={},
        log_directory=directory.parent,
    )


def test_data_that_is_gone_is_missed_and_not_begun_anew(tmp_path: Path) -> None:
    directory = tmp_path / "postgres"
    directory.symlink_to(tmp_path / "gone")

    with pytest.raises(LauncherError, match=r"was in .*gone, and is not there"):
        a_server(directory).prepare()

    assert not (tmp_path / "gone").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's server runs as another user")
def test_data_that_could_be_reached_until_now_moves_to_where_it_still_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setattr(module, "ELSEWHERE", (elsewhere,))
    directory = tmp_path / "data" / "postgres"
    (directory / "data").mkdir(parents=True)
    (directory / "data" / "PG_VERSION").write_text("18", "utf-8")
    directory.parent.chmod(0o700)

    a_server(directory).prepare()

    assert directory.resolve().parent == elsewhere
    assert elsewhere.stat().st_mode & 0o777 == 0o711
    assert directory.resolve().stat().st_mode & 0o777 == 0o700
    assert (directory / "data" / "PG_VERSION").read_text("utf-8") == "18"
    assert a_server(directory).directory.resolve() == directory.resolve()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's server runs as another user")
def test_data_that_moves_to_another_disk_still_belong_to_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = unprivileged_owner()
    assert owner is not None
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other_disk:
        monkeypatch.setattr(module, "ELSEWHERE", (tmp_path / "elsewhere",))
        directory = Path(other_disk) / "postgres"
        (directory / "data").mkdir(parents=True)
        (directory / "data" / "PG_VERSION").write_text("18", "utf-8")
        for path in (directory, *directory.rglob("*")):
            os.chown(path, owner.uid, owner.gid)

        a_server(directory).prepare()

        moved = [directory.resolve(), *directory.resolve().rglob("*")]
        assert [path.stat().st_uid for path in moved] == [owner.uid] * 3
        assert [path.name for path in Path(other_disk).iterdir()] == ["postgres"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's server runs as another user")
def test_an_interrupted_move_is_completed_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ELSEWHERE", (tmp_path / "elsewhere",))
    directory = tmp_path / "data" / "postgres"
    (directory / "data").mkdir(parents=True)
    (directory / "data" / "PG_VERSION").write_text("18", "utf-8")
    directory.parent.chmod(0o700)
    replace = Path.replace

    def die_before_the_link(self: Path, target: Path) -> Path:
        if self.is_symlink():
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as dying:
        dying.setattr(Path, "replace", die_before_the_link)
        with pytest.raises(KeyboardInterrupt):
            a_server(directory).prepare()

    a_server(directory).prepare()

    assert (directory / "data" / "PG_VERSION").read_text("utf-8") == "18"


def test_programs_are_opened_to_the_user_that_runs_them(tmp_path: Path) -> None:
    folder = tmp_path / "programs"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "postgres").touch()
    (folder / "bin" / "postgres").chmod(0o700)
    (folder / "bin" / "notes").touch()
    (folder / "bin" / "notes").chmod(0o600)

    module._open_to_all(folder)

    assert (folder / "bin" / "postgres").stat().st_mode & 0o777 == 0o755
    assert (folder / "bin" / "notes").stat().st_mode & 0o777 == 0o644
