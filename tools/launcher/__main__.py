"""Run a command: ``python -m tools.launcher demo``; ``./userstream`` does just that."""

import json
import os
import sys
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from common.http.version import version
from rabbitmq import check
from tools.cli import dead_letters, ledger, mails
from tools.cli.api_client import invocation_of, nothing_runs
from tools.launcher import control as watching
from tools.launcher import logs, running, versions
from tools.launcher import test_command as checks
from tools.launcher.arguments import parser
from tools.launcher.cache import PROJECT
from tools.launcher.environment import ensure_environment
from tools.launcher.errors import LauncherError
from tools.launcher.invocation import default_data
from tools.launcher.output import overview, status_lines
from tools.launcher.ports import ports
from tools.launcher.terminal import STDERR, Terminal, discard, write_in_any_encoding
from tools.testing.ephemeral_stack import own_mounts

OK, FAILED = 0, 1
USAGE = 2
"""Also what argparse exits with."""


def main(argv: list[str]) -> int:
    """Run the command and return the exit code."""
    write_in_any_encoding()
    options = parser()
    given = options.parse_args(argv)
    if given.version:
        print(f"UserStream {version()}")
        return OK
    if given.command is None:
        options.print_help()
        return OK
    try:
        ports(given.port_offset)
    except LauncherError as error:
        STDERR.fail(str(error))
        return USAGE
    given.data = (given.data or default_data(given.port_offset)).absolute()
    if given.data.resolve() == PROJECT:
        STDERR.fail("--data: this folder holds the program; take one of its own for the data.")
        return USAGE
    return _run(given)


def _run(given: Namespace) -> int:
    try:
        return COMMANDS[given.command](given)
    except LauncherError as error:
        STDERR.fail(str(error))
        return FAILED
    except OSError as error:
        if not _lies_in(error.filename, given.data):
            raise
        STDERR.fail(
            f"{error.filename}: {error.strerror}. Data and logs cannot be kept there;"
            " take another folder with --data."
        )
        return FAILED
    except KeyboardInterrupt:
        return FAILED


def _lies_in(file: object, folder: Path) -> bool:
    """Whether a failure is about the data's folder or something in it."""
    return isinstance(file, (str, os.PathLike)) and Path(file).is_relative_to(folder)


def _demo(given: Namespace) -> int:
    invocation = invocation_of(given)

    def announce(connections: dict[str, Any]) -> None:
        print(overview(connections, invocation), "Ctrl-C stops everything.", sep="\n", flush=True)

    running.Runner(invocation=invocation, terminal=Terminal(sys.stdout)).run(announce)
    return OK


def _up(given: Namespace) -> int:
    invocation = invocation_of(given)

    def announce(connections: dict[str, Any]) -> None:
        if given.json:
            print(json.dumps(connections), flush=True)
        elif not given.background:
            print(overview(connections, invocation), flush=True)

    if given.detach:
        announce(running.detach(invocation, STDERR))
    else:
        terminal = Terminal(sys.stderr, is_log=given.background)
        running.Runner(invocation=invocation, terminal=terminal).run(announce)
    return OK


def _status(given: Namespace) -> int:
    invocation = invocation_of(given)
    found = watching.status(invocation)
    if given.json:
        print(json.dumps({"running": found is not None, **(found or {})}))
    elif found is not None:
        print("\n".join(status_lines(found)))
    elif invocation.urls:
        print(f"No service answers at {' '.join(invocation.urls)}.")
    else:
        print(nothing_runs(invocation))
    return OK if found else FAILED


def _down(given: Namespace) -> int:
    if not watching.down(invocation_of(given), STDERR):
        print(f"Nothing runs with the data in {given.data}.", file=sys.stderr)
    return OK


def _logs(given: Namespace) -> int:
    with suppress(KeyboardInterrupt):  # the way to end --follow
        logs.show(
            given.data / "logs",
            given.part,
            Terminal(sys.stdout),
            lines=given.lines,
            follow=given.follow,
            as_json=given.json,
        )
    return OK


def _check_broker(given: Namespace) -> int:
    url = given.broker or os.environ.get("QUEUE_MANAGEMENT_URL")
    url = url or watching.management_url(invocation_of(given))
    return check.run(url, machine_readable=given.json)


def _mails(given: Namespace) -> int:
    mails.run(given, Terminal(sys.stdout))
    return OK


def _ledger(given: Namespace) -> int:
    return OK if ledger.run(given, Terminal(sys.stdout)) else FAILED


def _environment() -> dict[str, str]:
    """Of a tool that this process becomes; it prints whatever the locale is."""
    encoding = f"{sys.stdout.encoding or 'utf-8'}:replace"
    return {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONIOENCODING": encoding}


def _bench(_given: Namespace) -> NoReturn:
    """Become the benchmark, which reads the same command line in its own environment."""
    python = ensure_environment("bench", STDERR) / "bin" / "python"
    environment = _environment()
    command = [str(python), "-P", "-m", "tools.bench", *sys.argv[1:]]
    os.execve(python, command, environment)  # noqa: S606 - becoming it is the purpose


def _chaos(_given: Namespace) -> NoReturn:
    """Become the fault-injection tests, with mounts of their own where the system allows it."""
    python = ensure_environment("demo", STDERR) / "bin" / "python"
    environment = _environment()
    command = [*own_mounts(), str(python), "-P", "-m", "tools.chaos", *sys.argv[1:]]
    os.execvpe(command[0], command, environment)  # noqa: S606 - becoming it is the purpose


def _dead_letters(given: Namespace) -> int:
    return OK if dead_letters.run(given, Terminal(sys.stdout)) else FAILED


def _check(given: Namespace) -> int:
    return checks.check(given.checks, Terminal(sys.stdout))


def _test(given: Namespace) -> int:
    return checks.run(given.pytest, Terminal(sys.stdout))


def _test_versions(given: Namespace) -> int:
    return versions.run(given.versions, given.pytest, Terminal(sys.stdout))


def _test_compose(_given: Namespace) -> int:
    return checks.run_compose(Terminal(sys.stdout))


COMMANDS = {
    "demo": _demo,
    "up": _up,
    "status": _status,
    "down": _down,
    "logs": _logs,
    "ledger": _ledger,
    "mails": _mails,
    "check-broker": _check_broker,
    "bench": _bench,
    "chaos": _chaos,
    "dead-letters": _dead_letters,
    "check": _check,
    "test": _test,
    "test-versions": _test_versions,
    "test-compose": _test_compose,
}


def _with_a_reader(argv: list[str]) -> int:
    """Run the command; a reader of its output that has gone, such as ``head``, is no failure."""
    try:
        try:
            return main(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        discard(sys.stdout)
        return OK


if __name__ == "__main__":
    sys.exit(_with_a_reader(sys.argv[1:]))
