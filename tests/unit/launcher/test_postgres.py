"""Where the data of PostgreSQL is, seen from the files alone."""

import os
from pathlib import Path

import pytest

from launcher import postgres as module
from launcher.errors import LauncherError
from launcher.postgres import Postgres


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
