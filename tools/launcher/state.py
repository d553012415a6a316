"""What a running stack tells others about itself: ``state.json`` and the lock beside it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.launcher.locks import holder, take


class StateFile:
    """The state of the stack whose data lies in one folder."""

    def __init__(self, data: Path) -> None:
        self._file = data / "state.json"
        self._lock = data / "lock"

    def claim(self) -> bool:
        """Take the right to run the stack until this process ends; False if it runs already."""
        claimed = take(self._lock)
        if claimed:
            self._file.unlink(missing_ok=True)
        return claimed

    def supervisor(self) -> int | None:
        """Process id of the supervisor, None if the stack does not run."""
        return holder(self._lock)

    def write(self, state: Mapping[str, Any]) -> None:
        """Replace the state in one step; it holds passwords, so others cannot read it."""
        fresh = self._file.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        with os.fdopen(
            os.open(fresh, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w", encoding="utf-8"
        ) as file:
            json.dump(state, file, indent=2)
        fresh.replace(self._file)

    def read(self) -> dict[str, Any] | None:
        """The state of a running stack, None if it does not run or has just begun."""
        if self.supervisor() is None:
            return None
        try:
            state: dict[str, Any] = json.loads(self._file.read_text("utf-8"))
        except FileNotFoundError:
            return None
        return state
