"""Speaks to the person who started it: progress, results, errors."""

import codecs
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TextIO

STAMP = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ")
"""What stands before the text in a log."""

BEGUN = "  … "
"""What a line begins with that tells of a step that has only begun."""

_SUBSTITUTES = {"✓": "+", "✗": "x", "…": "...", "–": "-", "—": "-", "×": "x", "“": '"', "”": '"'}
"""For terminals whose encoding lacks them; everything else becomes a question mark."""

_ERASE_LINE = "\r\033[K"


def _substitute(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_SUBSTITUTES.get(character, "?") for character in lacking), error.end


codecs.register_error("userstream.substitute", _substitute)


def write_in_any_encoding() -> None:
    """Make stdout and stderr take every character, whatever the locale is."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="userstream.substitute")


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def printable(text: str) -> str:
    """The text without what would move the cursor: it may come from anybody."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


@dataclass(frozen=True, slots=True)
class Terminal:
    """Where progress goes: one line for each step when it is done."""

    stream: TextIO
    is_log: bool = False
    """Whether it is a file that others follow: a step has a line when it begins, too, and every
    line begins with its time."""
    _steps: list[str] = field(default_factory=list, init=False, compare=False)
    """Those that are under way."""
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False, compare=False)

    @property
    def colourful(self) -> bool:
        """Whether escape sequences are welcome (https://no-color.org)."""
        return self.stream.isatty() and not os.environ.get("NO_COLOR")

    def say(self, text: str = "") -> None:
        """Print a line at once. A reader that went away is no reason to fail."""
        with self._lock:
            stamp = f"{_now()} " if self.is_log else ""
            self._write("".join(f"{self._erase}{stamp}{line}\n" for line in text.split("\n")))
            self._show_steps()

    def note(self, text: str) -> None:
        """Print what just happened, with the time."""
        self.say(text if self.is_log else f"{_now()} {text}")

    def transient(self, text: str) -> None:
        """Show what is going on where a terminal can take it back; the next line replaces it."""
        if self._redraws:
            with self._lock:
                self._write(f"{_ERASE_LINE}{text[: shutil.get_terminal_size().columns - 1]}")

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Say when it is done, and how long it took; steps may run side by side."""
        begun = time.monotonic()
        with self._lock:
            self._steps.append(text)
            if self.is_log:
                self.say(f"{BEGUN}{text}")
            self._show_steps()
        try:
            yield
        except BaseException:
            self._end(text)
            raise
        self._end(text)
        self.done(text, time.monotonic() - begun)

    def done(self, text: str, seconds: float) -> None:
        """Say that something is done."""
        mark = "\033[32m✓\033[0m" if self.colourful else "✓"
        self.say(f"  {mark} {text} ({seconds:.1f} s)")

    def fail(self, text: str) -> None:
        """Print an error."""
        mark = "\033[31m✗\033[0m" if self.colourful else "✗"
        self.say(f"{mark} {text}")

    def heading(self, text: str) -> None:
        """Print a line that stands out."""
        self.say(f"\033[1m{text}\033[0m" if self.colourful else text)

    @property
    def _redraws(self) -> bool:
        return self.stream.isatty() and os.environ.get("TERM") != "dumb"

    @property
    def _erase(self) -> str:
        return _ERASE_LINE if self._redraws else ""

    def _end(self, text: str) -> None:
        with self._lock:
            self._steps.remove(text)
            self._write(self._erase)

    def _show_steps(self) -> None:
        if self._steps:
            self.transient(BEGUN + ", ".join(self._steps))

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except BrokenPipeError:
            discard(self.stream)


def discard(stream: TextIO) -> None:
    """Let what is written from now on go nowhere: its reader has gone."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, stream.fileno())
    os.close(devnull)


STDERR = Terminal(sys.stderr)
