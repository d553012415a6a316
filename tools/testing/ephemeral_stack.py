"""A stack for one run: free ports, data that is removed, no address from the environment.

Benchmarks and fault-injection tests must touch nothing that a person runs.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.launcher.broker import Broker
from tools.launcher.cache import RUN_DIRECTORY, cache_directory
from tools.launcher.errors import LauncherError
from tools.launcher.invocation import Invocation
from tools.launcher.locks import take
from tools.launcher.ports import LARGEST_OFFSET, is_free, ports, require_free
from tools.launcher.postgres import Postgres
from tools.launcher.running import start_infrastructure
from tools.launcher.stack import Stack, build_stack, listening_ports
from tools.launcher.supervisor import Supervisor
from tools.launcher.terminal import Terminal

FIRST_OFFSET, OFFSET_STEP = 1000, 20
"""Where free ports are looked for; a person's own stacks begin at 0."""

ADDRESSES = frozenset(
    {
        *("QUEUE_URL", "QUEUE_MANAGEMENT_URL", "DATABASE_SERVICE_URL", "PUBLIC_URL"),
        *("SMTP_HOST", "SMTP_PORT", "SMTP_SECURE", "SMTP_USER", "SMTP_PASSWORD", "SMTP_CA_FILE"),
        *("DB_HOST", "DB_PORT", "DB_NAME", "DB_USER", "DB_PASSWORD", "DB_SSL", "DB_SSL_CA"),
        *("REGISTRATION_ID_SECRET", "REPORT_OUTPUT_DIR", "CRASH_MARKER_DIR", "BIND_ADDRESS"),
    }
)
"""What is not taken from the environment: nothing but this machine is touched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EphemeralStack:
    """A stack whose broker and database run; starting services is left to the caller."""

    stack: Stack
    broker: Broker
    postgres: Postgres
    supervisor: Supervisor

    def end(self) -> None:
        """End every process at once: none of what it does is needed any more."""
        self.supervisor.give_up()
        for part in self.supervisor.parts.values():
            running, part.running = part.running, None
            if running and part.program.name == "postgres":
                running.stop()  # in good order: it would leave its shared memory behind
            elif running:
                running.kill()


@contextmanager
def ephemeral_stack(
    kind: str,
    *,
    offset: int,
    data: Path | None,
    settings: Mapping[str, str],
    terminal: Terminal,
    supervisor: Supervisor | None = None,
) -> Iterator[EphemeralStack]:
    """Run a stack with data of its own; end it and remove the data.

    Where the caller raises, the logs stay: they say why.

    Args:
        kind: What the name of its folder begins with.
        offset: Of the ports; 0 takes the first ones that are free.
        data: Where the folder is made.
        settings: Take precedence over the environment.
        terminal: Shows the progress.
        supervisor: Starts the processes, in place of the usual one.

    Raises:
        LauncherError: Something could not be started.
    """
    offset = offset or free_offset()
    folder = make_folder(data or RUN_DIRECTORY, prefix=f"{kind}-")
    keep_logs = False
    try:
        ephemeral = _lay_out(
            offset,
            folder,
            given={**without_addresses(os.environ), **settings},
            terminal=terminal,
            supervisor=supervisor or Supervisor(terminal=terminal, on_change=lambda _: None),
        )
        try:
            start_infrastructure(ephemeral.stack, ephemeral.supervisor, terminal)
            yield ephemeral
        finally:
            ephemeral.end()
    except Exception:
        keep_logs = True
        raise
    finally:
        remove_folder(folder, keep_logs=keep_logs)
        if keep_logs:
            terminal.say(f"The logs are kept in {folder / 'logs'}")


def _lay_out(
    offset: int,
    folder: Path,
    *,
    given: Mapping[str, str],
    terminal: Terminal,
    supervisor: Supervisor,
) -> EphemeralStack:
    stack = build_stack(offset=offset, data=folder, given=given, terminal=terminal)
    if stack.broker is None or stack.postgres is None:
        raise AssertionError("no address is handed on, so both are the stack's own")
    require_free(
        listening_ports(stack.given, offset), invocation=Invocation(offset=offset, data=folder)
    )
    return EphemeralStack(
        stack=stack, broker=stack.broker, postgres=stack.postgres, supervisor=supervisor
    )


def without_addresses(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without whatever leads to another broker, database or mail server."""
    return {
        name: value
        for name, value in environment.items()
        if name.removesuffix("_FILE") not in ADDRESSES
    }


def free_offset() -> int:
    """The first offset with which every port is free, and kept for this process until it ends.

    A broker takes its ports some seconds later: without the lock, another stack that looks
    meanwhile finds the same ones.

    Raises:
        LauncherError: There is none.
    """
    taken = cache_directory() / "offsets"
    taken.mkdir(exist_ok=True)
    for offset in range(FIRST_OFFSET, LARGEST_OFFSET, OFFSET_STEP):
        if all(is_free(port) for port in ports(offset).values()) and take(taken / str(offset)):
            return offset
    raise LauncherError("There are no free ports for a stack; name some with --port-offset.")


def make_folder(parent: Path, *, prefix: str) -> Path:
    """A new folder for the data of one run.

    Raises:
        LauncherError: ``parent`` cannot be written.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    except PermissionError as error:
        raise LauncherError(
            f"{parent} cannot be written by this user. Take another folder with --data."
        ) from error


def remove_folder(folder: Path, *, keep_logs: bool) -> None:
    """Remove the data of one run; the logs stay where they say what went wrong."""
    # PostgreSQL's may be a link to where its user can go; see tools/launcher/postgres.py.
    shutil.rmtree((folder / "postgres").resolve(), ignore_errors=True)
    if not keep_logs:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for entry in folder.iterdir():
        if entry.is_symlink() or entry.is_file():
            entry.unlink()
        elif entry.name != "logs":
            shutil.rmtree(entry, ignore_errors=True)


def own_mounts() -> list[str]:
    """What to put before a command so that its mounts are its own and end with it.

    Empty where this user or this system cannot do that.
    """
    prefix = ["unshare", "--mount", "--propagation", "private"]
    if shutil.which(prefix[0]) is None:
        return []
    tried = subprocess.run([*prefix, "true"], capture_output=True, check=False)
    return prefix if tried.returncode == 0 else []
