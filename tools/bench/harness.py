"""Starts what is measured: a private stack, the mail server, and beside them the peer."""

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.bench.mails import Mails
from tools.bench.peer_system import peer_programs, peer_system, prepare_peer
from tools.bench.systems import System
from tools.launcher.broker import Broker
from tools.launcher.cache import PROJECT, RUN_DIRECTORY
from tools.launcher.errors import LauncherError
from tools.launcher.ports import HOST, ports
from tools.launcher.postgres import Postgres
from tools.launcher.processes import Program
from tools.launcher.running import start_parts
from tools.launcher.services import SETTINGS
from tools.launcher.stack import Stack, build_stack
from tools.launcher.supervisor import Part, Supervisor
from tools.launcher.terminal import Terminal
from tools.testing.ephemeral_stack import (
    ADDRESSES,
    free_offset,
    make_folder,
    remove_folder,
    without_addresses,
)

OURS = "UserStream"

PASSED_THROUGH = ("frontend", "queue_receiver", "sender", "database_service")
"""The services that a registration meets; the report generator is not among them."""

COUNT_ROWS = "SELECT count(*) FROM users WHERE lower(email) = ANY($1::text[])"


@dataclass(frozen=True, slots=True, kw_only=True)
class Harness:
    """Everything that runs."""

    stack: Stack
    broker: Broker
    postgres: Postgres
    supervisor: Supervisor
    ours: System
    peer: System | None
    """None where nothing is compared with it."""
    mails: Mails
    scratch: Path
    """A folder for files that a workload makes; gone at the end."""

    @property
    def systems(self) -> tuple[System, ...]:
        """Those that are compared, ours first."""
        return (self.ours, self.peer) if self.peer else (self.ours,)

    def around(self) -> dict[str, int]:
        """The processes that all share: broker, database, mail server, and this one."""
        parts = self.supervisor.parts
        return {"driver": os.getpid()} | {
            name: part.running.pid
            for name in ("rabbitmq", "postgres", "mail server")
            if (part := parts[name]).running
        }

    def part(self, name: str) -> Part:
        """One of our processes."""
        return self.supervisor.parts[name]


def settings_to_measure(environment: Mapping[str, str]) -> dict[str, str]:
    """The settings of services that the person has chosen, such as ``PREFETCH``."""
    known = {name for names in SETTINGS.values() for name in names} | {"LOG_LEVEL"}
    return {name: environment[name] for name in sorted(known - ADDRESSES) if name in environment}


@contextmanager
def harness(
    *, offset: int, data: Path | None, with_peer: bool, terminal: Terminal
) -> Iterator[Harness]:
    """Start everything with data of its own; stop it and remove the data at the end.

    Where something goes wrong the logs stay, because they say why.

    Args:
        offset: Of the ports; 0 takes the first ones that are free.
        data: Where a folder for the data is made.
        with_peer: Whether the peer is needed.
        terminal: Hears of the progress.

    Raises:
        LauncherError: Something could not be started.
    """
    offset = offset or free_offset()
    folder = make_folder(data or RUN_DIRECTORY, prefix="bench-")
    keep_logs = False
    try:
        with ExitStack() as running:
            yield _start(offset, folder, running, with_peer=with_peer, terminal=terminal)
    except LauncherError as error:
        keep_logs = True
        raise LauncherError(f"{error}\nThe logs are kept in {folder / 'logs'}") from error
    finally:
        remove_folder(folder, keep_logs=keep_logs)


def _start(
    offset: int, folder: Path, running: ExitStack, *, with_peer: bool, terminal: Terminal
) -> Harness:
    numbers = ports(offset)
    mail_port = numbers["mailbox smtp"]  # it takes the mailbox's place
    # No canary: it would be one more message among those that are counted.
    given = {"CANARY_SECONDS": "0"} | without_addresses(os.environ)
    given |= {"SMTP_HOST": HOST, "SMTP_PORT": str(mail_port), "SMTP_SECURE": "none"}
    stack = build_stack(offset=offset, data=folder, given=given, terminal=terminal)
    if stack.broker is None or stack.postgres is None:
        raise AssertionError("no address is handed on, so both are the stack's own")
    log = folder / "mails.log"
    log.touch()
    supervisor = Supervisor(terminal=terminal, on_change=lambda _: None)
    running.callback(supervisor.stop)
    supervisor.start([_mail_server(mail_port, log, stack.logs)])
    running.callback(_stop, supervisor, "mail server")
    start_parts(stack, supervisor, terminal)
    peer = None
    if with_peer:
        port = numbers["mailbox web"]
        prepare_peer(stack.broker, stack.postgres)
        programs = peer_programs(
            stack.broker, stack.postgres, port=port, smtp_port=mail_port, logs=stack.logs
        )
        running.callback(_stop, supervisor, *(program.name for program in programs))
        supervisor.start(programs)
        parts = {program.name: supervisor.parts[program.name] for program in programs}
        peer = peer_system(stack.broker, stack.postgres, port=port, parts=parts)
    return Harness(
        stack=stack,
        broker=stack.broker,
        postgres=stack.postgres,
        supervisor=supervisor,
        ours=_our_system(stack, stack.broker, stack.postgres, supervisor),
        peer=peer,
        mails=Mails(log),
        scratch=folder,
    )


def _our_system(stack: Stack, broker: Broker, postgres: Postgres, supervisor: Supervisor) -> System:
    return System(
        name=OURS,
        port=stack.ports["frontend"],
        path="/api/registrations",
        dsn=postgres.dsn(),
        count_rows=COUNT_ROWS,
        amqp_url=broker.url(),
        queue="user.registration",
        consumer="queue_receiver",
        parts={name: supervisor.parts[name] for name in PASSED_THROUGH},
    )


def _mail_server(port: int, log: Path, logs: Path) -> Program:
    def is_ready() -> bool:
        try:
            with socket.create_connection((HOST, port), timeout=1) as connection:
                return connection.recv(3) == b"220"
        except OSError:
            return False

    return Program(
        name="mail server",
        argv=(sys.executable, "-m", "tools.bench.mail_server", str(port), str(log)),
        environment={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
        directory=PROJECT,
        log=logs / "mail_server.log",
        is_ready=is_ready,
    )


def _stop(supervisor: Supervisor, *names: str) -> None:
    """Stop parts that the supervisor's own order does not know."""
    running = [part.running for name in names if (part := supervisor.parts[name]).running]
    for each in running:
        if each:
            each.stop()
