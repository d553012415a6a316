"""The mails: one ``.eml`` file each, and an index of them in memory.

A file's name is the time its mail came, in nanoseconds, as 16 hexadecimal digits. So a
restart has the whole list, in order, from the names alone; headers are read when someone
asks for them.
"""

import asyncio
import os
import re
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from pathlib import Path

from tools.mailcatcher.headers import HEADER_LIMIT, Headers
from tools.mailcatcher.message import read_content

_FILE_NAME = re.compile(r"([0-9a-f]{16})\.eml")
_TEMPORARY = ".incoming"

DIGESTS_KEPT = 10_000
"""Mails whose beginning is remembered, so that a list asked for again is not parsed again."""


@dataclass(frozen=True, slots=True)
class Digest:
    """What a list shows of a mail's content."""

    attachments: int
    snippet: str


@dataclass(frozen=True, slots=True)
class Entry:
    """What the index knows of a mail."""

    id: str
    size: int
    """Bytes of the file."""
    headers: Headers

    @property
    def received(self) -> datetime:
        """When the mail came, in UTC."""
        return datetime.fromtimestamp(int(self.id, 16) / 1e9, UTC)


class MailStore:
    """Every mail kept, newest first.

    Methods run in the event loop's thread, except ``entry``, ``read`` and ``digest``,
    which touch nothing but files and single keys and may run in any.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder = folder
        self._keep = keep
        self._order: OrderedDict[str, None] = OrderedDict()
        self._entries: dict[str, Entry] = {}
        self._read: set[str] = set()
        self._version = time.time_ns()
        self._changed = asyncio.Event()
        self._last = 0
        self.digest = lru_cache(maxsize=DIGESTS_KEPT)(self._digest)

    def open(self) -> None:
        """Find the mails of earlier runs; what a crash left half written is removed.

        Raises:
            OSError: The folder cannot be made or written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        names = os.listdir(self._folder)  # noqa: PTH208 - 100,000 paths would be slow to make
        for name in names:
            if name.endswith(_TEMPORARY):
                (self._folder / name).unlink(missing_ok=True)
        ids = sorted(match[1] for name in names if (match := _FILE_NAME.fullmatch(name)))
        self._order = OrderedDict.fromkeys(ids)
        self._last = int(ids[-1], 16) if ids else 0
        self._drop_oldest()

    def add(self, raw: bytes, headers: Headers) -> str:
        """Keep a mail and return its id; afterwards it outlives a crash of this process.

        The file is written in the event loop's thread: without a sync that is 50 µs, less
        than handing it to another thread.

        Raises:
            OSError: It could not be written; nothing of it is kept.
        """
        # Strictly increasing, even where the clock is coarse or was set back.
        self._last = max(time.time_ns(), self._last + 1)
        entry = Entry(f"{self._last:016x}", len(raw), headers.cut())
        _write(os.fspath(self._path(entry.id)), raw)
        self._order[entry.id] = None
        self._entries[entry.id] = entry
        self._drop_oldest()
        self._announce()
        return entry.id

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, mail_id: str) -> bool:
        return mail_id in self._order

    def ids(self, *, start: int = 0, limit: int | None = None) -> list[str]:
        """Ids, newest first."""
        return list(islice(reversed(self._order), start, None if limit is None else start + limit))

    def entry(self, mail_id: str) -> Entry | None:
        """What the index knows of a mail, None if there is none such (or no longer)."""
        if (known := self._entries.get(mail_id)) or mail_id not in self._order:
            return known
        try:
            with self._path(mail_id).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                loaded = Entry(mail_id, size, Headers.scan(file.read(HEADER_LIMIT)).cut())
        except OSError:
            return None
        self._entries[mail_id] = loaded
        return loaded

    def read(self, mail_id: str) -> bytes | None:
        """The whole mail as it came, None if there is none such (or no longer)."""
        if mail_id not in self._order:
            return None
        try:
            return self._path(mail_id).read_bytes()
        except OSError:
            return None

    def _digest(self, mail_id: str) -> Digest | None:
        """What lists show of a mail's content, None if there is none such (or no longer)."""
        if (raw := self.read(mail_id)) is None:
            return None
        content = read_content(raw)
        return Digest(sum(not part.inline for part in content.attachments), content.snippet())

    def delete(self, mail_ids: Iterable[str]) -> list[str]:
        """Forget these mails and return the ids that existed; ``remove_files`` ends the work."""
        gone = [mail_id for mail_id in mail_ids if mail_id in self._order]
        for mail_id in gone:
            del self._order[mail_id]
            self._forget(mail_id)
        self._announce()
        return gone

    def remove_files(self, mail_ids: Iterable[str]) -> None:
        """Remove the files of mails already forgotten; for a worker thread."""
        for mail_id in mail_ids:
            self._path(mail_id).unlink(missing_ok=True)

    def mark_read(self, mail_id: str) -> None:
        """Remember, until the next restart, that someone opened this mail."""
        if mail_id in self._order:
            self._read.add(mail_id)

    def is_read(self, mail_id: str) -> bool:
        """Whether someone opened this mail since the start."""
        return mail_id in self._read

    @property
    def unread(self) -> int:
        """Mails not opened since the start."""
        return len(self._order) - len(self._read)

    @property
    def version(self) -> int:
        """Grows with every change, and from one run to the next."""
        return self._version

    async def wait_beyond(self, version: int) -> int:
        """Wait until the store has changed since ``version``, and return the new version."""
        while self._version == version:
            await self._changed.wait()
        return self._version

    def _announce(self) -> None:
        # Each waiter holds this event; the next change has one of its own.
        self._version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    def _forget(self, mail_id: str) -> None:
        self._entries.pop(mail_id, None)
        self._read.discard(mail_id)

    def _drop_oldest(self) -> None:
        self.remove_files(list(self._oldest_beyond_keep()))

    def _oldest_beyond_keep(self) -> Iterator[str]:
        while len(self._order) > self._keep:
            mail_id, _ = self._order.popitem(last=False)
            self._forget(mail_id)
            yield mail_id

    def _path(self, mail_id: str) -> Path:
        return self._folder / f"{mail_id}.eml"


def _write(path: str, raw: bytes) -> None:
    temporary = path + _TEMPORARY
    try:
        with open(temporary, "wb") as file:  # noqa: PTH123 - Path costs as much as the write
            file.write(raw)
        os.rename(temporary, path)  # noqa: PTH104 - likewise
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
