import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn
from uuid import UUID, uuid4

import pytest

from common.errors import GoneError, NoSpaceError, NotFoundError, StorageError
from report_generator.csv_style import CsvStyle
from report_generator.files import DRAFT_MAX_AGE, ReportDirectory

STYLE = CsvStyle()
CONTENT = b'ID,Name\r\n1,"A\nda"\r\n2,Grace\r\n'


async def rows(content: bytes = CONTENT, cut: int = 4) -> AsyncIterator[bytes]:
    for start in range(0, len(content), cut):
        yield content[start : start + cut]


async def broken_rows() -> AsyncIterator[bytes]:
    yield CONTENT
    raise ConnectionError


def names(directory: ReportDirectory) -> list[str]:
    return sorted(path.name for path in directory.path.iterdir())


@pytest.fixture
def directory(tmp_path: Path) -> ReportDirectory:
    return ReportDirectory(tmp_path)


async def test_a_report_is_written_measured_and_private(directory: ReportDirectory) -> None:
    report_id = uuid4()

    finished = await directory.write(report_id, rows(), STYLE)

    path = directory.path / f"{report_id}.csv"
    assert path.read_bytes() == CONTENT
    assert path.stat().st_mode & 0o777 == 0o600
    assert finished.name == path.name
    assert finished.records == 2
    assert finished.size_bytes == len(CONTENT)
    assert finished.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert names(directory) == [path.name]


async def test_a_broken_stream_leaves_nothing(directory: ReportDirectory) -> None:
    with pytest.raises(ConnectionError):
        await directory.write(uuid4(), broken_rows(), STYLE)

    assert names(directory) == []


async def test_a_stop_half_way_leaves_nothing(directory: ReportDirectory) -> None:
    reached = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield CONTENT
        reached.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(directory.write(uuid4(), endless(), STYLE))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert names(directory) == []


async def test_the_first_of_two_instances_wins_and_both_report_its_file(
    directory: ReportDirectory,
) -> None:
    report_id = uuid4()
    first_is_done = asyncio.Event()

    async def slow_rows() -> AsyncIterator[bytes]:
        yield b"ID,Name\r\n"
        await first_is_done.wait()

    slow = asyncio.create_task(directory.write(report_id, slow_rows(), STYLE))
    while not names(directory):  # noqa: ASYNC110 - the draft is made by a thread
        await asyncio.sleep(0)
    first = await directory.write(report_id, rows(), STYLE)
    first_is_done.set()
    second = await slow

    assert second == first
    assert (directory.path / first.name).read_bytes() == CONTENT
    assert names(directory) == [first.name]


async def test_a_finished_file_is_measured_and_not_made_again(directory: ReportDirectory) -> None:
    report_id = uuid4()
    before = await directory.write(report_id, rows(), STYLE)

    after = await directory.write(report_id, broken_rows(), STYLE)

    assert after == before


async def test_a_full_disk_is_said_and_the_draft_is_deleted(
    directory: ReportDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(NoSpaceError):
        await directory.write(uuid4(), rows(), STYLE)

    assert names(directory) == []


def test_only_old_drafts_are_removed_at_start(directory: ReportDirectory) -> None:
    old = directory.path / "a.csv.tmp-1"
    fresh = directory.path / "b.csv.tmp-2"
    finished = directory.path / "c.csv"
    for path in (old, fresh, finished):
        path.touch()
    long_ago = old.stat().st_mtime - DRAFT_MAX_AGE.total_seconds() - 1
    os.utime(old, (long_ago, long_ago))
    os.utime(finished, (long_ago, long_ago))

    removed = directory.prepare()

    assert removed == 1
    assert names(directory) == ["b.csv.tmp-2", "c.csv"]


def test_prepare_makes_the_directory(tmp_path: Path) -> None:
    directory = ReportDirectory(tmp_path / "new" / "reports")

    directory.prepare()

    directory.check()
    assert names(directory) == []


def test_a_directory_that_is_not_there_is_not_ready(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        ReportDirectory(tmp_path / "gone").check()


@pytest.mark.parametrize(
    "name",
    [
        "../secret.csv",
        "..",
        ".",
        "",
        "/etc/passwd",
        "sub/../../secret.csv",
        "nul\0.csv",
        "x" * 300,
        "sub",
        "link.csv",
        "link-to-another-report.csv",
        "link-to-directory/secret.csv",
        "fifo",
    ],
)
def test_only_plain_files_of_the_directory_are_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.csv").write_text("secret")
    directory = ReportDirectory(tmp_path / "reports")
    (directory.path / "sub").mkdir(parents=True)
    (directory.path / "link.csv").symlink_to(tmp_path / "secret.csv")
    (directory.path / "other.csv").write_text("other")
    (directory.path / "link-to-another-report.csv").symlink_to("other.csv")
    (directory.path / "link-to-directory").symlink_to(tmp_path)
    os.mkfifo(directory.path / "fifo")

    with pytest.raises(NotFoundError):
        directory.open(name)


def test_a_removed_file_is_gone(directory: ReportDirectory) -> None:
    with pytest.raises(GoneError):
        directory.open(f"{UUID(int=1)}.csv")
