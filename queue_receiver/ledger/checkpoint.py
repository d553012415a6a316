"""How far the stream was read, kept on this machine beside the database.

A database that is restored from a backup forgets how far it had come. What it then finds missing
was stored and mailed before, so the position is kept in a second place.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import structlog

from common.contracts.ledger import LedgerPosition

log = structlog.get_logger()


class Checkpoint:
    """The furthest position; in a file, if there is a folder that outlives the process.

    A file that cannot be read or written loses only that position: the next restoration is then
    noticed only by a process that was started before it.
    """

    def __init__(self, folder: Path | None, stream: str) -> None:
        self._path = folder / f"{stream}.position.json" if folder else None
        self._position = _read(self._path) if self._path else None

    def beyond(self, position: LedgerPosition) -> LedgerPosition | None:
        """The checkpoint, if it is further than ``position``."""
        known = self._position
        return known if known is not None and known.next_offset > position.next_offset else None

    def save(self, position: LedgerPosition) -> None:
        """Save a position, even if it is less far than the last one."""
        saved = LedgerPosition(next_offset=position.next_offset, last_id=position.last_id)
        if saved == self._position:
            return
        self._position = saved
        if self._path is not None:
            try:
                _write(self._path, saved)
            except OSError as error:
                log.warning("ledger.checkpoint_not_saved", reason=error.strerror)


def _read(path: Path) -> LedgerPosition | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        saved = json.loads(path.read_text("utf-8"))
        return LedgerPosition(next_offset=int(saved["nextOffset"]), last_id=UUID(saved["lastId"]))
    return None


def _write(path: Path, position: LedgerPosition) -> None:
    """Replace the file as a whole; a crash leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = path.with_suffix(f".{os.getpid()}")
    content = {"nextOffset": position.next_offset, "lastId": str(position.last_id)}
    new.write_text(json.dumps(content), "utf-8")
    new.replace(path)
