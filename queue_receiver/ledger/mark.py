"""How far the stream was read, as this machine remembers it beside the database.

A database that is restored from a backup forgets how far it had come. What it then finds missing
was stored and mailed before, so it is worth remembering elsewhere that it was read.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import structlog

from common.contracts.ledger import LedgerPosition

log = structlog.get_logger()


class Mark:
    """The furthest position; kept in a file, where there is a folder that outlives the process.

    A file that cannot be read or written costs nothing but that memory: the next restoration
    is then only noticed by a process that was up before it.
    """

    def __init__(self, folder: Path | None, stream: str) -> None:
        self._path = folder / f"{stream}.position.json" if folder else None
        self._position = _read(self._path) if self._path else None

    def beyond(self, position: LedgerPosition) -> LedgerPosition | None:
        """What was read further than ``position``, if anything was."""
        mark = self._position
        return mark if mark is not None and mark.next_offset > position.next_offset else None

    def keep(self, position: LedgerPosition) -> None:
        """Remember a position, whatever was remembered before."""
        kept = LedgerPosition(next_offset=position.next_offset, last_id=position.last_id)
        if kept == self._position:
            return
        self._position = kept
        if self._path is not None:
            try:
                _write(self._path, kept)
            except OSError as error:
                log.warning("ledger.mark_not_kept", reason=error.strerror)


def _read(path: Path) -> LedgerPosition | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        said = json.loads(path.read_text("utf-8"))
        return LedgerPosition(next_offset=int(said["nextOffset"]), last_id=UUID(said["lastId"]))
    return None


def _write(path: Path, position: LedgerPosition) -> None:
    """Replace the file as a whole; a crash leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = path.with_suffix(f".{os.getpid()}")
    content = {"nextOffset": position.next_offset, "lastId": str(position.last_id)}
    new.write_text(json.dumps(content), "utf-8")
    new.replace(path)
