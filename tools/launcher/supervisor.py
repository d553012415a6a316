"""Starts all parts, starts again what dies, and stops them in order."""

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from tools.launcher.errors import LauncherError
from tools.launcher.logs import keep_bounded
from tools.launcher.processes import Program, Running, describe_exit, start
from tools.launcher.stack import STOP_ORDER
from tools.launcher.terminal import Terminal

FIRST_PAUSE = 0.2
"""Seconds before a part that died is started again; doubled each time it dies again."""

LONGEST_PAUSE = 30.0
"""Seconds."""

PROVEN_AFTER = 60.0
"""Seconds a part must run for its next crash to count as the first."""

WATCH_INTERVAL = 0.1
"""Seconds between two looks at the parts."""

WORK_INTERVAL = 5.0
"""Seconds between two questions whether a part does its work."""

MOST_DOUBLINGS = 5
"""Of the limit for a part that does not work even after it was started again."""

LOG_INTERVAL = 10.0
"""Seconds between two looks at the sizes of their logs."""


def pause_before_restart(crashes: int) -> float:
    """Seconds to wait after the given number of crashes in a row."""
    return min(FIRST_PAUSE * 2.0 ** min(crashes - 1, 16), LONGEST_PAUSE)


@dataclass(slots=True)
class Part:
    """A program that is kept running."""

    program: Program
    running: Running | None = None
    restarts: int = 0
    """Times it was started again."""
    crashes: int = 0
    """Crashes in a row."""
    start_at: float = 0.0
    """When it is started again, on the monotonic clock; meaningless while it runs."""

    def note_exit(self, now: float) -> str | None:
        """If it died since the last look: plan its start and say what happened."""
        if self.running is None or (code := self.running.exit_code) is None:
            return None
        lived = now - self.running.since
        self.running.kill()  # what it may have left behind
        self.running = None
        self.crashes = 1 if lived >= PROVEN_AFTER else self.crashes + 1
        pause = pause_before_restart(self.crashes)
        self.start_at = now + pause
        return (
            f"{self.program.name} {describe_exit(code)} after {lived:.1f} s;"
            f" starting it again in {pause:.1f} s. Its log: {self.program.log}"
        )

    question: Future[bool] | None = None
    """Whether it works; under way."""
    ask_at: float = 0.0
    """When it is asked next."""
    failing_since: float | None = None
    """When it was found not to work for the first time in a row."""
    stuck: int = 0
    """Times in a row that it was ended because it did not work."""

    def note_work(self, now: float, ask: Callable[[Callable[[], bool]], "Future[bool]"]) -> bool:
        """Ask now and then whether it works; True if it has not for too long.

        The limit doubles with each restart that did not help.
        """
        if self.running is None or (works := self.program.works) is None:
            self.question = self.failing_since = None
            return False
        if self.question is None:
            if now >= self.ask_at:
                self.question = ask(works)
            return False
        if not self.question.done():
            return False
        worked, self.question = self.question.result(), None
        self.ask_at = now + WORK_INTERVAL
        if worked:
            self.failing_since, self.stuck = None, 0
            return False
        if self.failing_since is None:
            self.failing_since = now
        limit = self.program.stuck_after * 2.0 ** min(self.stuck, MOST_DOUBLINGS)
        return now - self.failing_since >= limit

    def end_stuck(self, now: float) -> str:
        """End it, to be started again as if it had died, and say why."""
        since = now - (self.failing_since or now)
        self.stuck += 1
        self.failing_since = None
        if self.running:
            self.running.kill()
        return f"{self.program.name} runs, but has not worked for {since:.0f} s: it is ended."

    def is_due(self, now: float) -> bool:
        """Whether it is down and its pause is over."""
        return self.running is None and now >= self.start_at


class Supervisor:
    """Owns the processes of one stack."""

    def __init__(self, *, terminal: Terminal, on_change: Callable[["Supervisor"], None]) -> None:
        self.parts: dict[str, Part] = {}
        self._terminal = terminal
        self._on_change = on_change
        self._lock = threading.RLock()
        self._given_up = threading.Event()
        self._logs_due = 0.0
        self._asking = ThreadPoolExecutor(thread_name_prefix="asking")

    def start(self, programs: Iterable[Program], *, until_live: bool = False) -> None:
        """Start the programs at the same time and return when all are ready.

        With ``until_live``, when all run, whatever they may be waiting for. Threads may start
        different programs at the same time.

        Raises:
            LauncherError: One did not become ready; the others go on until ``stop``.
        """
        fresh = [Part(program) for program in programs]
        with self._lock:
            if self._given_up.is_set():
                raise LauncherError("The start was aborted.")
            for part in fresh:
                self.parts[part.program.name] = part
                part.running = start(part.program)
            self._on_change(self)
        for part in fresh:
            if (running := part.running) is None:
                continue
            with self._terminal.step(f"Starting {part.program.name}"):
                if until_live:
                    running.wait_until_live(self._given_up)
                else:
                    running.wait_until_ready(self._given_up)

    def give_up(self) -> None:
        """Start nothing more, and end every wait for something to become ready."""
        self._given_up.set()

    def watch(self) -> None:
        """Keep all parts running; ends only by an exception, such as KeyboardInterrupt."""
        while True:
            self.look(time.monotonic())
            self._bound_logs(time.monotonic())
            time.sleep(WATCH_INTERVAL)

    def look(self, now: float) -> None:
        """Note who died, and start again who is due."""
        changed = False
        for part in self.parts.values():
            if said := part.note_exit(now):
                self.log(said)
                changed = True
            elif part.note_work(now, self._asking.submit):
                self.log(part.end_stuck(now))
            elif part.is_due(now):
                part.running = start(part.program)
                part.restarts += 1
                self.log(f"{part.program.name} was started again (pid {part.running.pid}).")
                changed = True
        if changed:
            self._on_change(self)

    def stop(self) -> None:
        """Stop everything, those first that others need least."""
        for names in STOP_ORDER:
            together = [
                part.running for name in names if (part := self.parts.get(name)) and part.running
            ]
            if not together:
                continue
            with self._terminal.step(f"Stopping {', '.join(r.program.name for r in together)}"):
                # All are asked first: each may take its time to finish what it has in flight.
                for running in together:
                    running.ask_to_end()
                for running in together:
                    running.wait_for_end()

    def _bound_logs(self, now: float) -> None:
        if now >= self._logs_due:
            self._logs_due = now + LOG_INTERVAL
            for folder in {part.program.log.parent for part in self.parts.values()}:
                keep_bounded(folder)

    def kill(self) -> None:
        """End everything at once."""
        for part in self.parts.values():
            if part.running:
                part.running.kill()

    def log(self, text: str) -> None:
        """Say what happened, with the time."""
        self._terminal.note(text)
