"""The command line of ``./userstream``."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from tools.bench.arguments import add_arguments
from tools.chaos.arguments import add_arguments as add_chaos_arguments
from tools.cli import dead_letters, ledger, mails
from tools.cli.api_client import add_url
from tools.launcher import versions
from tools.launcher.logs import SHOWN
from tools.launcher.test_command import CHECKS

COMMANDS = {
    "demo": "set up and start everything, show where it is, stop with Ctrl-C",
    "up": "the same for scripts; with --detach it returns when everything is up",
    "status": "show each part: where it is, whether it is ready, and if not, why",
    "down": "stop what 'up --detach' started",
    "logs": "show what the parts wrote, one readable line each, by time",
    "ledger": "show what became of every registration, and bring back what is lost",
    "mails": "show how a mail stands, send it again, or all of a day that failed",
    "check-broker": "compare a broker with what it should hold, and say how to mend it",
    "bench": "measure the speed, beside a system that people would write instead",
    "chaos": "break everything that can break while people register, and count what is lost",
    "dead-letters": "show messages that were given up, send them back, correct or discard them",
    "check": "lint, types, dependencies, and whether the texts agree with the code; a minute",
    "test": "check and test everything; --unit the quick ones; what else follows goes to pytest",
    "test-versions": "test on other versions of RabbitMQ, PostgreSQL and Python",
    "test-compose": "run the compose file on a container engine: the job, crashes, scaling",
}

Add = Callable[[argparse.ArgumentParser, argparse.ArgumentParser], None]

ACTIONS: Mapping[str, Add] = {
    "dead-letters": dead_letters.add_arguments,
    "ledger": ledger.add_arguments,
    "mails": mails.add_arguments,
    "test-versions": versions.add_arguments,
}
"""Commands with actions below them, and what adds those to the command; it gets the options
that every command knows, too."""

EPILOG = """\
Examples:
  ./userstream demo                             look at it; Ctrl-C stops everything
  ./userstream up --detach && ./userstream status
  ./userstream logs --follow
  SMTP_HOST=smtp.example.org ./userstream up    mails go out for real

Settings in the environment win over what would be started here: with SMTP_HOST, mails go to
that server and there is no mailbox; with QUEUE_URL or DB_HOST, no broker or database is
started. Where Docker is at hand, `docker compose up` starts the same system in containers.

What a command takes: ./userstream COMMAND --help
"""

EXAMPLES = {
    "demo": (
        "./userstream demo",
        "./userstream demo --port-offset 100           a second one beside the first",
        "SMTP_HOST=localhost SMTP_PORT=1025 SMTP_SECURE=none ./userstream demo",
    ),
    "up": (
        "./userstream up --detach",
        "./userstream up --detach --json               for scripts",
        "QUEUE_URL=amqp://user:pw@broker/%2F DB_HOST=db DB_PASSWORD=pw ./userstream up",
    ),
    "status": (
        "./userstream status",
        "./userstream status --json",
        "./userstream status --url http://localhost    of the containers, at the usual ports",
    ),
    "down": ("./userstream down", "./userstream down --port-offset 100"),
    "logs": (
        "./userstream logs                             the last lines of all, by time",
        "./userstream logs sender --lines 50",
        "./userstream logs --follow",
        "./userstream logs sender --json | jq 'select(.level == \"error\")'",
    ),
    "ledger": (
        "./userstream ledger",
        "./userstream ledger --repair",
        "./userstream ledger --url http://localhost    of the containers, at the usual ports",
        "./userstream ledger --url queue_receiver=https://receiver.example.org",
    ),
    "mails": (
        "./userstream mails show 0192f7a4-5b7c-5c3e-9f10-2b6d1c3a4e5f",
        "./userstream mails resend --failed --day 2026-11-21 --dry-run",
        "./userstream mails suppressed ada@example.org --remove",
        "./userstream mails suppressed --url http://localhost",
    ),
    "check-broker": (
        "./userstream check-broker                     the one that runs here",
        "./userstream check-broker http://guest:guest@localhost:15672",
    ),
    "bench": ("./userstream bench --quick", "./userstream bench --only burst,accept --rounds 3"),
    "chaos": ("./userstream chaos", "./userstream chaos --seeds 10 --minutes 3"),
    "dead-letters": (
        "./userstream dead-letters",
        "./userstream dead-letters list --route user.registration --code upstream_error",
        "./userstream dead-letters redrive --code upstream_error",
        "./userstream dead-letters --url http://localhost",
    ),
    "test-versions": (
        "./userstream test-versions",
        "./userstream test-versions 3.12 3.13",
        "./userstream test-versions trixie --pytest tests/unit -x",
    ),
    "test-compose": (
        "./userstream test-compose",
        "DOCKER_HOST=unix:///run/user/1000/docker.sock ./userstream test-compose",
    ),
    "check": ("./userstream check", "./userstream check lint types"),
    "test": (
        "./userstream test                             everything, as CI does",
        "./userstream test --unit                      the quick ones, in seconds",
        "./userstream test -x -k ports",
    ),
}
"""What to type, for each command."""

NO_PREFIX = "\0"
"""No argument begins with it: all are taken as they are."""


def parser() -> argparse.ArgumentParser:
    """The parser. Options may stand before or after the command."""
    top = argparse.ArgumentParser(
        prog="./userstream",
        description="Takes registrations from people and never loses one.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_options(default=True)],
        allow_abbrev=False,
    )
    top.add_argument("--version", action="store_true", help="show the version")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    for name, text in COMMANDS.items():
        if name == "test":
            # Whatever follows is pytest's, options and --help too.
            test = commands.add_parser(name, help=text, prefix_chars=NO_PREFIX, add_help=False)
            test.add_argument("pytest", nargs=argparse.REMAINDER)
            continue
        command = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog="\n".join(["Examples:", *(f"  {line}" for line in EXAMPLES[name])]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[_options()],
            allow_abbrev=False,
        )
        _add_own(name, command)
    return top


def _add_own(name: str, command: argparse.ArgumentParser) -> None:
    """What this command takes besides the options of all."""
    if name == "up":
        command.add_argument("--detach", action="store_true", help="return when it is up")
        # How --detach starts the process that stays; its log shows no passwords.
        command.add_argument("--background", action="store_true", help=argparse.SUPPRESS)
    if name == "check-broker":
        command.add_argument(
            "broker",
            nargs="?",
            metavar="URL",
            help="http://user:password@host:15672 or amqp://user:password@host; without it"
            " QUEUE_MANAGEMENT_URL, or else the broker of the stack that runs",
        )
    if name in {"up", "status", "check-broker"}:
        command.add_argument("--json", action="store_true", help="one JSON object on stdout")
    if name == "status":
        add_url(command)
    if name == "logs":
        command.add_argument("part", nargs="?", help="sender, rabbitmq, postgres, …")
        command.add_argument("--follow", "-f", action="store_true", help="go on showing")
        command.add_argument(
            "--lines",
            "-n",
            type=_count,
            metavar="N",
            help=f"the last N (default: all of a part, {SHOWN} of all parts together)",
        )
        command.add_argument(
            "--json", action="store_true", help="as they were written, one JSON object a line"
        )
    if name == "check":
        command.add_argument(
            "checks",
            nargs="*",
            metavar="NAME",
            type=_check,
            help=f"only these: {', '.join(CHECKS)}",
        )
    if name == "bench":
        add_arguments(command)
    if name == "chaos":
        add_chaos_arguments(command)
    if add_actions := ACTIONS.get(name):
        add_actions(command, _options())


def _check(text: str) -> str:
    if text not in CHECKS:
        raise argparse.ArgumentTypeError(f"there is no check {text}, but {', '.join(CHECKS)}")
    return text


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of lines from 1 up")
    return int(text)


def _options(*, default: bool = False) -> argparse.ArgumentParser:
    """The options that every command knows.

    Only the top parser has defaults; those of a command would overwrite what stood before it.
    """
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--port-offset",
        type=int,
        metavar="N",
        default=0 if default else argparse.SUPPRESS,
        help="add N to every port, so that two stacks run side by side",
    )
    options.add_argument(
        "--data",
        type=_directory,
        metavar="DIR",
        default=None if default else argparse.SUPPRESS,
        help="keep data and logs there (default: .run/offset-N)",
    )
    return options


def _directory(text: str) -> Path:
    """A folder by its name; an empty one, as of an unset variable, would mean this folder."""
    if not text:
        raise argparse.ArgumentTypeError("the folder has no name")
    return Path(text)
