"""The life of a service process: settings, log, HTTP server, stop."""

import asyncio
import gc
import resource
import signal
import sys
from collections.abc import Callable
from typing import TypeVar

import structlog
import uvloop
from aiohttp import web
from pydantic import ValidationError

from common import failpoints
from common.errors import SettingError
from common.http.app import OWN_ADDRESS
from common.http.server import Runner
from common.log import configure_logging
from common.settings import ServiceSettings

log = structlog.get_logger()

Settings = TypeVar("Settings", bound=ServiceSettings)

EXIT_CONFIG = 78
"""``EX_CONFIG`` of sysexits.h: restarting will not help, a setting has to change."""

GC_ALLOCATIONS = 20_000
"""Objects more than before until cycles are looked for; Python's default is 700."""

MOST_FILES = 65_536
"""Open files that are asked for; systems allow up to a billion, which nothing here needs."""

REQUEST_SECONDS_AT_STOP = 5.0
"""How long requests under way may take once the service was told to stop."""


def run_service(
    name: str, settings_class: type[Settings], build_app: Callable[[Settings], web.Application]
) -> None:
    """Run a service until SIGTERM or SIGINT; what it is doing is finished first."""
    settings = _read(name, settings_class)
    failpoints.arm(settings.userstream_failpoint)
    raise_file_limit()
    configure_logging(name, settings.log_level, settings.log_format)
    for setting, reason in settings.without_effect().items():
        log.warning("setting.without_effect", setting=setting, reason=reason)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(name, settings, build_app(settings)))
    except SettingError as error:
        print(f"{name}: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(EXIT_CONFIG) from error


def _read(name: str, settings_class: type[Settings]) -> Settings:
    """The settings; what is missing or malformed is named, its value is not shown."""
    try:
        return settings_class()
    except ValidationError as error:
        for item in error.errors(include_input=False, include_url=False):
            variable = "_".join(str(part) for part in item["loc"]).upper()
            reason = "is missing" if item["type"] == "missing" else f"is wrong: {item['msg']}"
            field = settings_class.model_fields.get(str(item["loc"][0]) if item["loc"] else "")
            meaning = f" ({field.description})" if field and field.description else ""
            print(f"{name}: {variable or 'a setting'} {reason}.{meaning}", file=sys.stderr)  # noqa: T201
    except SettingError as error:
        print(f"{name}: {error}", file=sys.stderr)  # noqa: T201
    raise SystemExit(EXIT_CONFIG)


def raise_file_limit() -> None:
    """Open as many files as the system lets this process, within reason.

    The usual limit, 1,024, is for programs that wait with ``select``, which takes no more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _serve(name: str, settings: ServiceSettings, app: web.Application) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    runner = Runner(app, shutdown_timeout=REQUEST_SECONDS_AT_STOP)
    await runner.setup()
    _tune_gc()
    try:
        await _listen(runner, settings)
        app[OWN_ADDRESS].listens(*runner.addresses[0][:2])
        log.info("service.started", port=settings.port, name=name)
        await stopped.wait()
        log.info("service.stopping")
    finally:
        await runner.cleanup()
    log.info("service.stopped")


async def _listen(runner: Runner, settings: ServiceSettings) -> None:
    try:
        await web.TCPSite(runner, settings.bind_address, settings.port).start()
    except OSError as error:
        raise SettingError(
            f"cannot listen on {settings.bind_address}:{settings.port}: "
            f"{error.strerror or error}. Set PORT to another port, or stop what holds this one."
        ) from error


def _tune_gc() -> None:
    """Look for cycles less often, and not among what lives as long as the process.

    At its defaults the collector took 5 % of a busy service's time to find next to nothing:
    requests and messages end without cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS)
