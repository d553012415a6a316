"""Starts what is measured: a private stack, the mail server, and beside them the peer."""

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.bench.mails import Mails
from tools.bench.peer_system import peer_programs, peer_system, prepare_peer
from tools.bench.systems import System
from tools.launcher.broker import Broker
from tools.launcher.cache import PROJECT
from tools.launcher.ports import HOST, ports
from tools.launcher.postgres import Postgres
from tools.launcher.processes import Program
from tools.launcher.services import SETTINGS
from tools.launcher.stack import Stack
from tools.launcher.supervisor import Part, Supervisor
from tools.launcher.terminal import Terminal
from tools.testing.ephemeral_stack import ADDRESSES, EphemeralStack, ephemeral_stack, free_offset

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

    Args:
        offset: Of the ports; 0 takes the first ones that are free.
        data: Where a folder for the data is made.
        with_peer: Whether the peer is needed.
        terminal: Shows the progress.

    Raises:
        LauncherError: Something could not be started.
    """
    offset = offset or free_offset()
    numbers = ports(offset)
    mail_port = numbers["mailbox smtp"]  # nothing else listens there
    settings = {"SMTP_HOST": HOST, "SMTP_PORT": str(mail_port), "SMTP_SECURE": "none"}
    settings["CANARY_SECONDS"] = "0"  # it would be one more message among those that are counted
    with ephemeral_stack(
        "bench", offset=offset, data=data, settings=settings, terminal=terminal
    ) as running:
        yield _start(running, mail_port, numbers["mailbox web"] if with_peer else None)


def _start(running: EphemeralStack, mail_port: int, peer_port: int | None) -> Harness:
    stack, broker, postgres = running.stack, running.broker, running.postgres
    supervisor = running.supervisor
    log = stack.data / "mails.log"
    log.touch()
    supervisor.start([_mail_server(mail_port, log, stack.logs)])
    supervisor.start(stack.services())
    peer = None
    if peer_port:
        prepare_peer(broker, postgres)
        programs = peer_programs(
            broker, postgres, port=peer_port, smtp_port=mail_port, logs=stack.logs
        )
        supervisor.start(programs)
        parts = {program.name: supervisor.parts[program.name] for program in programs}
        peer = peer_system(broker, postgres, port=peer_port, parts=parts)
    return Harness(
        stack=stack,
        broker=broker,
        postgres=postgres,
        supervisor=supervisor,
        ours=_our_system(running),
        peer=peer,
        mails=Mails(log),
        scratch=stack.data,
    )


def _our_system(running: EphemeralStack) -> System:
    return System(
        name=OURS,
        port=running.stack.ports["frontend"],
        path="/api/registrations",
        dsn=running.postgres.dsn(),
        count_rows=COUNT_ROWS,
        amqp_url=running.broker.url(),
        queue="user.registration",
        consumer="queue_receiver",
        parts={name: running.supervisor.parts[name] for name in PASSED_THROUGH},
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
