"""Where what is fetched is kept: once for each person, not once for each copy of the project."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from tools.launcher.errors import LauncherError

PROJECT = Path(__file__).resolve().parents[2]

RUN_DIRECTORY = PROJECT / ".run"
"""Of this copy of the project: the data, unless told otherwise."""


@cache
def cache_directory() -> Path:
    """The folder for environments and programs, by the environment of this process."""
    return choose(os.environ)


def choose(environment: Mapping[str, str]) -> Path:
    """``userstream`` below ``XDG_CACHE_HOME``, or below ``~/.cache``, made if it is missing.

    Where the home cannot be written, or is another user's, ``.run`` of the project; where that
    cannot be written either, a folder of this user's own below the one for temporary files.

    Raises:
        LauncherError: None of them can be used.
    """
    for folder in _candidates(environment):
        if _is_usable(folder):
            return folder
    raise LauncherError(
        "There is no folder to keep fetched packages in: neither the home nor the project can be"
        " written. Name one with XDG_CACHE_HOME."
    )


def is_personal(folder: Path, environment: Mapping[str, str]) -> bool:
    """Whether the folder is below the person's own cache, where other tools keep theirs."""
    return folder in tuple(_personal(environment))


def _candidates(environment: Mapping[str, str]) -> Iterator[Path]:
    yield from _personal(environment)
    yield RUN_DIRECTORY
    yield Path(tempfile.gettempdir()) / f"userstream-cache-{os.geteuid()}"


def _personal(environment: Mapping[str, str]) -> Iterator[Path]:
    # A relative path is to be ignored: https://specifications.freedesktop.org/basedir-spec/
    if (named := Path(environment.get("XDG_CACHE_HOME", ""))).is_absolute():
        yield named / "userstream"
    if (home := Path(environment.get("HOME", ""))).is_absolute():
        yield home / ".cache" / "userstream"


def _is_usable(folder: Path) -> bool:
    try:
        above = next(path for path in folder.parents if path.exists())
        # Root with the home of another user, as sudo may leave it: what it made there would be
        # in the way of its owner.
        if os.geteuid() == 0 and above.stat().st_uid != 0:
            return False
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # In a folder that all can write, another user may have been there first.
        made_by = folder.stat().st_uid
        return made_by in {0, os.geteuid()} and os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        return False
