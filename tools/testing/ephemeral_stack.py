"""A stack for one run alone: free ports, a folder that goes, nothing from the environment.

What measures and what breaks things need the same: to touch nothing that a person runs.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tools.launcher.cache import cache_directory
from tools.launcher.errors import LauncherError
from tools.launcher.locks import take
from tools.launcher.ports import LARGEST_OFFSET, is_free, ports

FIRST_OFFSET, OFFSET_STEP = 1000, 20
"""Where free ports are looked for; a person's own stacks begin at 0."""

ADDRESSES = frozenset(
    {
        *("QUEUE_URL", "QUEUE_MANAGEMENT_URL", "DATABASE_SERVICE_URL", "PUBLIC_URL"),
        *("SMTP_HOST", "SMTP_PORT", "SMTP_SECURE", "SMTP_USER", "SMTP_PASSWORD", "SMTP_CA_FILE"),
        *("DB_HOST", "DB_PORT", "DB_NAME", "DB_USER", "DB_PASSWORD", "DB_SSL", "DB_SSL_CA"),
        *("REGISTRATION_ID_SECRET", "REPORT_OUTPUT_DIR", "CRASH_MARKER_DIR", "BIND_ADDRESS"),
    }
)
"""What is not taken from the environment: nothing but this machine is touched."""


def without_addresses(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without whatever leads to another broker, database or mail server."""
    return {
        name: value
        for name, value in environment.items()
        if name.removesuffix("_FILE") not in ADDRESSES
    }


def free_offset() -> int:
    """The first offset with which every port is free, and kept for this process until it ends.

    A broker takes its ports some seconds later: without the lock, another stack that looks
    meanwhile finds the same ones.

    Raises:
        LauncherError: There is none.
    """
    taken = cache_directory() / "offsets"
    taken.mkdir(exist_ok=True)
    for offset in range(FIRST_OFFSET, LARGEST_OFFSET, OFFSET_STEP):
        if all(is_free(port) for port in ports(offset).values()) and take(taken / str(offset)):
            return offset
    raise LauncherError("There are no free ports for a stack; name some with --port-offset.")


def make_folder(parent: Path, *, prefix: str) -> Path:
    """A new folder for the data of one run.

    Raises:
        LauncherError: ``parent`` cannot be written.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    except PermissionError as error:
        raise LauncherError(
            f"{parent} cannot be written by this user. Take another folder with --data."
        ) from error


def remove_folder(folder: Path, *, keep_logs: bool) -> None:
    """Remove the data of one run; the logs stay where they say what went wrong."""
    # PostgreSQL's may be a link to where its user can go; see tools/launcher/postgres.py.
    shutil.rmtree((folder / "postgres").resolve(), ignore_errors=True)
    if not keep_logs:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for entry in folder.iterdir():
        if entry.is_symlink() or entry.is_file():
            entry.unlink()
        elif entry.name != "logs":
            shutil.rmtree(entry, ignore_errors=True)


def own_mounts() -> list[str]:
    """What to put before a command so that its mounts are its own and end with it.

    Empty where this user or this system cannot do that.
    """
    prefix = ["unshare", "--mount", "--propagation", "private"]
    if shutil.which(prefix[0]) is None:
        return []
    tried = subprocess.run([*prefix, "true"], capture_output=True, check=False)
    return prefix if tried.returncode == 0 else []
