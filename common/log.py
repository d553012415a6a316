"""Structured logs: one event per line, as JSON or for the eye; never a name, address or body."""

import logging
import sys
from typing import Literal

import structlog

from common.context import current_ids


def configure_logging(
    service: str, level: str, log_format: Literal["auto", "json", "console"]
) -> None:
    """Set up structlog and the standard library's logging for one process."""
    for_the_eye = log_format == "console" or (log_format == "auto" and sys.stdout.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_ids(service),
    ]
    renderer: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if for_the_eye
        else [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.WriteLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
    _route_library_logs(shared, renderer)


def _add_ids(service: str) -> structlog.typing.Processor:
    def add(
        _logger: object, _method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        event["service"] = service
        for name, value in current_ids().items():
            event.setdefault(name, value)
        return event

    return add


def _route_library_logs(
    shared: list[structlog.typing.Processor], renderer: list[structlog.typing.Processor]
) -> None:
    """Give warnings of libraries the same form; they log through the standard library."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    # Both speak of each lost connection several times; we say it once, with what it means.
    for name in ("aio_pika", "aiormq"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
