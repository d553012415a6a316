"""Tells JSON's types apart where pydantic would let one pass for another.

Queries and forms know nothing but texts, so the models take ``"1"`` for 1 and ``true``. A
JSON body says what it means: there, ``"1"`` is a text, and ``true`` is no number.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel

from common.errors import FieldError

TRUTH = "This must be true or false."
NUMBER = "This must be a number."


def mistaken(model: BaseModel, values: object, pointer: str = "") -> Iterator[FieldError]:
    """The fields of a body that were valid only because their type was guessed.

    Args:
        model: What ``values`` were validated as.
        values: The JSON itself.
        pointer: Where it stands in the whole body.
    """
    if not isinstance(values, Mapping):
        return
    for name, alias in _doubtful(type(model)):
        key = alias if alias in values else name
        if key in values:
            yield from _compared(getattr(model, name), values[key], f"{pointer}/{key}")


def _compared(value: object, said: object, pointer: str) -> Iterator[FieldError]:
    if isinstance(value, BaseModel):
        yield from mistaken(value, said, pointer)
    elif isinstance(value, list) and isinstance(said, list):
        for number, (item, item_said) in enumerate(zip(value, said, strict=True)):
            yield from _compared(item, item_said, f"{pointer}/{number}")
    elif isinstance(value, bool):
        if not isinstance(said, bool):
            yield FieldError(pointer, TRUTH)
    elif isinstance(value, int | float) and (isinstance(said, bool | str)):
        yield FieldError(pointer, NUMBER)


@cache
def _doubtful(model: type[BaseModel]) -> tuple[tuple[str, str], ...]:
    """Name and alias of the fields that hold, somewhere, a number or a truth value."""
    return tuple(
        (name, field.alias or name)
        for name, field in model.model_fields.items()
        if _may_be_mistaken(field.annotation)
    )


def _may_be_mistaken(annotation: Any) -> bool:
    if isinstance(annotation, type) and annotation is not NoneType:
        if issubclass(annotation, BaseModel):
            return bool(_doubtful(annotation))
        return issubclass(annotation, int | float)
    return any(map(_may_be_mistaken, get_args(annotation)))
