"""Readiness of a service: its dependencies, and notes for people."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import structlog

from common.errors import UserStreamError

log = structlog.get_logger()

Check = Callable[[], Awaitable[None]]
"""Returns if the dependency is there, else raises one of our errors."""

CHECK_SECONDS = 3.0
"""Longest that one check may take; a load balancer asks every few seconds."""


class Circuit(Protocol):
    """A circuit breaker."""

    @property
    def state(self) -> Enum:
        """Closed, half open or open."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthNote:
    """What a person should know; it never makes the service not ready."""

    detail: str
    """In words."""

    warning: bool = False
    """Whether a person should act on it."""

    facts: Mapping[str, float | str] = field(default_factory=dict)
    """The same for programs."""


@dataclass(slots=True)
class Readiness:
    """The dependencies of a service, each with its check; its notes and circuits."""

    checks: dict[str, Check] = field(default_factory=dict)
    notes: dict[str, Callable[[], HealthNote]] = field(default_factory=dict)
    circuits: dict[str, Circuit] = field(default_factory=dict)
    _missing: frozenset[str] = frozenset()
    """What was missing at the last report."""

    _has_been_ready: bool = False

    def add(self, name: str, check: Check) -> None:
        """Run ``check`` for each report."""
        self.checks[name] = check

    def note(self, name: str, note: Callable[[], HealthNote]) -> None:
        """Show ``note`` in ``/health``; it never makes a service not ready."""
        self.notes[name] = note

    def show(self, name: str, circuit: Circuit) -> None:
        """Show a circuit's state; it never makes a service not ready."""
        self.circuits[name] = circuit

    def noted(self) -> dict[str, Any]:
        """Every note as ``/health`` shows it."""
        notes = {name: note() for name, note in self.notes.items()}
        return {
            name: {"warning": note.warning, "detail": note.detail, **note.facts}
            for name, note in notes.items()
        }

    async def report(self) -> dict[str, Any]:
        """Every dependency with its state and the milliseconds that its check took."""
        results = await asyncio.gather(*(_result(check) for check in self.checks.values()))
        dependencies = dict(zip(self.checks, results, strict=True))
        ready = all(result["ready"] for result in results)
        self._log_change(dependencies)
        circuits = {name: circuit.state.value for name, circuit in self.circuits.items()}
        shown = {"circuits": circuits} if circuits else {}
        return {"ready": ready, "dependencies": dependencies, **shown}

    def _log_change(self, dependencies: Mapping[str, Mapping[str, Any]]) -> None:
        """Log what is missing now and was there before, or that nothing is any more."""
        reasons = {
            name: result["detail"] for name, result in dependencies.items() if not result["ready"]
        }
        missing = frozenset(reasons)
        if missing - self._missing:
            if self._has_been_ready:
                log.warning("service.not_ready", waits_for=reasons)
            else:  # at a start each service waits for another
                log.info("service.waiting", waits_for=reasons)
        elif self._missing and not missing:
            log.info("service.ready")
        self._missing = missing
        self._has_been_ready |= not missing


async def _result(check: Check) -> dict[str, Any]:
    started = time.perf_counter()
    failure: dict[str, str] = {}
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await check()
    except UserStreamError as error:
        failure = {"code": error.code, "detail": error.detail}
    except TimeoutError:
        failure = {"code": "timeout", "detail": f"No answer within {CHECK_SECONDS:g} s."}
    except Exception:  # one broken check must not hide the others
        log.exception("health.check_failed")
        failure = {"code": UserStreamError.code, "detail": "The check itself failed; see the log."}
    latency = round((time.perf_counter() - started) * 1000, 1)
    return {"ready": not failure, "latencyMs": latency, **failure}
