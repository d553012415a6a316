"""Writes the lock files anew from ``pyproject.toml``: ``-m tools.launcher.lock [--upgrade]``.

Pins that still fit are kept, unless ``--upgrade`` is given. The files hold hashes for every
platform and name no index, so that each machine may use its own.
"""

import subprocess
import sys

from tools.launcher.cache import PROJECT
from tools.launcher.environment import REQUIREMENTS

LOCKS = {
    "runtime": ["pyproject.toml"],
    "demo": ["pyproject.toml", "--extra", "native"],
    "bench": ["pyproject.toml", "--extra", "bench"],
    "test": ["pyproject.toml", "--extra", "native", "--extra", "test"],
    "uv": ["requirements/uv.in"],
    "postgres": ["requirements/postgres.in", "--no-deps"],
    "postgres-2": ["requirements/postgres-2.in", "--no-deps"],
}
"""Lock file to what it is made from."""

OPTIONS = ["--universal", "--generate-hashes", "--no-header", "--no-annotate", "--quiet"]


def main(arguments: list[str]) -> None:
    """Write each lock file; extra arguments go to ``uv pip compile``."""
    for name, sources in LOCKS.items():
        target = REQUIREMENTS / f"{name}.lock"
        command = ["uv", "pip", "compile", *sources, *OPTIONS, "--python-version", "3.11"]
        subprocess.run(
            [*command, "--output-file", str(target), *arguments], cwd=PROJECT, check=True
        )


if __name__ == "__main__":
    main(sys.argv[1:])
