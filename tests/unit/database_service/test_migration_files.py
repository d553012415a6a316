from pathlib import Path

import pytest

from database_service.migrations import MigrationError, read_migrations


def test_the_projects_own_migrations_are_numbered_without_gaps() -> None:
    migrations = read_migrations()

    assert [migration.number for migration in migrations] == [*range(1, len(migrations) + 1)]


def test_migrations_come_in_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("0010_ten.sql", "0002_two.sql", "0001_one.sql"):
        (tmp_path / name).write_text("SELECT 1;")

    assert [migration.number for migration in read_migrations(tmp_path)] == [1, 2, 10]


@pytest.mark.parametrize("name", ["1_short.sql", "0001-dash.sql", "0001_Upper.sql", "users.sql"])
def test_a_misnamed_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("SELECT 1;")

    with pytest.raises(MigrationError, match=name):
        read_migrations(tmp_path)


def test_a_number_can_be_used_once(tmp_path: Path) -> None:
    for name in ("0001_one.sql", "0001_other.sql"):
        (tmp_path / name).write_text("SELECT 1;")

    with pytest.raises(MigrationError, match="number 0001"):
        read_migrations(tmp_path)


def test_line_ends_of_another_system_are_the_same_text(tmp_path: Path) -> None:
    path = tmp_path / "0001_one.sql"
    path.write_bytes(b"SELECT 1;\nSELECT 2;\n")
    (unix,) = read_migrations(tmp_path)

    path.write_bytes(b"SELECT 1;\r\nSELECT 2;\r\n")

    (windows,) = read_migrations(tmp_path)
    assert windows.checksum == unix.checksum
    path.write_bytes(b"SELECT 1;\nSELECT 3;\n")
    (changed,) = read_migrations(tmp_path)
    assert changed.checksum != unix.checksum
