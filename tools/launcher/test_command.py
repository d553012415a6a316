"""``check`` and ``test``: everything that must hold, from the linter to the browser."""

import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from itertools import takewhile

from tools.launcher.cache import PROJECT
from tools.launcher.environment import ensure_environment
from tools.launcher.errors import LauncherError
from tools.launcher.processes import run_briefly
from tools.launcher.terminal import Terminal

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
"""Names under which a browser may be on the path."""

INSTALL_CHROMIUM = ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]

STATIC_CHECKS = {
    "lint": ("ruff", "check", "."),
    "format": ("ruff", "format", "--check", "."),
    "types": ("mypy", "."),
    "dependencies": ("deptry", "."),
}
"""What is checked without running anything of the project."""

TWO_WORKERS = ("-n", "2")
"""One per core of a small machine."""

CONTRACTS = ("pytest", "-q", *TWO_WORKERS, "tests/contract", "tests/unit/test_architecture.py")
"""Docs, words, lock files, compose file, layers: what must agree with the code."""

CHECKS = {**STATIC_CHECKS, "texts": CONTRACTS}
"""By the names that ``check`` takes."""

REPEAT_AFTER_TIMEOUT = ("--reruns", "1", "--only-rerun", "pytest-timeout")
"""A machine may stand still; everything else fails at once."""

BY_FILE = ("--dist", "loadfile", "--no-loadscope-reorder")
"""A file stays on one worker, which shares what its fixtures have started. The order is that of
``tests/conftest.py``, the longest files first; xdist's own begins with those of most tests."""

ALL_TESTS = (*TWO_WORKERS, *BY_FILE, *REPEAT_AFTER_TIMEOUT)
"""Every test."""

UNUSED = ("-p", "no:schemathesis", "-p", "no:rerunfailures", "-p", "no:anyio")
"""Plugins that no unit test uses: they take a second of each worker, and some of each test."""

UNIT_TESTS = (*TWO_WORKERS, "--dist", "worksteal", *UNUSED, "-m", "not slow", "tests/unit")
"""What needs no broker and no database, starts no process and does not wait."""

COVERAGE = ("--cov", "--cov-report=term:skip-covered", "--cov-report=xml")
"""Of branches, in what ``pyproject.toml`` names; the summary, and ``coverage.xml`` for programs."""

OWN_OPTIONS = {"--unit": UNIT_TESTS, "--coverage": COVERAGE}
"""Options of ``test`` that stand for several of pytest's."""

HELP = frozenset({"-h", "--help", "--version", "-V"})

OWN_HELP = """\
./userstream test                check, and run every test
./userstream test --unit         only the quick ones, without a broker or a database
./userstream test --coverage     also count which branches are run
./userstream test ARGUMENTS      only pytest, with these; --unit and --coverage may precede them

What pytest takes:
"""


def check(names: Sequence[str], terminal: Terminal) -> int:
    """Run the named checks, or all of them; return 0 if they passed."""
    chosen = {name: CHECKS[name] for name in names or CHECKS}
    return _run_each(chosen, _variables(terminal), terminal)


def run(arguments: list[str], terminal: Terminal) -> int:
    """Run pytest, after all static checks if there are no arguments.

    Returns:
        0 if everything passed.
    """
    variables = _variables(terminal)
    if HELP.intersection(arguments):  # nothing is to be tested
        print(OWN_HELP, flush=True)
        return _call(["pytest", *arguments], variables)
    own = list(takewhile(OWN_OPTIONS.__contains__, arguments))
    options = arguments[len(own) :]
    chosen = [argument for option in own for argument in OWN_OPTIONS[option]]
    if "--unit" not in own:
        _provide_browser(terminal)
        chosen += () if options else ALL_TESTS
    failed = 0 if arguments else _run_each(STATIC_CHECKS, variables, terminal)
    terminal.heading("\npytest")
    return _call(["pytest", *chosen, *options], variables) or failed


def _variables(terminal: Terminal) -> dict[str, str]:
    """What the programs of the checks get: their own environment first on the path."""
    environment = ensure_environment("test", terminal)
    variables = {**os.environ, "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    variables.pop("PYTHONPATH", None)
    # Without compiled files each run would compile everything anew, in every worker.
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    variables["PYTHONUTF8"] = "1"  # whatever the locale: files of the project are UTF-8
    if os.environ.get("CI") == "true":
        variables["USERSTREAM_REQUIRE_BROWSER"] = "1"
    return variables


def _run_each(
    checks: Mapping[str, Sequence[str]], variables: dict[str, str], terminal: Terminal
) -> int:
    """Run all of them, whatever fails; then list each with its result and duration."""
    results = {}
    for name, command in checks.items():
        terminal.heading(f"\n{name}: {' '.join(command)}")
        began = time.monotonic()
        results[name] = (_call(command, variables), time.monotonic() - began)
    terminal.say()
    for name, (code, seconds) in results.items():
        if code == 0:
            terminal.done(name, seconds)
        else:
            terminal.fail(f"{name} found something; see above")
    return int(any(code for code, _ in results.values()))


def _call(command: Sequence[str], variables: dict[str, str]) -> int:
    return subprocess.run(command, cwd=PROJECT, env=variables, check=False).returncode


def run_compose(terminal: Terminal) -> int:
    """Run the compose file on a container engine, and return 0 if all went as promised.

    Where there is no engine, the tests are skipped and say why.
    """
    environment = ensure_environment("test", terminal)
    variables = {**os.environ, "USERSTREAM_COMPOSE": "1", "PYTHONUTF8": "1"}
    variables.pop("PYTHONPATH", None)
    arguments = ("--verbose", "-rs", "-n", "0", "tests/compose")
    command = [str(environment / "bin" / "pytest"), *arguments]
    return subprocess.run(command, cwd=PROJECT, env=variables, check=False).returncode


def _provide_browser(terminal: Terminal) -> None:
    """Install Chromium where that is allowed, else say how; the tests skip without it."""
    if any(shutil.which(name) for name in CHROMIUM):
        return
    command = ["sudo", *INSTALL_CHROMIUM]
    if shutil.which("apt-get") and (os.geteuid() == 0 or _sudo_asks_nothing()):
        with terminal.step("Installing Chromium for the tests of the pages"):
            _install(INSTALL_CHROMIUM if os.geteuid() == 0 else command)
    else:
        terminal.say(f"The tests of the pages need Chromium. Type: {' '.join(command)}")


def _sudo_asks_nothing() -> bool:
    if not shutil.which("sudo"):
        return False
    try:
        run_briefly(["sudo", "-n", "true"])
    except LauncherError:
        return False
    return True


def _install(command: list[str]) -> None:
    prefix = command[: command.index("apt-get")]
    variables = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run_briefly([*prefix, "apt-get", "update"], timeout=600)
    run_briefly(command, environment=variables, timeout=1800)
