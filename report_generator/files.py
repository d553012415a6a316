"""The report files on disk, in one directory that all instances share."""

import asyncio
import errno
import hashlib
import os
import secrets
import stat
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from common.errors import GoneError, NoSpaceError, NotFoundError, StorageError
from common.failpoints import failpoint
from report_generator.csv_style import CsvStyle, RecordCounter

BLOCK_BYTES = 64 * 1024
"""Read and written at once: large enough that the hop to a thread does not show."""

DRAFT_MARK = ".tmp-"
"""In the name of every file that is not finished."""

DRAFT_MAX_AGE = timedelta(hours=1)
"""A draft not written to for this long was left behind by a process that died."""

_NO_SUCH_FILE = "There is no such report file."


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedFile:
    """A complete file under its final name, safe on disk."""

    name: str
    records: int
    """Without the header."""
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ReportDirectory:
    """Where reports are kept, one file per report, named by its id.

    A file gets its final name with ``link``, which refuses a name that is taken, where
    ``rename`` would replace: of two instances that make the same report (the broker gave the
    message to a second one) the first to finish wins. So a file never changes once it has
    its name, and what was recorded of it stays true.
    """

    path: Path

    def prepare(self) -> int:
        """Make the directory and remove what crashed processes left; returns how many files.

        Raises:
            StorageError: It cannot be made.
        """
        with _translated("The output directory cannot be prepared"):
            self.path.mkdir(parents=True, exist_ok=True)
            return sum(_removed(path) for path in self.path.glob(f"*{DRAFT_MARK}*"))

    def check(self) -> None:
        """Return if a report could be written now.

        Raises:
            StorageError: It could not, and why.
        """
        # The same steps as for a report: not every network file system knows links.
        probe = self.path / f"probe{DRAFT_MARK}{secrets.token_hex(8)}"
        linked = probe.with_name(f"{probe.name}-linked")
        with _translated("The output directory cannot be written"):
            try:
                probe.touch(mode=0o600, exist_ok=False)
                os.link(probe, linked)
            finally:
                linked.unlink(missing_ok=True)
                probe.unlink(missing_ok=True)

    def has(self, report_id: UUID) -> bool:
        """Whether the report's file is there; if so, it is complete."""
        return self._final(report_id).is_file()

    async def write(
        self, report_id: UUID, rows: AsyncIterator[bytes], style: CsvStyle
    ) -> FinishedFile:
        """Write the rows to the report's file; holds one block at a time, whatever their number.

        A crash leaves a draft, never half a file under the final name. Where the file is
        there already, ``rows`` is not read.

        Raises:
            NoSpaceError: The disk is full; the draft is deleted.
            StorageError: The directory cannot be written.
        """
        final = self._final(report_id)
        if not self.has(report_id):
            draft = await asyncio.to_thread(_Draft, final, style)
            try:
                async for block in _blocks(rows):
                    await asyncio.to_thread(draft.write, block)
                failpoint("w32")
                if await asyncio.to_thread(draft.finish):
                    return draft.measure.of(final)
            finally:
                await asyncio.to_thread(draft.discard)
        return await asyncio.to_thread(_examined, final, style)

    def open(self, name: str) -> BinaryIO:
        """Open a finished file by the name in its record.

        The name comes from the database, and still nothing but a plain file in this
        directory is opened, whatever it says.

        Raises:
            NotFoundError: The name leads anywhere else.
            GoneError: The file was removed.
        """
        path = self._inside(name)
        with _translated("The file cannot be read"):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except FileNotFoundError as error:
                raise GoneError("The file was removed. Ask for a new report.") from error
            except OSError as error:
                if error.errno in {errno.ELOOP, errno.ENAMETOOLONG}:  # ELOOP: a symbolic link
                    raise NotFoundError(_NO_SUCH_FILE) from error
                raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise NotFoundError(_NO_SUCH_FILE)
        return os.fdopen(descriptor, "rb")

    def _inside(self, name: str) -> Path:
        path = self.path / name
        plain = name not in {"", ".", ".."} and "\0" not in name and path.name == name
        # Not only the parts of the name: ``resolve`` sees links in the path as well.
        if not plain or path.resolve().parent != self.path.resolve():
            raise NotFoundError(_NO_SUCH_FILE)
        return path

    def _final(self, report_id: UUID) -> Path:
        return self.path / f"{report_id}.csv"


class _Measure:
    """What is to be recorded of a file, gathered while its bytes pass by."""

    def __init__(self, style: CsvStyle) -> None:
        self._counter = RecordCounter(style)
        self._digest = hashlib.sha256()
        self._size_bytes = 0

    def feed(self, block: bytes) -> None:
        """Take the next bytes into account."""
        self._counter.feed(block)
        self._digest.update(block)
        self._size_bytes += len(block)

    def of(self, path: Path) -> FinishedFile:
        """The facts of the file that had all the bytes."""
        return FinishedFile(
            name=path.name,
            records=self._counter.records,
            size_bytes=self._size_bytes,
            sha256=self._digest.hexdigest(),
        )


class _Draft:
    """A file being written; it lies beside its final place, on the same file system."""

    def __init__(self, final: Path, style: CsvStyle) -> None:
        self.measure = _Measure(style)
        self._final = final
        self._path = final.with_name(f"{final.name}{DRAFT_MARK}{secrets.token_hex(8)}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with _translated("The report cannot be written"):
            self._file = os.fdopen(os.open(self._path, flags, 0o600), "wb")

    def write(self, block: bytes) -> None:
        """Append a block."""
        with _translated("The report cannot be written"):
            self._file.write(block)
        self.measure.feed(block)

    def finish(self) -> bool:
        """Put the content on disk, then give it its final name; False: another was faster."""
        with _translated("The report cannot be written"):
            self._file.flush()
            os.fsync(self._file.fileno())
            try:
                os.link(self._path, self._final)
            except FileExistsError:
                return False
            _sync_directory(self._final.parent)
        return True

    def discard(self) -> None:
        """Close and remove the draft; a finished file keeps its final name."""
        with suppress(OSError):  # closing flushes, and the disk may be full
            self._file.close()
        with suppress(OSError):
            self._path.unlink()


def _examined(path: Path, style: CsvStyle) -> FinishedFile:
    """Measure a file that another process finished."""
    measure = _Measure(style)
    with _translated("The report cannot be read back"), path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            measure.feed(block)
        # It may have died between the link and this.
        _sync_directory(path.parent)
    return measure.of(path)


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


async def _blocks(rows: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in blocks of about ``BLOCK_BYTES``."""
    buffer = bytearray()
    async for chunk in rows:
        buffer += chunk
        if len(buffer) >= BLOCK_BYTES:
            yield bytes(buffer)
            buffer.clear()
    if buffer:
        yield bytes(buffer)


def _removed(draft: Path) -> bool:
    """Remove a draft that was not written to for ``DRAFT_MAX_AGE``."""
    try:
        if time.time() - draft.lstat().st_mtime < DRAFT_MAX_AGE.total_seconds():
            return False
        draft.unlink()
    except FileNotFoundError:  # another instance starts at the same time
        return False
    return True


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise NoSpaceError(f"{what}: the disk is full. Free some space.") from error
        raise StorageError(f"{what}: {error.strerror or type(error).__name__}.") from error
