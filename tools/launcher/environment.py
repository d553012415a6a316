"""Makes the Python environment from a lock file, with uv, on whatever the machine offers."""

import configparser
import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tools.launcher import apt
from tools.launcher.cache import PROJECT, RUN_DIRECTORY, cache_directory, is_personal
from tools.launcher.errors import LauncherError
from tools.launcher.locks import waiting_for
from tools.launcher.processes import run_briefly
from tools.launcher.terminal import Terminal

REQUIREMENTS = PROJECT / "requirements"

INSTALL_TIMEOUT = 1800
"""Seconds; a slow connection needs a while for 150 MB."""

ADVICE = """
The Python packages could not be installed. They come from where pip is configured to look,
or from pypi.org: is it reachable from here? A mirror is named with UV_DEFAULT_INDEX, or with
index-url in pip's configuration. Nothing half-done is left; just start again."""

PIP_TO_UV = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
}
"""uv does not read pip's configuration: where this machine says packages come from."""


def ensure_environment(name: str, terminal: Terminal) -> Path:
    """The environment of ``requirements/<name>.lock``, made if it is not there yet.

    Its folder is named by what it is made of, so a changed lock makes a new one and never
    touches one that is in use, and all copies of the project share it; ``.run/python/`` has a
    link to it. Two launchers may ask at once; the second waits.

    Raises:
        LauncherError: It could not be made.
    """
    lock = REQUIREMENTS / f"{name}.lock"
    target = cache_directory() / "python" / f"{name}-{_fingerprint(lock)}"
    complete = target / "complete"
    if complete.exists():
        return _linked(target)
    with waiting_for(target.with_suffix(".lock")):
        if not complete.exists():
            with terminal.step(f"Installing the packages of requirements/{name}.lock"):
                shutil.rmtree(target, ignore_errors=True)
                try:
                    _install(lock, target, tools_directory())
                except LauncherError as error:
                    raise LauncherError(f"{error}\n{ADVICE}") from error
                complete.touch()
    return _linked(target)


def tools_directory() -> Path:
    """Where fetched programs are kept."""
    return cache_directory() / "tools"


def _linked(target: Path) -> Path:
    """The environment, with a link to it in this copy of the project, for people and editors."""
    link = RUN_DIRECTORY / "python" / target.name
    if link.parent != target.parent:
        with suppress(OSError):  # the project may be read-only, or another launcher was faster
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_dir():
                link.unlink(missing_ok=True)
                link.symlink_to(target)
    return target


def _fingerprint(lock: Path) -> str:
    made_of = lock.read_bytes() + f"{sys.executable} {sys.version} {platform.machine()}".encode()
    return hashlib.sha256(made_of).hexdigest()[:12]


def _install(lock: Path, target: Path, tools: Path) -> None:
    run_briefly(
        [_uv(tools), "venv", "-q", "--python", sys.executable, str(target)],
        environment=_uv_environment(),
    )
    install_packages(lock, [], tools, python=str(target / "bin" / "python"))


def install_packages(
    lock: Path, options: list[str], tools: Path, *, python: str = sys.executable
) -> None:
    """Install what a lock file names, with uv or else with pip.

    Args:
        lock: The file.
        options: More of what ``install`` takes; both know ``--target`` and ``--no-deps``.
        tools: Where uv is kept.
        python: For which Python, and into its environment unless ``options`` say where.

    Raises:
        LauncherError: Neither could.
    """
    install = ["install", "--require-hashes", "-r", str(lock), *options]
    try:
        run_briefly(
            [_uv(tools), "pip", *install, "-q", "--python", python],
            environment=_uv_environment(),
            timeout=INSTALL_TIMEOUT,
        )
    except LauncherError as error:
        try:  # An index, a proxy or a certificate may be usable for pip alone.
            _pip(["--python", python, *install, "-q"], tools)
        except LauncherError as again:
            raise LauncherError(f"{error}\n\nand with pip:\n{again}") from again


def _uv_environment() -> dict[str, str]:
    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never", **_indexes()}
    if not is_personal(cache_directory(), os.environ):  # nor could uv write to its own
        environment.setdefault("UV_CACHE_DIR", str(cache_directory() / "uv"))
    environment.pop("VIRTUAL_ENV", None)
    return environment


def _uv(tools: Path) -> str:
    """The machine's uv if it works, else one fetched into the run directory with pip."""
    if found := shutil.which("uv"):
        try:
            run_briefly([found, "--version"])
        except LauncherError:
            pass  # a shim of a Python version that is not active, for example
        else:
            return found
    folder = tools / f"uv-{_fingerprint(REQUIREMENTS / 'uv.lock')}"
    complete = folder / "complete"
    with waiting_for(folder.with_suffix(".lock")):
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            lock = str(REQUIREMENTS / "uv.lock")
            _pip(["install", "-q", "--require-hashes", "--target", str(folder), "-r", lock], tools)
            complete.touch()
    return str(folder / "bin" / "uv")


def _pip(arguments: list[str], tools: Path) -> None:
    """Run pip: this Python's, or the one that Debian keeps for making environments."""
    environment = {
        **os.environ,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
    }
    try:
        run_briefly([sys.executable, "-m", "pip", "--version"])
    except LauncherError:
        environment["PYTHONPATH"] = str(_pip_wheel(tools))
    run_briefly(
        [sys.executable, "-m", "pip", *arguments], environment=environment, timeout=INSTALL_TIMEOUT
    )


def _pip_wheel(tools: Path) -> Path:
    bundled = "share/python-wheels"
    for folder in (Path("/usr") / bundled, tools / "pip" / "usr" / bundled):
        if wheels := sorted(folder.glob("pip-*.whl")):
            return wheels[-1]
    if not apt.is_available():
        raise LauncherError(
            "This Python has no pip, and without it nothing can be installed. Install uv or pip"
            f" for {sys.executable} and start again."
        )
    with waiting_for(tools / "pip.lock"):
        if not (tools / "pip").exists():
            apt.unpack(["python3-pip-whl"], tools / "pip")
    if not any((tools / "pip" / "usr" / bundled).glob("pip-*.whl")):
        raise LauncherError("Debian's package python3-pip-whl holds no pip; install python3-pip.")
    return _pip_wheel(tools)


def _indexes() -> dict[str, str]:
    """Settings for uv that say what pip's configuration says, unless uv has its own."""
    if any(name.startswith("UV_") and "INDEX" in name for name in os.environ):
        return {}
    settings = uv_settings(pip_configuration(os.environ))
    return {name: value for name, value in settings.items() if name not in os.environ}


def uv_settings(pip: Mapping[str, str]) -> dict[str, str]:
    """Pip's configuration in uv's words."""
    settings = {PIP_TO_UV[key]: " ".join(pip[key].split()) for key in PIP_TO_UV if key in pip}
    if "UV_FIND_LINKS" in settings:
        settings["UV_FIND_LINKS"] = settings["UV_FIND_LINKS"].replace(" ", ",")
    if "UV_INDEX" in settings:
        # pip looks at all indexes alike; the lock's hashes make that safe.
        settings["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return settings


def pip_configuration(environment: Mapping[str, str]) -> dict[str, str]:
    """What pip's configuration files and variables say, the more specific ones last.

    https://pip.pypa.io/en/stable/topics/configuration/
    """
    home = Path(environment.get("HOME", "/nonexistent"))
    xdg = Path(environment.get("XDG_CONFIG_HOME", str(home / ".config")))
    files = [
        Path("/etc/xdg/pip/pip.conf"),
        Path("/etc/pip.conf"),
        home / "Library/Application Support/pip/pip.conf",
        home / ".pip/pip.conf",
        xdg / "pip/pip.conf",
        Path(environment.get("PIP_CONFIG_FILE", "/nonexistent")),
    ]
    parser = configparser.RawConfigParser(strict=False)
    parser.read(files, encoding="utf-8")
    found: dict[str, str] = {}
    for section in ("global", "install"):
        if parser.has_section(section):
            found |= dict(parser.items(section))
    for key in PIP_TO_UV:
        if value := environment.get(f"PIP_{key.upper().replace('-', '_')}"):
            found[key] = value
    return found
