"""Reads and validates what comes in: path, query, JSON body, form."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import TypeVar
from urllib.parse import parse_qsl

from aiohttp import web
from multidict import MultiMapping
from pydantic import BaseModel, ValidationError

from common.contracts import strict_json
from common.contracts.encoding import is_plain_text
from common.errors import (
    FieldError,
    InvalidError,
    MalformedError,
    TooLargeError,
    TooSlowError,
    UnsupportedMediaTypeError,
    UserStreamError,
)

Model = TypeVar("Model", bound=BaseModel)

MAX_BODY_BYTES = 64 * 1024
"""Largest body that people and programs may send."""

BODY_SECONDS = 30.0
"""Longest time for a whole body to arrive; a slower client only holds a place."""

MAX_FORM_FIELDS = 100
"""Fields of a form; ours have four."""


def validate(model: type[Model], values: object, prefix: str = "/") -> Model:
    """The validated model; texts stand for numbers and truth values too.

    Raises:
        InvalidError: With one error per field, in plain words.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _invalid(error, prefix) from error


def validate_json(model: type[Model], raw: bytes) -> Model:
    """The model of a JSON text, where no value stands for one of another type.

    ``"1"``, ``true`` and ``1.0`` are not the integer 1. By JSON Schema the last one is: it is
    refused because floating-point numbers hold no large integer exactly.

    Raises:
        MalformedError: Not JSON.
        InvalidError: As ``validate``.
    """
    strict_json.loads(raw)
    try:
        return model.model_validate_json(raw, strict=True)
    except ValidationError as error:
        raise _invalid(error, "/") from error


def read_path(request: web.Request, model: type[Model]) -> Model:
    """The path's placeholders as a model.

    Raises:
        InvalidError: Most often the link was copied in part.
    """
    try:
        return validate(model, _by_alias(model, request.match_info), prefix="")
    except InvalidError as error:
        named = ", ".join(item.pointer for item in error.errors)
        detail = f"{named} in the address is not valid. Check that it was copied whole."
        raise InvalidError(detail, errors=error.errors) from error


def read_query(request: web.Request, model: type[Model]) -> Model:
    """The query as a model; a parameter that comes twice is refused."""
    return validate(model, _single(request.query), prefix="")


async def read_json(request: web.Request, model: type[Model]) -> Model:
    """The JSON body as a model.

    Raises:
        UnsupportedMediaTypeError: Compressed, or not said to be JSON.
        TooLargeError: More than the limit.
        TooSlowError: It did not arrive in time.
        MalformedError: Not JSON.
        InvalidError: A value breaks a rule.
    """
    media_type = request.content_type
    # Not without the header: a page of another site may send that without asking first.
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise UnsupportedMediaTypeError("Send JSON with the header Content-Type: application/json.")
    return validate_json(model, await read_bytes(request))


async def read_raw(request: web.Request, media_types: Iterable[str]) -> bytes:
    """The bytes of a body of one of these types.

    Raises:
        UnsupportedMediaTypeError: Compressed, or of another type.
        TooLargeError, TooSlowError: As ``read_json``.
    """
    if "Content-Type" not in request.headers or request.content_type not in media_types:
        raise UnsupportedMediaTypeError(f"Send it as {' or '.join(media_types)}.")
    return await read_bytes(request)


async def read_form(request: web.Request, model: type[Model]) -> Model:
    """A form (application/x-www-form-urlencoded) as a model."""
    return validate(model, await read_form_fields(request))


async def read_form_fields(request: web.Request) -> dict[str, str]:
    """The fields of a form as they were typed, not yet validated."""
    if request.content_type != "application/x-www-form-urlencoded":
        raise UnsupportedMediaTypeError("Send the form as application/x-www-form-urlencoded.")
    try:
        pairs = parse_qsl(
            (await read_bytes(request)).decode("utf-8"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=MAX_FORM_FIELDS,
        )
    except ValueError as error:
        raise MalformedError("The form cannot be read.") from error
    if len(dict(pairs)) != len(pairs):
        raise MalformedError("A field of the form comes twice.")
    return dict(pairs)


async def read_bytes(request: web.Request) -> bytes:
    """The body; never decompressed, so a small bomb stays small."""
    if not is_plain_text(request.headers.get("Content-Encoding")):
        raise UnsupportedMediaTypeError("Compressed bodies are not read here.")
    if (request.content_length or 0) > request.client_max_size:
        raise TooLargeError(f"At most {request.client_max_size} bytes are read here.")
    try:
        if request.content.is_eof():  # nearly always: it came with the head
            return await request.read()
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except TimeoutError as error:
        raise TooSlowError(
            f"The body did not arrive within {BODY_SECONDS:g} s. Nothing was done; send it again."
        ) from error
    except web.HTTPRequestEntityTooLarge as error:
        raise TooLargeError(f"At most {request.client_max_size} bytes are read here.") from error


def _by_alias(model: type[BaseModel], values: Mapping[str, str]) -> dict[str, str]:
    names = {name: field.alias or name for name, field in model.model_fields.items()}
    return {names.get(name, name): value for name, value in values.items()}


def _single(values: MultiMapping[str]) -> dict[str, str]:
    repeated = [name for name in dict.fromkeys(values) if len(values.getall(name)) > 1]
    if repeated:
        errors = tuple(FieldError(name, "Give this parameter once.") for name in repeated)
        raise InvalidError(_summary(errors), errors=errors)
    return dict(values)


def _invalid(error: ValidationError, prefix: str) -> UserStreamError:
    items = error.errors(include_url=False, include_input=False)
    if items[0]["type"] == "json_invalid":  # all else was refused before
        return MalformedError("The JSON nests too deep.")
    errors = tuple(_field_error(dict(item), prefix) for item in items)
    return InvalidError(_summary(errors), errors=errors)


def _summary(errors: tuple[FieldError, ...]) -> str:
    named = ", ".join(error.pointer or "/" for error in errors[:5])
    return f"Invalid fields: {named}. Correct them and retry."


def _field_error(item: dict[str, object], prefix: str) -> FieldError:
    location = item["loc"]
    parts = [str(part) for part in location] if isinstance(location, tuple) else []
    escaped = "/".join(part.replace("~", "~0").replace("/", "~1") for part in parts)
    return FieldError((prefix + escaped) if parts else "", _in_plain_words(item))


WHOLE_NUMBER = "This must be a whole number, without a decimal point."

_WORDS = {
    "missing": "This field is required.",
    "string_too_short": "This field is required.",
    "string_too_long": "Use at most {max_length} characters.",
    "extra_forbidden": "There is no such field.",
    "string_type": "This must be text.",
    "string_unicode": "This must be text.",
    "int_type": WHOLE_NUMBER,
    "float_type": "This must be a number.",
    "bool_type": "This must be true or false.",
    "model_type": "This must be a JSON object.",
    "model_attributes_type": "This must be a JSON object.",
    "value_error": "{error}",
}
"""Our words for pydantic's error types; for the others its own do."""


def _in_plain_words(item: dict[str, object]) -> str:
    context = item.get("ctx")
    limits = context if isinstance(context, dict) else {}
    return (
        words.format_map(limits) if (words := _WORDS.get(str(item["type"]))) else f"{item['msg']}."
    )
