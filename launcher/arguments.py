"""The command line of ``./userstream``."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from bench.arguments import add_arguments
from chaos.arguments import add_arguments as add_chaos_arguments
from launcher import dead_letters, ledger, mails, versions

COMMANDS = {
    "demo": "set up and start everything, show where it is, stop with Ctrl-C",
    "up": "the same for scripts; with --detach it returns when everything is ready",
    "status": "show each part: where it is, whether it is ready, how often it was restarted",
    "down": "stop what 'up --detach' started",
    "logs": "show the logs, of one part or of all",
    "ledger": "show what became of every registration, and bring back what is lost",
    "mails": "show how a mail stands, send it again, or all of a day that failed",
    "check-broker": "compare a broker with what it should hold, and say how to mend it",
    "bench": "measure the speed, beside a system that people would write instead",
    "chaos": "break everything that can break while people register, and count what is lost",
    "dead-letters": "show messages that were given up, send them back, correct or discard them",
    "test": "check and test everything; what follows goes to pytest",
    "test-versions": "test on other versions of RabbitMQ, PostgreSQL and Python",
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
Settings in the environment win over what would be started here: with SMTP_HOST, mails go to
that server and there is no mailbox; with QUEUE_URL or DB_HOST, no broker or database is
started. Where Docker is at hand, `docker compose up` starts the same system in containers.
"""


def parser() -> argparse.ArgumentParser:
    """The parser. Options may stand before or after the command."""
    top = argparse.ArgumentParser(
        prog="./userstream",
        description="Takes registrations from people and never loses one.",
        epilog=EPILOG,
        parents=[_options(default=True)],
        allow_abbrev=False,
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        command = commands.add_parser(
            name, help=text, description=text, parents=[_options()], allow_abbrev=False
        )
        if name == "up":
            command.add_argument("--detach", action="store_true", help="return when ready")
            # How --detach starts the process that stays; its log shows no passwords.
            command.add_argument("--background", action="store_true", help=argparse.SUPPRESS)
        if name == "check-broker":
            command.add_argument(
                "url",
                nargs="?",
                help="http://user:password@host:15672 or amqp://user:password@host; without it"
                " QUEUE_MANAGEMENT_URL, or else the broker of the stack that runs",
            )
        if name in {"up", "status", "check-broker"}:
            command.add_argument("--json", action="store_true", help="one JSON object on stdout")
        if name == "logs":
            command.add_argument("part", nargs="?", help="sender, rabbitmq, postgres, …")
            command.add_argument("--follow", "-f", action="store_true", help="go on showing")
        if name == "bench":
            add_arguments(command)
        if name == "chaos":
            add_chaos_arguments(command)
        if add_actions := ACTIONS.get(name):
            add_actions(command, _options())
        if name == "test":
            command.add_argument("pytest", nargs=argparse.REMAINDER, help="arguments of pytest")
    return top


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
