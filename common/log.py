"""Structured logs: one event per line, as JSON or for the eye; never a name, address or body."""

import asyncio
import atexit
import json
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, BinaryIO, Literal, TextIO, cast

import orjson
import structlog

from common.context import current_ids
from common.errors import UserStreamError

EXCEPTION_FRAMES = 20
"""Lines of code shown of each exception, the innermost ones."""


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
        [structlog.dev.ConsoleRenderer(exception_formatter=_write_exception), _encode]
        if for_the_eye
        else [
            structlog.processors.ExceptionRenderer(_describe_exception),
            structlog.processors.JSONRenderer(serializer=_dumps),
        ]
    )
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.BytesLoggerFactory(
            cast(
                "BinaryIO", BufferedLineWriter(sys.stdout.buffer)
            )  # it writes and flushes, no more
        ),
        cache_logger_on_first_use=True,
    )
    _route_library_logs(shared, [*renderer, _decode])


def _dumps(event: Any, **options: Any) -> bytes:
    """The event as JSON; what orjson refuses (half a surrogate, huge integers) is escaped."""
    try:
        return orjson.dumps(event, **options)
    except TypeError:
        return json.dumps(event, **options).encode()


class BufferedLineWriter:
    """Writes the lines of one turn of the event loop in one go: a write costs more than a line.

    Killed in the middle of a turn, a process loses that turn's lines, and those about requests
    that it answered in the last milliseconds (``common.http.app``); nothing else.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lines: list[bytes] = []
        atexit.register(self._write_out)

    def write(self, line: Any) -> int:
        """Keep a line until the turn is over."""
        self._lines.append(bytes(line))
        return len(line)

    def flush(self) -> None:
        """Write at the end of the turn; at once where no loop runs."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._write_out()
        else:
            if len(self._lines) == 1:
                loop.call_soon(self._write_out)

    def _write_out(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            # The reader of the log has gone; the work goes on.
            with suppress(BrokenPipeError, ValueError):
                self._stream.write(b"".join(lines))
                self._stream.flush()


def _encode(_logger: object, _method: str, line: Any) -> Any:
    return line.encode()


def _decode(_logger: object, _method: str, line: Any) -> Any:
    return line.decode()


def _add_ids(service: str) -> structlog.typing.Processor:
    def add(
        _logger: object, _method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        event["service"] = service
        for name, value in current_ids().items():
            event.setdefault(name, value)
        return event

    return add


def _describe_exception(exc_info: structlog.typing.ExcInfo) -> list[dict[str, Any]]:
    """An exception and what it came from: kinds and places.

    Neither variables nor the texts of foreign exceptions, as structlog would show: both quote
    what people typed (pydantic its input, asyncpg the values of a statement).
    """
    return [
        {
            "type": f"{type(error).__module__}.{type(error).__qualname__}",
            "reason": _reason(error),
            "frames": [
                f"{frame.filename}:{frame.lineno} in {frame.name}"
                for frame in traceback.extract_tb(error.__traceback__, -EXCEPTION_FRAMES)
            ],
        }
        for error in _chain(exc_info[1])
    ]


def _write_exception(out: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    for described in _describe_exception(exc_info):
        out.write(f"\n  {described['type']} {described['reason']}")
        out.writelines(f"\n    {frame}" for frame in described["frames"])


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _reason(error: BaseException) -> str:
    """A text that was written for a log, where there is one."""
    if isinstance(error, UserStreamError):
        return error.detail
    return (error.strerror or "") if isinstance(error, OSError) else ""


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
    # They log each lost connection several times; ours do once, with what it means.
    for name in ("aio_pika", "aiormq", "asyncpg"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
