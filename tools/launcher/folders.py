"""The folder that a stack keeps everything in: closed to every other user of the machine."""

import os
import stat
from pathlib import Path

from tools.launcher.errors import LauncherError

OWN = ("secrets", "logs", "mailbox", "rabbitmq", "reports", "notes")
"""What lies in it. PostgreSQL closes its own folder, and as root that belongs to another user."""

PRIVATE_UMASK = 0o077


def open_data(data: Path) -> None:
    """Make the folder, or close one of an earlier start to others.

    A folder that holds other things as well stays as it is: only what is ours in it is closed.

    Raises:
        LauncherError: It cannot be written.
    """
    try:
        fresh = not data.exists()
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        if fresh or _is_ours_alone(data):
            data.chmod(0o700)
        for name in OWN:
            if (data / name).is_dir():
                (data / name).chmod(0o700)
        (data / "secrets").mkdir(exist_ok=True, mode=0o700)
    except PermissionError as error:
        raise LauncherError(
            f"{error.filename} cannot be written by this user. Take another folder with --data,"
            " or change its owner."
        ) from error


def _is_ours_alone(data: Path) -> bool:
    """Whether it holds no other user's files, as they would be in /tmp or a home."""
    known = {*OWN, "postgres", "postgres.link", "lock", "state.json", "state.new"}
    entries = {entry.name for entry in data.iterdir()}
    ours = entries <= known and not data.stat().st_mode & stat.S_ISVTX
    return ours and data.stat().st_uid == os.geteuid()
