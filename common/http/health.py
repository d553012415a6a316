"""``/health``: whether a service lives, and whether it can do its work."""

import time

from aiohttp import web

from common.readiness import Readiness


def add_health(app: web.Application, name: str, version: str, readiness: Readiness) -> None:
    """Serve ``/health``, ``/health/live`` and ``/health/ready``."""
    started = time.time()

    async def live(_request: web.Request) -> web.Response:
        return web.json_response({"status": "live"})

    async def ready(_request: web.Request) -> web.Response:
        report = await readiness.report()
        return web.json_response(report, status=200 if report["ready"] else 503)

    async def summary(_request: web.Request) -> web.Response:
        report = await readiness.report()
        return web.json_response(
            {
                "service": name,
                "version": version,
                "status": "ready" if report["ready"] else "waiting",
                "uptimeSeconds": round(time.time() - started),
                **{key: value for key, value in report.items() if key != "ready"},
                "notes": readiness.noted(),
            }
        )

    app.router.add_get("/health", summary)
    app.router.add_get("/health/live", live)
    app.router.add_get("/health/ready", ready)
