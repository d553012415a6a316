"""Operations: what an endpoint reads and answers, said once, checked and documented from there."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypedDict, TypeVar, Unpack

from aiohttp import web
from pydantic import BaseModel

from common.errors import UserStreamError
from common.http.validation import read_form, read_json, read_path, read_query, read_raw

Returns = Mapping[int, type[BaseModel] | str | None]
"""Status to what is answered: a model (as JSON), a content type, or nothing."""

Handler = TypeVar("Handler", bound=Callable[..., Awaitable[web.StreamResponse]])


class Options(TypedDict, total=False):
    """What an operation may declare."""

    path: type[BaseModel]
    """Reads the URL's placeholders; handed to the handler as ``path``."""

    query: type[BaseModel]
    """Reads the query; handed over as ``query``."""

    body: type[BaseModel]
    """Reads a JSON body; handed over as ``body``."""

    max_body_bytes: int
    """Largest body, where that is not the application's limit."""

    form: type[BaseModel]
    """Reads a form; handed over as ``form``."""

    raw: Mapping[str, str]
    """Reads a body that is neither: media type to its meaning; handed over as ``raw``, bytes."""

    html_form: type[BaseModel]
    """Documents a form that the handler reads itself, because it shows again what is wrong."""

    headers: Mapping[str, str]
    """Request headers that the handler reads itself, with their meaning."""

    raises: tuple[type[UserStreamError], ...]
    """Errors that are answered as problems, besides malformed and invalid requests."""

    summary: str
    """One line; without it, the first line of the handler's docstring."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method on one URL."""

    method: str
    url: str
    handler: Callable[..., Awaitable[web.StreamResponse]]
    returns: Returns
    options: Options

    @property
    def summary(self) -> str:
        """What it does, in one line."""
        first_line = (self.handler.__doc__ or "").strip().partition("\n")[0]
        return self.options.get("summary", first_line.rstrip("."))

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        """Validate what the operation declares, then call its handler with it."""
        arguments: dict[str, BaseModel | bytes] = {}
        if model := self.options.get("path"):
            arguments["path"] = read_path(request, model)
        if model := self.options.get("query"):
            arguments["query"] = read_query(request, model)
        limit = self.options.get("max_body_bytes")
        larger = request.clone(client_max_size=limit) if limit else request
        if model := self.options.get("body"):
            arguments["body"] = await read_json(larger, model)
        if media_types := self.options.get("raw"):
            arguments["raw"] = await read_raw(larger, media_types)
        if model := self.options.get("form"):
            arguments["form"] = await read_form(larger, model)
        return await self.handler(request, **arguments)


@dataclass(frozen=True, slots=True)
class Api:
    """The operations of one service."""

    operations: list[Operation] = field(default_factory=list)

    @classmethod
    def joined(cls, *parts: "Api") -> "Api":
        """The operations of several modules, in order."""
        return cls([operation for part in parts for operation in part.operations])

    def operation(
        self, method: str, url: str, returns: Returns, options: Options
    ) -> Callable[[Handler], Handler]:
        """Register the decorated handler for ``method`` on ``url``."""

        def register(handler: Handler) -> Handler:
            self.operations.append(
                Operation(method=method, url=url, handler=handler, returns=returns, options=options)
            )
            return handler

        return register

    def get(
        self, url: str, *, returns: Returns, **options: Unpack[Options]
    ) -> Callable[[Handler], Handler]:
        """Register the decorated handler for GET and HEAD."""
        return self.operation("GET", url, returns, options)

    def post(
        self, url: str, *, returns: Returns, **options: Unpack[Options]
    ) -> Callable[[Handler], Handler]:
        """Register the decorated handler for POST."""
        return self.operation("POST", url, returns, options)

    def put(
        self, url: str, *, returns: Returns, **options: Unpack[Options]
    ) -> Callable[[Handler], Handler]:
        """Register the decorated handler for PUT."""
        return self.operation("PUT", url, returns, options)

    def delete(
        self, url: str, *, returns: Returns, **options: Unpack[Options]
    ) -> Callable[[Handler], Handler]:
        """Register the decorated handler for DELETE."""
        return self.operation("DELETE", url, returns, options)

    def add_to(self, app: web.Application) -> None:
        """Put all operations on an application's router."""
        for operation in self.operations:
            app.router.add_route(operation.method, operation.url, operation.__call__)
            if operation.method == "GET":
                app.router.add_route("HEAD", operation.url, operation.__call__)
        for url in dict.fromkeys(operation.url for operation in self.operations):
            if "{" not in url:
                # Or another URL's placeholder would take the name: /users/{id} for /users/report.
                app.router.add_route("*", url, _refusing(self._methods(url)))

    def _methods(self, url: str) -> set[str]:
        methods = {operation.method for operation in self.operations if operation.url == url}
        return methods | {"HEAD"} if "GET" in methods else methods


def _refusing(methods: set[str]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def refuse(request: web.Request) -> web.StreamResponse:
        raise web.HTTPMethodNotAllowed(request.method, methods)

    return refuse


def answer(
    model: BaseModel, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """A model as a JSON answer."""
    return web.Response(
        status=status,
        body=model.model_dump_json(by_alias=True).encode(),
        content_type="application/json",
        headers=headers,
    )
