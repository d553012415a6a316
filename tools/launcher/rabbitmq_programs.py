"""Finds RabbitMQ's programs on this machine, or fetches them."""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tools.launcher import apt
from tools.launcher.errors import LauncherError
from tools.launcher.locks import waiting_for
from tools.launcher.plain_paths import plain

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

DEBIAN = Path("/usr/lib/rabbitmq/bin")
"""Not /usr/sbin: the wrapper there changes to the user ``rabbitmq``."""

ERLANG_ROOT = "USERSTREAM_ERLANG_ROOT"
"""The variable in which Erlang's start scripts, fetched and rewritten, find where they are."""

HOMEBREW = (Path("/opt/homebrew"), Path("/usr/local"), Path("/home/linuxbrew/.linuxbrew"))


@dataclass(frozen=True, slots=True, kw_only=True)
class RabbitPrograms:
    """Where RabbitMQ's and Erlang's programs are, and what they need to run from there."""

    scripts: Path
    """The folder with ``rabbitmq-server`` and ``rabbitmqctl``."""
    epmd: Path
    environment: dict[str, str]


def find_or_fetch(tools: Path) -> RabbitPrograms:
    """RabbitMQ from the system, from Homebrew, or unpacked below ``tools``.

    Raises:
        LauncherError: There is none and it cannot be fetched; with the line to type.
    """
    if found := installed():
        return found
    unpacked = tools / "rabbitmq"
    relocated = unpacked / "relocated"
    with waiting_for(tools / "rabbitmq.lock"):
        if not relocated.exists():
            if not apt.is_available():
                raise LauncherError(f"RabbitMQ is not on this machine. Type: {_install_line()}")
            apt.unpack(["rabbitmq-server"], unpacked)
            _relocate_erlang(unpacked)
            relocated.touch()
    return _unpacked(plain(unpacked))


def installed() -> RabbitPrograms | None:
    """RabbitMQ as the system's package manager or Homebrew installed it, if it did."""
    for scripts in (DEBIAN, *(prefix / "sbin" for prefix in HOMEBREW)):
        path = f"{scripts}:{scripts.parent / 'bin'}:{SYSTEM_PATH}"
        epmd = shutil.which("epmd", path=path)
        if epmd and (scripts / "rabbitmq-server").exists():
            return RabbitPrograms(scripts=scripts, epmd=Path(epmd), environment={"PATH": path})
    return None


def _unpacked(root: Path) -> RabbitPrograms:
    # Not usr/lib/rabbitmq/bin: links are there, and the scripts would follow them to the folder
    # itself, away from a plain path to it.
    (scripts,) = root.glob("usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin")
    (epmd,) = root.glob("usr/lib/erlang/erts-*/bin/epmd")
    libraries = [str(folder) for folder in root.glob("usr/lib/*-linux-gnu*")]
    return RabbitPrograms(
        scripts=scripts,
        epmd=epmd,
        environment={
            ERLANG_ROOT: str(root / "usr/lib/erlang"),
            "PATH": f"{root / 'usr/bin'}:{SYSTEM_PATH}",
            "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        },
    )


def _relocate_erlang(root: Path) -> None:
    """Let Erlang's start scripts ask where they are; they hold the path as text."""
    erlang = root / "usr/lib/erlang"
    for script in [*erlang.glob("bin/*"), *erlang.glob("erts-*/bin/*")]:
        if script.name in {"erl", "start"} and not script.is_symlink():
            text = script.read_text("utf-8").replace("=/usr/lib/erlang", f'="${ERLANG_ROOT}"')
            script.write_text(text, "utf-8")


def _install_line() -> str:
    if sys.platform == "darwin":
        return "brew install rabbitmq"
    if shutil.which("dnf"):
        return "sudo dnf install rabbitmq-server"
    return "the command of your system that installs the package rabbitmq-server"
