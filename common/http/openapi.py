"""The OpenAPI 3.1 document of a service, made from the models that validate."""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from common.errors import (
    CrossSiteError,
    InvalidError,
    MalformedError,
    TooLargeError,
    TooSlowError,
    UnsupportedMediaTypeError,
    UserStreamError,
)
from common.http.access import SAFE_METHODS
from common.http.api import Api, Operation

_REF = "#/components/schemas/{model}"
_READS_A_BODY = (
    MalformedError,
    TooSlowError,
    TooLargeError,
    UnsupportedMediaTypeError,
    InvalidError,
)
"""What can be wrong with a body; last, what its values can be."""

STRICT_JSON = 'No value stands for one of another type: 1 is an integer, `1.0` and `"1"` are not.'
"""Of every JSON body; JSON Schema cannot express that ``1.0`` is refused."""

PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "A problem (RFC 9457): what happened and what to do.",
    "required": ["type", "title", "status", "detail", "code", "requestId"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string", "description": "Stable; for programs."},
        "requestId": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {"pointer": {"type": "string"}, "detail": {"type": "string"}},
            },
        },
    },
}

Mode = Literal["validation", "serialization"]


def openapi(title: str, description: str, version: str, api: Api) -> dict[str, Any]:
    """The document; valid by the OpenAPI 3.1 schema."""
    schemas, definitions = models_json_schema(
        list(_models(api.operations)), by_alias=True, ref_template=_REF
    )
    paths: dict[str, dict[str, Any]] = {}
    for operation in api.operations:
        entry = _operation(operation, {key: dict(value) for key, value in schemas.items()})
        paths.setdefault(operation.url, {})[operation.method.lower()] = entry
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "description": description, "version": version},
        "paths": paths,
        "components": {"schemas": {**definitions.get("$defs", {}), "Problem": PROBLEM_SCHEMA}},
    }


def _models(operations: Iterable[Operation]) -> Iterable[tuple[type[BaseModel], Mode]]:
    seen: set[tuple[type[BaseModel], Mode]] = set()
    for operation in operations:
        options = operation.options
        # Not path and query: their fields are written out as parameters.
        for model in (options.get(key) for key in ("body", "form", "html_form")):
            if isinstance(model, type) and issubclass(model, BaseModel):
                seen.add((model, "validation"))
        for model in operation.returns.values():
            if isinstance(model, type):
                seen.add((model, "serialization"))
    return sorted(seen, key=lambda pair: (pair[0].__name__, pair[1]))


def _operation(operation: Operation, schemas: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    options = operation.options
    entry: dict[str, Any] = {
        "operationId": operation.handler.__name__,
        "tags": [_tag(operation.url)],
        "summary": operation.summary.replace("``", "`"),
        "parameters": _parameters(operation),
        "responses": _responses(operation, schemas),
    }
    for kind, media_type in (
        ("body", "application/json"),
        ("form", "application/x-www-form-urlencoded"),
        ("html_form", "application/x-www-form-urlencoded"),
    ):
        if model := options.get(kind):
            content = {"schema": schemas[model, "validation"], **_example(model)}
            entry["requestBody"] = {"required": True, "content": {media_type: content}}
            if kind == "body":
                entry["requestBody"]["description"] = STRICT_JSON
    if raw := options.get("raw"):
        # No schema: JSON Schema says nothing about bytes (OpenAPI 3.1, 4.8.14.1).
        content = {media_type: {"schema": {"description": raw[media_type]}} for media_type in raw}
        entry["requestBody"] = {"required": True, "content": content}
    return entry


def _example(model: object) -> dict[str, Any]:
    """The model's sample; without one, pages make something up from the patterns."""
    sample = getattr(model, "sample", None)
    return {"example": dict(sample)} if sample else {}


def _tag(url: str) -> str:
    """Groups operations by the thing they are about: ``/api/users/…`` is about users."""
    parts = [part for part in url.strip("/").split("/") if part != "api"]
    return parts[0] or "pages"


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = []
    for kind in ("path", "query"):
        model = operation.options.get(kind)
        if isinstance(model, type) and issubclass(model, BaseModel):
            parameters += _fields(model, kind, operation.url)
    for name, meaning in operation.options.get("headers", {}).items():
        schema = {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[!-~]+$"}
        parameters.append({"name": name, "in": "header", "description": meaning, "schema": schema})
    return parameters


def _fields(model: type[BaseModel], kind: str, url: str) -> list[dict[str, Any]]:
    # Inline: a parameter cannot be one schema of several names.
    schema = model.model_json_schema(by_alias=True, ref_template="#/$defs/{model}")
    inlined = _inline(schema["properties"], schema.get("$defs", {}))
    names = {field.alias or name: name for name, field in model.model_fields.items()}
    required = set(schema.get("required", ()))
    return [
        {
            "name": names[alias] if kind == "path" else alias,
            "in": kind,
            "required": kind == "path" or alias in required,
            "schema": properties,
        }
        for alias, properties in inlined.items()
        if kind == "query" or f"{{{names[alias]}" in url
    ]


def _inline(value: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        if reference := value.get("$ref"):
            rest = {key: item for key, item in value.items() if key != "$ref"}
            return {**_inline(definitions[reference.rsplit("/", 1)[1]], definitions), **rest}
        return {key: _inline(item, definitions) for key, item in value.items()}
    return [_inline(item, definitions) for item in value] if isinstance(value, list) else value


def _responses(operation: Operation, schemas: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, model in operation.returns.items():
        responses[str(status)] = {"description": _phrase(status), **_content(model, schemas)}
    for error in _errors(operation):
        known = responses.setdefault(str(error.http_status), {"description": ""})
        known["description"] = f"{known['description']} {error.title} (`{error.code}`).".strip()
        known["content"] = {
            "application/problem+json": {"schema": {"$ref": _REF.format(model="Problem")}}
        }
    return responses


def _errors(operation: Operation) -> Iterable[type[UserStreamError]]:
    options = operation.options
    implied: tuple[type[UserStreamError], ...] = ()
    if "body" in options or "form" in options or "raw" in options:
        implied = _READS_A_BODY
    elif "html_form" in options:
        implied = _READS_A_BODY[:-1]  # what is not valid is shown again
    elif "path" in options or "query" in options:
        implied = (InvalidError,)
    if operation.method not in SAFE_METHODS:
        implied = (*implied, CrossSiteError)
    return dict.fromkeys((*implied, *options.get("raises", ())))


def _content(model: type[BaseModel] | str | None, schemas: dict[Any, dict[str, Any]]) -> Any:
    if model is None:
        return {}
    if isinstance(model, str):
        # Of a stream the schema would be that of each event.
        schema = {} if model == "text/event-stream" else {"schema": {"type": "string"}}
        return {"content": {model: schema}}
    return {"content": {"application/json": {"schema": schemas[model, "serialization"]}}}


def _phrase(status: int) -> str:
    phrases = {200: "Here it is.", 201: "Created.", 202: "Accepted and safe.", 204: "Done."}
    return phrases.get(status, "Answered.")
