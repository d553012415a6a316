"""The command lines that the launcher tells people to type."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.launcher.cache import RUN_DIRECTORY


def default_data(offset: int) -> Path:
    """Where a stack keeps its data if it is not told."""
    return RUN_DIRECTORY / f"offset-{offset}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """Which stack is meant, as the person named it."""

    offset: int
    data: Path
    urls: Sequence[str] = ()
    """What was given with ``--url``."""

    def line(self, command: str) -> str:
        """A command for the same stack, to be typed as it is."""
        words = ["./userstream", command]
        if self.offset:
            words.append(f"--port-offset {self.offset}")
        if not self.urls and self.data != default_data(self.offset):
            words.append(f"--data {shlex.quote(str(self.data))}")
        words += [f"--url {shlex.quote(url)}" for url in self.urls]
        return " ".join(words)
