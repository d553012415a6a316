"""Clocks that jump: libfaketime, preloaded into some instances, reads its offset from a file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tools.launcher import apt
from tools.launcher.environment import tools_directory
from tools.launcher.errors import LauncherError
from tools.launcher.locks import waiting_for
from tools.launcher.plain_paths import plain

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where the library itself puts it

LIBRARY = "usr/lib/*/faketime/libfaketime.so.1"


@dataclass(slots=True)
class Clock:
    """What the instances with this environment take for the time."""

    file: Path
    environment: dict[str, str]
    why_not: str = ""
    """Why it cannot be set on this machine."""

    @classmethod
    def made(cls, file: Path) -> Self:
        """A clock that is right so far; fetches the library where the system has none."""
        try:
            library = _library(tools_directory())
        except LauncherError as error:
            return cls(
                file, {}, f"clock jumps: not injected, there is no libfaketime here ({error})"
            )
        clock = cls(
            file,
            {
                "LD_PRELOAD": str(plain(library)),
                "FAKETIME_TIMESTAMP_FILE": str(file),
                "FAKETIME_CACHE_DURATION": "1",
                # Time-outs and the loop's clock: NTP steps never touch those either.
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            },
        )
        clock.jump(0)
        return clock

    def jump(self, seconds: int) -> bool:
        """Set it so far ahead (or back) of the machine's; False where that cannot be done."""
        if self.why_not:
            return False
        self.file.write_text(f"{seconds:+d}\n", "utf-8")
        return True

    def remove(self) -> None:
        """Remove the shared memory that the killed processes left behind, one segment each."""
        for pattern in ("faketime_shm_*", "sem.faketime_sem_*"):
            for segment in SHARED_MEMORY.glob(pattern):
                if not Path("/proc", segment.name.rpartition("_")[2]).exists():
                    segment.unlink(missing_ok=True)


def _library(tools: Path) -> Path:
    if found := sorted(Path("/").glob(LIBRARY)):
        return found[0]
    unpacked = tools / "faketime"
    with waiting_for(tools / "faketime.lock"):
        if not unpacked.exists():
            if not apt.is_available():
                raise LauncherError("the system's package is called libfaketime or faketime")
            apt.unpack(["libfaketime"], unpacked)
    found = sorted(unpacked.glob(LIBRARY))
    if not found:
        raise LauncherError("the package holds no library for this machine")
    return found[0]
