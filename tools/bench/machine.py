"""On what was measured: the machine, and the versions of everything that matters."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import asyncpg

from tools.bench.harness import Harness
from tools.bench.loop import run
from tools.launcher.processes import run_briefly

OURS = ("aio-pika", "aiormq", "aiohttp", "asyncpg", "pydantic", "uvloop", "orjson", "structlog")
PEERS = ("fastapi", "faststream", "sqlalchemy", "uvicorn", "aiosmtplib", "aio-pika", "asyncpg")

LIST_VERSIONS = """
import importlib.metadata, sys
for name in sys.argv[1:]:
    try:
        print(f"{name} {importlib.metadata.version(name)}")
    except importlib.metadata.PackageNotFoundError:
        pass
"""


def describe_machine() -> dict[str, str]:
    """Cores, processor, memory, kernel, today's date, and how busy it is with other things."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cores": str(len(os.sched_getaffinity(0))),
        "processor": _first("/proc/cpuinfo", "model name"),
        "memory": f"{int(_first('/proc/meminfo', 'MemTotal').split()[0]) / 1e6:.0f} GB",
        "load_before": f"{os.getloadavg()[0]:.1f}",
        "kernel": f"{platform.system()} {platform.release()}",
    }


def describe_versions(harness: Harness) -> dict[str, str]:
    """Python, the servers, and the libraries of both systems."""
    return {
        "Python": platform.python_version(),
        "RabbitMQ": harness.broker.management("GET", "/api/overview")["rabbitmq_version"],
        "PostgreSQL": run(_postgres_version(harness.postgres.dsn())),
        "UserStream": _libraries(harness.stack.python),
        "peer": ", ".join(f"{name} {version(name)}" for name in PEERS),
    }


async def _postgres_version(dsn: str) -> str:
    connection = await asyncpg.connect(dsn)
    try:
        return str(await connection.fetchval("SHOW server_version"))
    finally:
        await connection.close()


def _libraries(python: Path) -> str:
    return ", ".join(run_briefly([str(python), "-c", LIST_VERSIONS, *OURS]).splitlines())


def _first(file: str, key: str) -> str:
    """The value of the first line ``key : value``."""
    for line in Path(file).read_text("utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return "unknown"
