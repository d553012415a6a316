"""How much memory this machine, or the container that this runs in, has."""

import os
from pathlib import Path

ROOT = Path("/")

OWN_GROUP = "proc/self/cgroup"

LIMITS = (
    ("sys/fs/cgroup", "memory.max"),  # cgroup v2
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes"),  # v1
)
"""Where the kernel keeps a limit: the folder of all groups, and the file in a group's."""


def available_memory() -> int:
    """Bytes: what the machine has, or less where a container or a service is given less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_limits()])


def _limits() -> list[int]:
    """The limits of our own control group and of those above it."""
    try:
        lines = (ROOT / OWN_GROUP).read_text("utf-8").splitlines()
    except OSError:  # not Linux
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        folder, file = LIMITS[bool(controllers)]
        # In a container the path may be the host's; its own group is the top of what it sees.
        group = Path(path.lstrip("/"))
        for above in (group, *group.parents):
            found += _number(ROOT / folder / above / file)
    return found


def _number(file: Path) -> list[int]:
    try:
        return [int(file.read_text("utf-8"))]
    except (OSError, ValueError):  # no such group here, or "max"
        return []
