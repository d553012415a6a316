"""The header ``Idempotency-Key``: what is sent again under the same one is done once."""

import re

from aiohttp import web

from common.errors import FieldError, InvalidError

IDEMPOTENCY_KEY = "Idempotency-Key"

_VALID_KEY = re.compile(r"[!-~]{1,200}")


def is_valid_key(key: str) -> bool:
    """Whether it is 1 to 200 printable ASCII characters without spaces."""
    return _VALID_KEY.fullmatch(key) is not None


def idempotency_key(request: web.Request) -> str | None:
    """The request's key, if it has one.

    Raises:
        InvalidError: It is empty, too long or not printable.
    """
    key = request.headers.get(IDEMPOTENCY_KEY)
    if key is None or is_valid_key(key):
        return key
    detail = "Use 1 to 200 printable ASCII characters without spaces."
    raise InvalidError(
        f"{IDEMPOTENCY_KEY}: {detail}", errors=(FieldError(IDEMPOTENCY_KEY, detail),)
    )
