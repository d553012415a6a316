"""Child processes: how one is described, started, watched and stopped."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tools.launcher.errors import LauncherError
from tools.launcher.logs import last_lines

GUARD = Path(__file__).with_name("exec_guard.py")

POLL_INTERVAL = 0.05
"""Seconds between two looks at something that is about to happen."""

LOG_TAIL = 15
"""Lines of a log that are shown when its program fails."""

_BRIEF_RUNS: set[subprocess.Popen[str]] = set()
"""What ``run_briefly`` waits for, in whichever thread."""

# The kernel ties a child to the *thread* that started it. All are started by this one,
# which lives as long as the process, so that it does not matter who asks.
_STARTER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="starter")


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A system user that a program runs as."""

    uid: int
    gid: int

    def __str__(self) -> str:
        return f"{self.uid}:{self.gid}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program to run: what, where, and how to tell that it serves."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    """All of it: nothing is inherited."""
    directory: Path
    """Its working directory."""
    log: Path
    """Where its output is appended to."""
    is_ready: Callable[[], bool]
    """Asks once, within about a second, without raising."""
    is_live: Callable[[], bool] | None = None
    """Asks once whether it runs, where that is less than being ready; None where it is the same."""
    waits_for: Callable[[], Mapping[str, str]] = dict
    """Asks it why it is not ready: what it waits for, each with its reason."""
    works: Callable[[], bool] | None = None
    """Asks within some seconds, without raising, whether it does its work, though it runs; one
    that does not for ``stuck_after`` is ended and started again. None where that is not asked."""
    stuck_after: float = 30
    """Seconds."""
    ready_within: float = 60
    """Seconds until a start counts as failed."""
    stop_signal: signal.Signals = signal.SIGTERM
    stop_within: float = 30
    """Seconds until a stop is forced."""
    death_signal: signal.Signals = signal.SIGKILL
    """What it receives when this process ends without having stopped it."""
    owner: Owner | None = None


@dataclass(slots=True)
class Running:
    """A program that was started."""

    program: Program
    popen: subprocess.Popen[bytes]
    since: float = field(default_factory=time.monotonic)
    """When it was started, on the monotonic clock."""
    log_begin: int = 0
    """Bytes that its log held before."""

    @property
    def pid(self) -> int:
        """Its process id, also the id of its process group."""
        return self.popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; minus the signal's number when one ended it."""
        return self.popen.poll()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it and all it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def wait_until_live(self, given_up: threading.Event | None = None) -> None:
        """Return when it runs, whatever it may be waiting for.

        Raises:
            LauncherError: It ended, or did not answer in time, or ``given_up`` was set.
        """
        self._wait(self.program.is_live or self.program.is_ready, "does not answer", given_up)

    def wait_until_ready(self, given_up: threading.Event | None = None) -> None:
        """Return when it serves.

        Raises:
            LauncherError: It ended, or did not serve in time, or ``given_up`` was set.
        """
        self._wait(self.program.is_ready, "is not ready", given_up)

    def _wait(
        self, is_reached: Callable[[], bool], late: str, given_up: threading.Event | None
    ) -> None:
        deadline = self.since + self.program.ready_within
        while not is_reached():
            if self.exit_code is not None:
                raise LauncherError(self._failure(describe_exit(self.exit_code)))
            if given_up is not None and given_up.is_set():
                raise LauncherError(f"The start of {self.program.name} was broken off.")
            if time.monotonic() > deadline:
                waits = "; ".join(
                    f"{name}: {reason}" for name, reason in self.program.waits_for().items()
                )
                seconds = f"after {self.program.ready_within:.0f} s"
                raise LauncherError(
                    self._failure(f"{late} {seconds}{f' ({waits})' if waits else ''}")
                )
            time.sleep(POLL_INTERVAL)

    def stop(self) -> None:
        """Ask it to end, and end it by force when it does not in time."""
        self.ask_to_end()
        self.wait_for_end()

    def ask_to_end(self) -> None:
        """Send its stop signal and return at once."""
        if self.exit_code is None:
            with suppress(ProcessLookupError):
                self.popen.send_signal(self.program.stop_signal)

    def wait_for_end(self) -> None:
        """Return when it has ended, by force if it does not in time."""
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(self.program.stop_within)
        self.kill()

    def kill(self) -> None:
        """End it and all it started at once, as a crash would."""
        self.send(signal.SIGKILL)
        self.popen.wait()

    def _failure(self, what: str) -> str:
        return f"{self.program.name} {what}.\n{tail(self.program.log, since=self.log_begin)}"


def start(program: Program) -> Running:
    """Start a program in a process group of its own, tied to the life of this process."""
    program.log.parent.mkdir(parents=True, exist_ok=True)
    owner = str(program.owner) if program.owner else "-"
    guard = [sys.executable, "-I", str(GUARD), str(os.getpid())]
    argv = [*guard, str(int(program.death_signal)), owner, *program.argv]
    with program.log.open("ab") as log:
        begin = log.tell()
        popen = _STARTER.submit(
            subprocess.Popen,
            argv,
            cwd=program.directory,
            env=dict(program.environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C in the terminal is for the launcher, which stops the others in order.
            start_new_session=True,
        ).result()
    return Running(program, popen, log_begin=begin)


def describe_exit(code: int) -> str:
    """``ended with exit code 3`` or ``was ended by SIGKILL``."""
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def tail(log: Path, *, since: int = 0) -> str:
    """The last lines of a log as a person reads them, indented, below the name of the file."""
    shown = [f"    {text}" for text in last_lines(log, LOG_TAIL, since=since)] or ["    (empty)"]
    return "\n".join([f"  The end of {log}:", *shown])


def run_briefly(
    argv: list[str],
    *,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    owner: Owner | None = None,
    typed: str = "",
    timeout: float = 60,
) -> str:
    """Run a program to its end, with ``typed`` as its input, and return its output.

    Raises:
        LauncherError: It failed; with what it wrote.
    """
    identity = {"user": owner.uid, "group": owner.gid, "extra_groups": []} if owner else {}
    try:
        with subprocess.Popen(
            argv,
            env=None if environment is None else dict(environment),
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            **identity,  # type: ignore[call-overload] # the three are either all or not there
        ) as run:
            _BRIEF_RUNS.add(run)
            try:
                output, errors = run.communicate(typed, timeout)
            except BaseException:
                run.kill()
                raise
            finally:
                _BRIEF_RUNS.discard(run)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LauncherError(f"{argv[0]} could not be run: {error}") from error
    if run.returncode != 0:
        what = describe_exit(run.returncode)
        said = (errors + output).strip()
        raise LauncherError(f"{' '.join(argv[:4])} … {what}:\n{said}")
    return str(output)


def interrupt_brief_runs() -> None:
    """End what other threads run with ``run_briefly``; it raises there."""
    for run in list(_BRIEF_RUNS):
        run.kill()
