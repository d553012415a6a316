"""Fetches Debian and Ubuntu packages and unpacks them in a folder: no root, nothing installed."""

import os
import shutil
import tempfile
from pathlib import Path

from tools.launcher.errors import LauncherError
from tools.launcher.processes import run_briefly

DOWNLOAD_TIMEOUT = 600
"""Seconds for one call of apt-get that uses the network."""


def is_available() -> bool:
    """Whether this system has the tools."""
    return shutil.which("apt-get") is not None and shutil.which("dpkg") is not None


def unpack(packages: list[str], target: Path) -> None:
    """Unpack the packages, and all they need that the system lacks, below ``target``.

    The folder appears when it is complete; after a crash half-way the next call starts anew.

    Raises:
        LauncherError: A package is unknown or could not be fetched.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="apt-") as scratch:
        downloads, root = Path(scratch, "downloads"), Path(scratch, "root")
        downloads.mkdir()
        root.mkdir(mode=0o755)
        options = _options(Path(scratch))
        wanted = _with_missing_dependencies(packages, options)
        run_briefly(
            ["apt-get", *options, "download", *wanted],
            directory=downloads,
            timeout=DOWNLOAD_TIMEOUT,
        )
        for archive in sorted(downloads.glob("*.deb")):
            run_briefly(["dpkg", "-x", str(archive), str(root)])
        shutil.rmtree(target, ignore_errors=True)
        root.replace(target)


def _options(scratch: Path) -> list[str]:
    """Options with which apt-get works as an ordinary user; with lists of our own if need be."""
    # Root's apt-get would hand the download to the user _apt, who cannot write here.
    options = [
        "-q",
        "-o",
        "APT::Sandbox::User=root",
        "-o",
        f"Dir::Cache={_made(scratch / 'cache')}",
    ]
    if not any(Path("/var/lib/apt/lists").glob("*Packages*")):
        lists = _made(scratch / "lists")
        options += ["-o", f"Dir::State::Lists={lists}"]
        run_briefly(["apt-get", *options, "update"], timeout=DOWNLOAD_TIMEOUT)
    return options


def _made(folder: Path) -> Path:
    (folder / "partial").mkdir(parents=True)
    (folder / "archives" / "partial").mkdir(parents=True)
    return folder


def _with_missing_dependencies(packages: list[str], options: list[str]) -> list[str]:
    """The packages and every package that apt-get would install with them."""
    environment = {**os.environ, "LC_ALL": "C"}
    simulate = ["apt-get", *options, "--simulate", "--no-install-recommends", "install"]
    try:
        plan = run_briefly([*simulate, *packages], environment=environment)
    except LauncherError as error:
        raise LauncherError(f"apt-get cannot provide {' '.join(packages)}: {error}") from error
    return sorted({*packages, *planned_packages(plan)})


def planned_packages(plan: str) -> list[str]:
    """The packages that are new to the system in what ``apt-get --simulate`` prints.

    Those it would only bring up to date stay the system's: a C library beside the one that
    started the program does not work.
    """
    steps = [line.split() for line in plan.splitlines() if line.startswith("Inst ")]
    return [step[1] for step in steps if not step[2].startswith("[")]
