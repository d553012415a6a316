"""The canary: a synthetic registration that goes end to end and leaves nothing behind.

Its id marks it. The id travels with everything that follows from a registration (messages,
retries, dead letters, rows, log lines), so nothing of a canary can lose the mark, and no contract
needs a field for it. Clients cannot choose an id: the frontend makes them, of version 4, from a
secret.
"""

import secrets
from uuid import UUID

_MARK = int.from_bytes(b"canary") << 4 | 8
"""The first 52 bits: six ASCII characters, and version 8, free for such uses (RFC 9562, 5.8)."""

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
    """An address that no user has or can guess, so that none is in its way."""
    return f"canary-{canary_id.hex}@example.org"
