"""Pages of a service: its templates rendered, and what they need beside their HTML served."""

import hashlib
from datetime import UTC, datetime
from functools import cached_property
from http import HTTPStatus
from importlib import resources
from pathlib import Path

from aiohttp import hdrs, web
from jinja2 import Environment, PackageLoader, StrictUndefined

FOR_EVER = "public, max-age=31536000, immutable"


class Pages:
    """The folders ``templates/`` and ``static/`` of a package; read when first needed."""

    def __init__(self, package: str) -> None:
        self._package = package
        self._assets: dict[str, str] = {}

    def render(self, template: str, **context: object) -> str:
        """A template filled in; what a person typed is escaped, what is missing raises."""
        return self._environment.get_template(template).render(context)

    def asset(self, name: str) -> str:
        """The URL of a static file; it changes with the content, so caches may keep it for ever."""
        if name not in self._assets:
            digest = hashlib.sha256(self._files[name].read_bytes()).hexdigest()
            self._assets[name] = f"/static/{name}?v={digest[:12]}"
        return self._assets[name]

    def add_to(self, app: web.Application) -> None:
        """Serve the static files."""
        app.router.add_get("/static/{name}", self._static_file)
        app.on_response_prepare.append(self._keep_whole_files)

    async def _static_file(self, request: web.Request) -> web.StreamResponse:
        """The file of that name.

        Not aiohttp's static route: that one asks the file system for whatever is in the URL, and
        fails on a name that is too long.
        """
        name = request.match_info["name"]
        if name not in self._files:
            raise web.HTTPNotFound
        return web.FileResponse(self._files[name])

    async def _keep_whole_files(self, request: web.Request, response: web.StreamResponse) -> None:
        """Let browsers keep a file for ever; a refusal under its address they may not keep."""
        if isinstance(response, web.FileResponse) and response.status == HTTPStatus.OK:
            name = request.match_info.get("name", "")  # or a file of another page
            if name in self._files and request.raw_path == self.asset(name):
                response.headers[hdrs.CACHE_CONTROL] = FOR_EVER

    @cached_property
    def _files(self) -> dict[str, Path]:
        directory = Path(str(resources.files(self._package) / "static"))
        return {path.name: path for path in directory.iterdir() if path.is_file()}

    @cached_property
    def _environment(self) -> Environment:
        environment = Environment(
            loader=PackageLoader(self._package),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.globals["asset"] = self.asset
        environment.filters["in_utc"] = _in_utc
        return environment


def _in_utc(moment: datetime | str) -> str:
    """A time for people; what is no time stays as it is."""
    if isinstance(moment, str):
        try:
            return _in_utc(datetime.fromisoformat(moment))
        except ValueError:
            return moment or "not known"
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return aware.astimezone(UTC).strftime("%-d %B %Y, %H:%M:%S UTC")
