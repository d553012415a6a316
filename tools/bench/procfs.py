"""CPU time and memory of processes and what they started, from Linux's ``/proc``."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

SAMPLE_SECONDS = 0.2
"""Between two looks at the memory; a look costs a few milliseconds."""


@dataclass(frozen=True, slots=True)
class Stat:
    """What ``/proc/PID/stat`` says of one process (``man 5 proc``)."""

    parent: int
    cpu_seconds: float
    """In user and kernel mode, of all its threads."""
    rss: int
    """Resident memory in bytes."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process and its children used in some time."""

    cpu_seconds: float
    peak_rss: int
    """Bytes; pages that children share with it are counted for each."""


def parse_stat(text: str) -> Stat:
    """Read one line of ``/proc/PID/stat``; the name in it may hold spaces and brackets."""
    fields = text.rpartition(")")[2].split()
    return Stat(
        parent=int(fields[1]),
        cpu_seconds=(int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND,
        rss=int(fields[21]) * PAGE_BYTES,
    )


def all_processes() -> dict[int, Stat]:
    """Every process of this machine."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):  # it ended meanwhile
                found[int(folder.name)] = parse_stat(
                    (folder / "stat").read_text("utf-8", "replace")
                )
    return found


def family(root: int, processes: Mapping[int, Stat]) -> set[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for pid, stat in processes.items():
        children.setdefault(stat.parent, []).append(pid)
    found: set[int] = set()
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        if pid in processes and pid not in found:
            found.add(pid)
            waiting += children.get(pid, [])
    return found


def forget_peak(pid: int) -> None:
    """Let ``peak_rss`` count from now on; where that is forbidden it counts from the start."""
    with suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5", "utf-8")


def peak_rss(pid: int) -> int:
    """The most resident memory that one process had at any moment, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) * 1024
    return 0  # it has just ended


@dataclass(slots=True)
class Meter:
    """Watches some processes, by name."""

    roots: Mapping[str, int]
    samples: list[tuple[float, dict[str, int]]] = field(default_factory=list)
    """Instant on the monotonic clock, and each one's resident memory then."""
    _first: dict[int, float] = field(default_factory=dict)
    _last: dict[str, dict[int, float]] = field(default_factory=dict)
    """Name to process to its CPU seconds; one that ended keeps its last."""

    def sample(self) -> None:
        """Look at all of them once."""
        processes = all_processes()
        is_first = not self.samples
        memory = {}
        for name, root in self.roots.items():
            # This process has started the others, but they are no part of it.
            members = {root} if root == os.getpid() else family(root, processes)
            memory[name] = sum(processes[pid].rss for pid in members)
            for pid in members:
                used = processes[pid].cpu_seconds
                self._last.setdefault(name, {})[pid] = used
                if is_first:
                    self._first[pid] = used
        self.samples.append((time.monotonic(), memory))

    def usage(self) -> dict[str, Usage]:
        """What each used between the first look and the last."""
        return {
            name: Usage(
                cpu_seconds=sum(
                    used - self._first.get(pid, 0) for pid, used in self._last.get(name, {}).items()
                ),
                peak_rss=max(memory[name] for _, memory in self.samples),
            )
            for name in self.roots
        }

    def peak(self, names: Iterable[str], *, begin: float = 0, end: float = 1) -> int:
        """The highest sum of their memory at one moment, in bytes.

        ``begin`` and ``end`` choose a part of the time: 0.75 to 1 is its last quarter.
        """
        wanted = list(names)
        first, last = self.samples[0][0], self.samples[-1][0]
        since, until = (first + share * (last - first) for share in (begin, end))
        return max(
            (
                sum(memory[name] for name in wanted)
                for instant, memory in self.samples
                if since <= instant <= until
            ),
            default=0,
        )


@asynccontextmanager
async def measuring(roots: Mapping[str, int]) -> AsyncIterator[Meter]:
    """Look at the processes again and again until the block ends."""
    meter = Meter(roots)
    meter.sample()

    async def go_on() -> None:
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            meter.sample()

    watching = asyncio.create_task(go_on())
    try:
        yield meter
    finally:
        watching.cancel()
    meter.sample()
