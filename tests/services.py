"""The five services with their real wiring, cut off from the world: nothing connects."""

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any, NoReturn

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from common.http.api import Api
from common.http.server import Runner
from common.settings import ServiceSettings

QUEUE = {"queue_url": "amqp://user:password@127.0.0.1:1/%2F"}

REQUIRED: dict[str, dict[str, Any]] = {
    "frontend": {**QUEUE, "registration_id_secret": "s" * 32},
    "queue_receiver": QUEUE,
    "sender": {**QUEUE, "smtp_host": "127.0.0.1", "from_email": "hello@example.org"},
    "database_service": {},
    "report_generator": QUEUE,
}
"""What each service must be told; for everything else it has a default."""

SERVICES = tuple(REQUIRED)


class Unreachable:
    """Stands for everything outside; a request that is refused must not come this far."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        def reached(*_: object, **__: object) -> NoReturn:
            raise AssertionError(f"{name} was called")

        return reached


def settings_class(service: str) -> type[ServiceSettings]:
    """The service's own settings."""
    settings: type[ServiceSettings] = import_module(f"{service}.settings").Settings
    return settings


def build(service: str) -> web.Application:
    """The service as ``build_app`` makes it, with nothing behind it."""
    settings = settings_class(service)(**REQUIRED[service])
    app: web.Application = import_module(f"{service}.app").build_app(settings)
    app.cleanup_ctx.clear()
    app.on_shutdown.clear()
    for key in _app_keys(service):
        app[key] = Unreachable()
    return app


def api_of(service: str) -> Api:
    """All operations of a service."""
    import_module(f"{service}.app")
    apis = {
        id(value): value
        for module in _modules(service)
        for value in vars(module).values()
        if isinstance(value, Api)
    }
    return Api([operation for api in apis.values() for operation in api.operations])


class _Server(TestServer):
    """A test server whose connections are those of ``common.http.server``."""

    async def _make_runner(self, **options: Any) -> Runner:
        return Runner(self.app, **options)


@asynccontextmanager
async def listening(app: web.Application, *, port: int = 0) -> AsyncIterator[str]:
    """Run the app on a port of its own, as ``common.http.runtime`` does; its base URL.

    aiohttp's own test server cancels handlers whose client has gone; this one lets them run on.
    """
    runner = Runner(app, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[TestClient[Any, Any]]:
    """A client of the app, which is served as ``common.http.runtime`` serves it."""
    server = _Server(app)
    await server.start_server()
    plain = {"Accept-Encoding": "identity"}
    async with TestClient(server, auto_decompress=False, headers=plain) as client:
        yield client


def _app_keys(service: str) -> set[web.AppKey[Any]]:
    return {
        value
        for module in _modules(service)
        for value in vars(module).values()
        if isinstance(value, web.AppKey)
    }


def _modules(service: str) -> Iterator[object]:
    for name, module in list(sys.modules.items()):
        if name == service or name.startswith(f"{service}."):
            yield module
