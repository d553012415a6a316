"""Speaks to the person who started it: progress, results, errors."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO


@dataclass(frozen=True, slots=True)
class Terminal:
    """Where progress goes; plain lines unless it is a terminal."""

    stream: TextIO

    @property
    def colourful(self) -> bool:
        """Whether escape sequences are welcome (https://no-color.org)."""
        return self.stream.isatty() and not os.environ.get("NO_COLOR")

    def say(self, text: str = "") -> None:
        """Print a line at once. A reader that went away is no reason to fail."""
        try:
            print(text, file=self.stream, flush=True)
        except BrokenPipeError:
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, self.stream.fileno())
            os.close(devnull)

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Say what begins, and when it is done, how long it took."""
        begun = time.monotonic()
        self.say(f"  … {text}")
        yield
        mark = "\033[32m✓\033[0m" if self.colourful else "✓"
        self.say(f"  {mark} {text} ({time.monotonic() - begun:.1f} s)")

    def fail(self, text: str) -> None:
        """Print an error."""
        mark = "\033[31m✗\033[0m" if self.colourful else "✗"
        self.say(f"{mark} {text}")

    def heading(self, text: str) -> None:
        """Print a line that stands out."""
        self.say(f"\033[1m{text}\033[0m" if self.colourful else text)


STDERR = Terminal(sys.stderr)
