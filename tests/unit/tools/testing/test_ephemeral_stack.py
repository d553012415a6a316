import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.launcher import locks
from tools.testing import ephemeral_stack

OTHER = """
from tools.testing.ephemeral_stack import free_offset
print(free_offset(), flush=True)
input()
"""


def test_two_stacks_that_look_for_ports_at_the_same_time_find_different_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ephemeral_stack, "is_free", lambda _port: True)  # nobody listens yet
    monkeypatch.setattr(ephemeral_stack, "cache_directory", lambda: tmp_path / "userstream")
    (tmp_path / "userstream").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", OTHER],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        theirs = int(other.stdout.readline())
        ours = [ephemeral_stack.free_offset() for _ in range(theirs // ephemeral_stack.OFFSET_STEP)]
        assert theirs not in ours
        assert len(set(ours)) == len(ours)
        other.communicate("\n")
    assert locks.take(tmp_path / "userstream" / "offsets" / str(theirs))  # free again
