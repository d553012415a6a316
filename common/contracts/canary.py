"""The canary: a registration of our own that goes the whole way and leaves nothing behind.

Its id is the mark. The id travels with all that comes of a registration (messages, retries,
dead letters, rows, log lines), so nothing that belongs to a canary can lose its mark, and no
contract needs a field for it. Nobody outside chooses an id: the frontend makes them, of
version 4, from a secret.
"""

import secrets
from uuid import UUID

_MARK = int.from_bytes(b"canary") << 4 | 8
"""The first 52 bits: six letters, and version 8, which is free for such uses (RFC 9562, 5.8)."""

_REST_BITS = 76
_VARIANT = 0b10 << 62

FIRST_CANARY = UUID(int=_MARK << _REST_BITS)
LAST_CANARY = UUID(int=(_MARK + 1 << _REST_BITS) - 1)
"""In SQL: ``registration_id BETWEEN`` the two; a range of the primary key."""


def new_canary_id() -> UUID:
    """An id that marks a registration as a canary, different each time."""
    rest = secrets.randbits(_REST_BITS) & ~(0b11 << 62) | _VARIANT
    return UUID(int=_MARK << _REST_BITS | rest)


def is_canary(registration_id: UUID | None) -> bool:
    """Whether that registration, or what came of it, is a canary's."""
    return registration_id is not None and registration_id.int >> _REST_BITS == _MARK


def canary_address(canary_id: UUID) -> str:
    """An address that nobody has, and that nobody can know before: no user is in its way."""
    return f"canary-{canary_id.hex}@example.org"
