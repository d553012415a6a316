"""``test-versions``: the tests of what depends on versions, on those that others have.

A Debian release brings its RabbitMQ, its PostgreSQL and its Python, in a folder of its own
(a chroot); a number such as ``3.12`` means that Python, with what else this machine has.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tools.launcher.cache import PROJECT, RUN_DIRECTORY
from tools.launcher.environment import ensure_environment
from tools.launcher.errors import LauncherError
from tools.launcher.processes import run_briefly
from tools.launcher.rabbitmq_programs import installed
from tools.launcher.terminal import Terminal

RELEASES = {"bookworm": "3.11", "trixie": "3.13", "sid": "3.14"}
"""Debian release to the Python it had when this was written; RabbitMQ 3.10, 4.0 and 4.3."""

PYTHONS = ("3.11", "3.12", "3.13", "3.14")

PACKAGES = ("rabbitmq-server", "postgresql", "python3", "python3-pip", "ca-certificates")

TESTS = (
    "tests/unit/common/contracts/test_rights.py",
    "tests/integration/messaging",
    "tests/integration/launcher",
    "tests/integration/test_broker_check.py",
)
"""What is run unless told otherwise."""

FROM_OUTSIDE = ("etc/hosts", "etc/resolv.conf", "etc/pip.conf", "etc/xdg/pip")
"""Files and folders of this machine that programs in a chroot need to find packages."""

CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"

KEPT_VARIABLES = ("LANG", "TERM", "http_proxy", "https_proxy", "no_proxy")
"""Of the environment; variables of the tests' own are kept as well."""

FETCH_TIMEOUT = 1800
"""Seconds for some 200 MB of packages."""

NEEDS_ROOT = (
    "Another Debian release runs in a chroot, which takes root on Linux, and debootstrap"
    " (apt-get install debootstrap). Without: USERSTREAM_TEST_AMQP_URL names a broker of your own;"
    " see CONTRIBUTING.md."
)


def add_arguments(command: argparse.ArgumentParser, _options: argparse.ArgumentParser) -> None:
    """Add what ``./userstream test-versions`` can be told."""
    command.add_argument(
        "versions",
        nargs="*",
        metavar="VERSION",
        help="bookworm, trixie or sid (that Debian with its RabbitMQ and Python; as root), a folder"
        " that holds an installed system, or a Python such as 3.12; without it all that can be"
        " had here",
    )
    command.add_argument(
        "--pytest",
        nargs=argparse.REMAINDER,
        default=[],
        help="what follows goes to pytest, instead of the tests that depend on versions",
    )


def run(names: Sequence[str], pytest_arguments: Sequence[str], terminal: Terminal) -> int:
    """Run the tests on each; return 0 if they passed everywhere.

    Args:
        names: Debian releases, folders that hold an installed system, versions of Python. Empty:
            every release where this user may make them, and every Python that is here.
        pytest_arguments: Instead of ``TESTS``.
        terminal: Where to say what happens.
    """
    prepared = {name: _prepare(name, terminal) for name in names or _all()}
    results = {}
    for name, start in prepared.items():
        terminal.heading(f"\n{name}")
        begun = time.monotonic()
        passed = start([*(pytest_arguments or TESTS)]) == 0
        results[name] = (passed, time.monotonic() - begun)
    terminal.say("")
    for name, (passed, seconds) in results.items():
        terminal.say(f"  {'✓' if passed else '✗'} {name} ({seconds:.0f} s)")
    return int(not all(passed for passed, _ in results.values()))


Start = Callable[[list[str]], int]
"""Runs pytest with these arguments and returns its exit code."""


def _all() -> list[str]:
    releases = list(RELEASES) if os.geteuid() == 0 and shutil.which("debootstrap") else []
    here = [number for number in PYTHONS if _python(number)]
    return [*releases, *(number for number in here if number not in RELEASES.values())] or here


def _prepare(name: str, terminal: Terminal) -> Start:
    if name in PYTHONS:
        if (python := _python(name)) is None:
            raise LauncherError(f"There is no python{name} on this machine.")
        return lambda arguments: _test(python, arguments)
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        raise LauncherError(NEEDS_ROOT)
    root = Path(name) if "/" in name else _release(name, terminal)
    if not (root / "usr/bin/python3").exists():
        raise LauncherError(f"{root} holds no system with a Python.")
    return lambda arguments: _test_in(root.resolve(), arguments)


def _python(number: str) -> str | None:
    """A Python of this version that works: a shim of one that is not active does not."""
    found = shutil.which(f"python{number}")
    try:
        return found and run_briefly([found, "-c", "import sys; print(sys.executable)"]).strip()
    except LauncherError:
        return None


def _release(name: str, terminal: Terminal) -> Path:
    """A folder with that Debian and our packages, made once."""
    if name not in RELEASES:
        raise LauncherError(f"{name} is no release that is known here: {', '.join(RELEASES)}.")
    root = RUN_DIRECTORY / "releases" / name
    complete = root.with_name(f"{name}.complete")
    if complete.exists():
        return root
    if shutil.which("debootstrap") is None:
        raise LauncherError(NEEDS_ROOT)
    with terminal.step(f"Fetching Debian {name}"):
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        run_briefly(["debootstrap", "--variant=minbase", name, str(root)], timeout=FETCH_TIMEOUT)
        # Packages must not start what they bring: that would listen on this machine's ports.
        policy = root / "usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n", "utf-8")
        policy.chmod(0o755)
        _bring_settings(root)
        install = "apt-get install -y -q --no-install-recommends " + " ".join(PACKAGES)
        # What is not released yet is not always up to date.
        update = "apt-get -o Acquire::Check-Valid-Until=false update -q"
        run_briefly(
            _inside(root, ["sh", "-c", f"{update} && {install}"]),
            environment={**_variables(), "DEBIAN_FRONTEND": "noninteractive"},
            timeout=FETCH_TIMEOUT,
        )
        _bring_certificates(root)
        complete.touch()
    return root


def _bring_settings(root: Path) -> None:
    for name in FROM_OUTSIDE:
        here, there = Path("/") / name, root / name
        there.parent.mkdir(parents=True, exist_ok=True)
        if here.is_dir():
            shutil.copytree(here, there, dirs_exist_ok=True)
        elif here.exists():
            shutil.copyfile(here, there)


def _bring_certificates(root: Path) -> None:
    """Let it trust whom this machine trusts, such as a company's proxy."""
    if (file := Path("/") / CERTIFICATES).exists():
        shutil.copyfile(file, root / CERTIFICATES)


def _test_in(root: Path, arguments: list[str]) -> int:
    """Run pytest in a chroot, on this copy of the project."""
    home = root / "srv/userstream"
    home.mkdir(parents=True, exist_ok=True)
    # What is installed for another Python is of no use there, and its paths differ.
    own = root / "var/cache/userstream"
    own.mkdir(parents=True, exist_ok=True)
    (PROJECT / ".run").mkdir(exist_ok=True)
    inside = ["python3", "-P", "-m", "tools.launcher.versions", *arguments]
    command = _inside(root, inside, {PROJECT: home, own: home / ".run"})
    environment = {**_variables(), "PYTHONPATH": "/srv/userstream"}
    return subprocess.run(command, env=environment, check=False).returncode


def _inside(root: Path, command: list[str], shown: dict[Path, Path] | None = None) -> list[str]:
    """The command as it is started in the chroot, with mounts that end with it."""
    binds = {Path("/dev"): root / "dev", **(shown or {})}
    steps = [
        ["mount", "-t", "proc", "proc", str(root / "proc")],
        *(["mount", "--rbind", str(source), str(place)] for source, place in binds.items()),
        ["exec", "chroot", str(root), *command],
    ]
    script = " && ".join(map(shlex.join, steps))
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]


def _variables() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.lower() in KEPT_VARIABLES
        or name in KEPT_VARIABLES
        or name.startswith("USERSTREAM_")
    }
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8", **kept}


def _test(python: str, arguments: list[str]) -> int:
    """Run pytest with another Python of this machine."""
    command = [python, "-P", "-m", "tools.launcher.versions", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.run(command, env=environment, cwd=PROJECT, check=False).returncode


def main(arguments: list[str]) -> int:
    """Run pytest with this Python, and say what it runs on."""
    terminal = Terminal(sys.stdout)
    environment = ensure_environment("test", terminal)
    terminal.say(f"Python {sys.version.split()[0]}, RabbitMQ {_rabbitmq()}")
    pytest = [str(environment / "bin" / "pytest"), "-q", *arguments]
    return subprocess.run(pytest, cwd=PROJECT, check=False).returncode


def _rabbitmq() -> str:
    if (programs := installed()) is None:
        return "as it is fetched"
    control = str(programs.scripts / "rabbitmqctl")
    try:
        environment = {"HOME": os.environ["HOME"], **programs.environment}
        return run_briefly([control, "version"], environment=environment).strip()
    except LauncherError:
        return "of unknown version"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
