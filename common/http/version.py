"""Which release this is."""

import re
from functools import cache
from pathlib import Path

PROJECT_FILE = Path(__file__).parents[2] / "pyproject.toml"


@cache
def version() -> str:
    """The version that ``pyproject.toml`` states, the only place that does.

    Read by a pattern: a parser of TOML would stay in the memory of every service.
    """
    found = re.search(r'^version = "(.+)"$', PROJECT_FILE.read_text("utf-8"), re.MULTILINE)
    if found is None:
        raise ValueError(f"{PROJECT_FILE} states no version")
    return found[1]
