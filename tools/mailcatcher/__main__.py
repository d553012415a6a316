"""Run the mail catcher: ``python -m tools.mailcatcher``."""

import asyncio
import logging
import signal
import sys

from pydantic import ValidationError

from tools.mailcatcher.app import PortTakenError, catching
from tools.mailcatcher.settings import Settings

log = logging.getLogger("mailcatcher")


async def run(settings: Settings) -> None:
    """Catch mails until SIGTERM or Ctrl-C."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with catching(settings) as store:
        log.info(
            "ready: mails to %s:%d, page at http://%s:%d, %d mails kept in %s",
            settings.bind_address,
            settings.mailcatcher_smtp_port,
            settings.bind_address,
            settings.mailcatcher_web_port,
            len(store),
            settings.mailcatcher_dir,
        )
        await stop.wait()
    log.info("stopped")


def main() -> None:
    """Read the settings and run; what stops it is said in one line."""
    try:
        settings = Settings()
    except ValidationError as error:
        names = ", ".join(str(problem["loc"][0]).upper() for problem in error.errors())
        sys.exit(f"mailcatcher: not started: no valid value in {names}")
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(message)s")
    # aiosmtpd logs addresses and whole mails.
    logging.getLogger("mail.log").setLevel(logging.ERROR)
    try:
        asyncio.run(run(settings))
    except PortTakenError as error:
        sys.exit(f"mailcatcher: not started: {error}")
    except OSError as error:
        sys.exit(f"mailcatcher: not started: {error.filename or ''} {error.strerror}")


if __name__ == "__main__":
    main()
