"""``test``: everything that must hold, from the linter to the browser."""

import os
import shutil
import subprocess

from tools.launcher.cache import PROJECT
from tools.launcher.environment import ensure_environment
from tools.launcher.errors import LauncherError
from tools.launcher.processes import run_briefly
from tools.launcher.terminal import Terminal

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
"""Names under which a browser may be on the path."""

INSTALL_CHROMIUM = ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]

STATIC_CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy", "."),
)

ALL_TESTS = ("-n", "2", "--dist", "loadfile")
"""What pytest gets when the person gives no arguments: one worker per core of a small machine.

A file stays on one worker, so that each starts its own broker and database only once.
"""

HELP = frozenset({"-h", "--help", "--version", "-V"})


def run(pytest_arguments: list[str], terminal: Terminal) -> int:
    """Run all checks, pytest last, and return 0 if all of them passed."""
    environment = ensure_environment("test", terminal)
    variables = {**os.environ, "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    variables.pop("PYTHONPATH", None)
    variables["PYTHONUTF8"] = "1"  # whatever the locale: files of the project are UTF-8
    if os.environ.get("CI") == "true":
        variables["USERSTREAM_REQUIRE_BROWSER"] = "1"
    if HELP.intersection(pytest_arguments):  # nothing is to be tested
        command = ["pytest", *pytest_arguments]
        return subprocess.run(command, cwd=PROJECT, env=variables, check=False).returncode
    _provide_browser(terminal)
    failed = []
    for check in STATIC_CHECKS:
        terminal.heading(f"\n{' '.join(check)}")
        if subprocess.run(check, cwd=PROJECT, env=variables, check=False).returncode != 0:
            failed.append(" ".join(check))
    for name in failed:
        terminal.fail(f"{name} found something; see above")
    terminal.heading("\npytest")
    arguments = pytest_arguments or list(ALL_TESTS)
    tests = subprocess.run(["pytest", *arguments], cwd=PROJECT, env=variables, check=False)
    return tests.returncode or int(bool(failed))


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
