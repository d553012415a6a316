"""Becomes another program that cannot outlive the process that started it.

Started by path, as ``python -I exec_guard.py PARENT SIGNAL UID:GID PROGRAM ARGUMENT…``.
``UID:GID`` is ``-`` where the user stays. A program of its own, because code that runs
between fork and exec of a process with threads (``preexec_fn``) may deadlock.
"""

import ctypes
import os
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""


def main(parent: int, death_signal: int, owner: str, argv: list[str]) -> None:
    """Drop to ``owner``, tie this process to ``parent``, and become ``argv``."""
    if owner != "-":
        uid, gid = owner.split(":")
        os.setgroups([])
        os.setgid(int(gid))
        os.setuid(int(uid))
    # After the change of user, which would reset it.
    die_with(parent, death_signal)
    os.execvp(argv[0], argv)  # noqa: S606 - becoming the program is the purpose


def die_with(parent: int, death_signal: int) -> None:
    """Make this process receive ``death_signal`` when ``parent`` ends, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, death_signal)
    else:
        _leave_a_watcher(parent, death_signal)
    if os.getppid() != parent:  # it ended before the line above
        sys.exit(1)


def _leave_a_watcher(parent: int, death_signal: int) -> None:
    """Fork a process that looks after the two others; only Linux has ``PDEATHSIG``."""
    program = os.getpid()
    if os.fork() > 0:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while os.getppid() == program:
        time.sleep(0.2)
        try:
            os.kill(parent, 0)
        except PermissionError:
            continue
        except ProcessLookupError:
            os.kill(program, death_signal)
            break
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
