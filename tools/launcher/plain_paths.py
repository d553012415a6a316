"""Paths for programs that cannot take every path.

RabbitMQ's scripts split them at blanks, and so does the loader with ``LD_PRELOAD``.
"""

import fcntl
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tools.launcher.cache import RUN_DIRECTORY, cache_directory
from tools.launcher.errors import LauncherError

_PLAIN = re.compile(r"[A-Za-z0-9_./+,@-]+")
"""No blank, no quote, nothing that a shell, Erlang or a configuration file reads otherwise."""


def plain(path: Path) -> Path:
    """The path itself where it is plain, else a link to it that is; the same at every call.

    Raises:
        LauncherError: There is no place for the link.
    """
    if _is_plain(path):
        return path
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    for folder in _places():
        link = folder / name
        try:
            _point(link, path)
        except OSError:
            continue
        return link
    raise LauncherError(
        f"RabbitMQ cannot run below {path}: its scripts split paths at blanks and quotes, and no"
        " folder for a link without them can be written. Take another folder with --data, or name"
        " one with XDG_CACHE_HOME."
    )


def _is_plain(path: Path) -> bool:
    return _PLAIN.fullmatch(str(path)) is not None


def _places() -> Iterator[Path]:
    """Folders for links, those first that are never tidied up."""
    for folder in (cache_directory() / "links", RUN_DIRECTORY / "links"):
        if _is_plain(folder):
            yield folder
    yield from (
        _kept(Path(parent) / f"userstream-links-{os.geteuid()}")
        for parent in (tempfile.gettempdir(), "/var/tmp")  # noqa: S108 - owner checked in _point
        if _is_plain(Path(parent))
    )


def _kept(folder: Path) -> Path:
    """The folder, locked until this process ends: systemd-tmpfiles leaves what is locked."""
    folder.mkdir(exist_ok=True, mode=0o700)
    fcntl.flock(os.open(folder, os.O_RDONLY | os.O_CLOEXEC), fcntl.LOCK_SH)
    return folder


def _point(link: Path, target: Path) -> None:
    """Make the link, in one step, in a folder that no other user can change."""
    link.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if link.parent.stat().st_uid != os.geteuid():
        raise PermissionError(link.parent)
    if link.is_symlink() and link.readlink() == target:
        return
    fresh = link.with_name(f"{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)
