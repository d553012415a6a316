"""The five services as programs: what each is told, and nothing more."""

import http.client
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tools.launcher.cache import PROJECT
from tools.launcher.ports import HOST
from tools.launcher.processes import Program

LISTENING = ("BIND_ADDRESS", "ALLOWED_HOSTS", "LOG_LEVEL", "LOG_FORMAT", "USERSTREAM_FAILPOINT")
BROKER = ("QUEUE_URL", "QUEUE_MANAGEMENT_URL")
CONSUMING = ("MAX_RETRY_ATTEMPTS", "RETRY_DELAY_MS", "PREFETCH", "CRASH_MARKER_DIR")
DATABASE_SERVICE = ("DATABASE_SERVICE_URL",)

SETTINGS = {
    "frontend": (
        *(*BROKER, *DATABASE_SERVICE),
        *("PUBLIC_URL", "CORS_ORIGINS", "TRUSTED_PROXIES"),
        *("REGISTRATION_ID_SECRET", "CANARY_SECONDS"),
    ),
    "queue_receiver": (
        *(*BROKER, *CONSUMING, *DATABASE_SERVICE),
        *("LEDGER_INTERVAL_SECONDS", "LEDGER_LOST_AFTER_SECONDS"),
    ),
    "sender": (
        *(*BROKER, *CONSUMING, *DATABASE_SERVICE),
        *("SMTP_HOST", "SMTP_PORT", "SMTP_SECURE", "SMTP_USER", "SMTP_PASSWORD"),
        *("SMTP_CA_FILE", "SMTP_CONNECTIONS", "SMTP_HELLO_NAME", "FROM_EMAIL", "FROM_NAME"),
    ),
    "database_service": (
        *("DB_HOST", "DB_PORT", "DB_NAME", "DB_USER", "DB_PASSWORD"),
        *("DB_POOL_MIN", "DB_POOL_MAX", "DB_SSL", "DB_SSL_CA"),
    ),
    "report_generator": (
        *(*BROKER, *CONSUMING, *DATABASE_SERVICE),
        *("REPORT_OUTPUT_DIR", "CSV_DELIMITER", "CSV_QUOTE_CHAR", "INCLUDE_HEADER"),
    ),
}
"""Service to the variables it reads besides ``PORT`` and ``LISTENING``."""

LIVE = "/health/live"
KNOWN = frozenset({*LISTENING, *(name for names in SETTINGS.values() for name in names)})
"""Every variable that reaches a service from the launcher's own environment."""

READY = "/health/ready"

ANSWER_SECONDS = 2.0
EXPLAIN_SECONDS = 5.0
"""Longer than a service's own checks take, which may be what is asked for."""

STOP_SECONDS = 40.0
"""A service gives requests 5 s, messages 20 s and what is broken off 5 s, and then disconnects."""

PYTHON = {
    "LANG": "C.UTF-8",
    "PYTHONUNBUFFERED": "1",
    "PYTHONNODEBUGRANGES": "1",
    # One heap for all threads, and large blocks always mapped on their own: otherwise the C
    # library keeps what a report needed for a moment (it raises its own limits; giving one of
    # them ends that, see man 3 mallopt).
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": "131072",
}
"""What every service's interpreter and C library are told; the same as in the ``Dockerfile``."""

INHERITED = ("PATH", "HOME", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""Variables of the system, not of the project, that a Python program may need."""


def service_environment(
    service: str, *, defaults: Mapping[str, str], given: Mapping[str, str], port: int
) -> dict[str, str]:
    """All variables of one service.

    Args:
        service: Its name.
        defaults: What the launcher would say, by the name of the variable.
        given: The launcher's own environment; it wins, except for ``PORT``.
        port: Where to listen.
    """
    names = (*LISTENING, *SETTINGS[service])
    environment = {name: given[name] for name in INHERITED if name in given}
    environment |= PYTHON
    for name in names:
        if name in given:
            environment[name] = given[name]
        elif f"{name}_FILE" in given:
            environment[f"{name}_FILE"] = given[f"{name}_FILE"]
        elif name in defaults:
            environment[name] = defaults[name]
    return {**environment, "PORT": str(port)}


def service_program(
    service: str, *, python: Path, environment: Mapping[str, str], port: int, log: Path
) -> Program:
    """One service; it lives and is ready when its own ``/health/…`` says so."""
    return Program(
        name=service,
        argv=(str(python), "-m", service),
        environment=environment,
        directory=PROJECT,
        log=log,
        is_ready=lambda: answers_ok(port, READY),
        stop_within=STOP_SECONDS,
        is_live=lambda: answers_ok(port, LIVE),
        waits_for=lambda: waits_for(port),
    )


def answers_ok(port: int, path: str) -> bool:
    """Whether a GET there answers 200."""
    return _get(port, path)[0] == http.HTTPStatus.OK


def summary(port: int) -> dict[str, Any]:
    """What a service says of itself in ``/health``; nothing where there is no answer."""
    return _as_object(_get(port, "/health", EXPLAIN_SECONDS)[1])


def waits_for(port: int) -> dict[str, str]:
    """What a service waits for, each with its reason; empty where it is ready."""
    status, body = _get(port, READY, EXPLAIN_SECONDS)
    if status == 0:
        return {"itself": "It does not answer."}
    return not_ready(_as_object(body))


def not_ready(report: Mapping[str, Any]) -> dict[str, str]:
    """The dependencies that a report of ``/health`` shows as missing, each with its reason."""
    dependencies = report.get("dependencies")
    if not isinstance(dependencies, dict):
        return {"itself": "It does not say whether it is ready."}
    return {
        name: str(found.get("detail") or found.get("code") or "It does not say why.")
        for name, found in dependencies.items()
        if not found.get("ready")
    }


def all_waiting(numbers: Mapping[str, int], names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Of these services, those that are not ready, each with what it waits for.

    Args:
        numbers: Their ports.
        names: The services.
    """
    asked = list(names)
    with ThreadPoolExecutor(len(asked) or 1) as pool:
        said = pool.map(lambda name: waits_for(numbers[name]), asked)
        return {name: waits for name, waits in zip(asked, said, strict=True) if waits}


def _as_object(body: str) -> dict[str, Any]:
    try:
        said = json.loads(body)
    except ValueError:  # whatever holds the port, it is not the service
        said = {}
    return said if isinstance(said, dict) else {}


def _get(port: int, path: str, seconds: float = ANSWER_SECONDS) -> tuple[int, str]:
    """Status and body of a GET; status 0 without an answer in time."""
    connection = http.client.HTTPConnection(HOST, port, timeout=seconds)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()
