"""Prepares and starts the peer: its own virtual host and database, in the same servers."""

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import asyncpg

from rabbitmq.provision import ADMINISTRATOR
from tools.bench.systems import System, has_consumer
from tools.launcher.broker import Broker
from tools.launcher.cache import PROJECT
from tools.launcher.ports import HOST
from tools.launcher.postgres import Postgres
from tools.launcher.processes import Program
from tools.launcher.services import answers_ok
from tools.launcher.supervisor import Part

PEER = "FastStream"
"""FastAPI + FastStream + SQLAlchemy: see ``tools/bench/peer``."""

NAME = "peer"
"""Of its virtual host and its database."""

PREFETCH = "20"
"""Messages that a consumer of the peer has in flight; as many as its pool has connections.

With 100 it was a fifth slower in bursts.
"""

COUNT_ROWS = "SELECT count(*) FROM users WHERE email = ANY($1::text[])"


def prepare_peer(broker: Broker, postgres: Postgres) -> None:
    """Make its virtual host and its database."""
    broker.management("PUT", f"/api/vhosts/{NAME}")
    rights = {"configure": ".*", "write": ".*", "read": ".*"}
    broker.management("PUT", f"/api/permissions/{NAME}/{ADMINISTRATOR}", rights)

    async def create() -> None:
        connection = await asyncpg.connect(postgres.dsn())
        await connection.execute(f"CREATE DATABASE {NAME}")
        await connection.close()

    asyncio.run(create())


def peer_programs(
    broker: Broker, postgres: Postgres, *, port: int, smtp_port: int, logs: Path
) -> list[Program]:
    """Its three processes, started as their documentation says."""
    amqp = _amqp_url(broker)
    environment = {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "AMQP_URL": amqp,
        "DATABASE_URL": postgres.dsn(NAME).replace("postgresql://", "postgresql+asyncpg://"),
        "PREFETCH": PREFETCH,
        "SMTP_HOST": HOST,
        "SMTP_PORT": str(smtp_port),
    }
    programs = Path(sys.executable).parent
    listening = ("--host", HOST, "--port", str(port), "--log-level", "warning")
    uvicorn = (str(programs / "uvicorn"), "tools.bench.peer.api:app", *listening)

    def faststream(app: str) -> tuple[str, ...]:
        return (str(programs / "faststream"), "run", app)

    def program(name: str, argv: tuple[str, ...], *, queue: str | None = None) -> Program:
        return Program(
            name=name,
            argv=argv,
            environment=environment,
            directory=PROJECT,
            log=logs / f"{name.replace(' ', '_')}.log",
            is_ready=lambda: has_consumer(amqp, queue) if queue else answers_ok(port, "/docs"),
        )

    return [
        program("peer-api", uvicorn),
        program("peer-worker", faststream("tools.bench.peer.worker:app"), queue="registrations"),
        program("peer-sender", faststream("tools.bench.peer.sender:app"), queue="emails"),
    ]


def peer_system(
    broker: Broker, postgres: Postgres, *, port: int, parts: Mapping[str, Part]
) -> System:
    """The peer as a system under test."""
    return System(
        name=PEER,
        port=port,
        path="/register",
        dsn=postgres.dsn(NAME),
        count_rows=COUNT_ROWS,
        amqp_url=_amqp_url(broker),
        queue="registrations",
        consumer="peer-worker",
        parts=parts,
    )


def _amqp_url(broker: Broker) -> str:
    return broker.url().removesuffix("%2F") + NAME
