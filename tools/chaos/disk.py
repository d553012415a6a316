"""A disk so small that it can be filled: a tmpfs, where root may mount one."""

import errno
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

SIZE = "16m"
"""Room for the reports of a run. A full one holds up no other program."""

CHUNK_BYTES = 65_536
"""Bytes that are written at once to fill it; the last one is cut short."""


@dataclass(slots=True)
class SmallDisk:
    """The folder of the reports."""

    folder: Path
    why_not: str = ""
    """Why it cannot be filled on this machine."""

    @classmethod
    def made(cls, folder: Path) -> Self:
        """Mount it; without the right to do that it is an ordinary folder that never fills."""
        folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() != 0 or shutil.which("mount") is None:
            return cls(folder, "disk full: not injected, only root may mount a small disk")
        command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=755", "chaos", str(folder)]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
        if done.returncode != 0:
            return cls(folder, f"disk full: not injected, {done.stderr.strip()}")
        return cls(folder)

    def fill(self) -> bool:
        """Leave no room at all; False where that cannot be done."""
        if self.why_not:
            return False
        try:
            with self._filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(CHUNK_BYTES))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        return True

    def clear(self) -> None:
        """Give the room back."""
        self._filler.unlink(missing_ok=True)

    def remove(self) -> None:
        """Unmount it."""
        if not self.why_not:
            subprocess.run(["umount", str(self.folder)], capture_output=True, check=False)

    @property
    def _filler(self) -> Path:
        return self.folder / "filler"
