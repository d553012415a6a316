"""Lets the AMQP codec read what other programs may put into a message's properties.

pamqp (up to 4.x) raises on a short string that is not UTF-8, on a timestamp beyond the year
9999 and on a header name that is not UTF-8. aiormq then closes the connection; the broker
delivers the message again, and so one message of a careless program stops every consumer
of its queue until the broker's delivery limit throws out the innocent with it. Read as
below, the message reaches the dispatcher, which knows what to do with it.
"""

from pamqp import decode
from pamqp.common import FieldTable, FieldValue


def install() -> None:
    """Put the tolerant readers into pamqp's tables; once is enough, twice does no harm."""
    decode.METHODS["shortstr"] = short_text
    decode.METHODS["timestamp"] = decode.TABLE_MAPPING[b"T"] = timestamp
    decode.METHODS["table"] = decode.TABLE_MAPPING[b"F"] = table


def short_text(value: bytes) -> tuple[int, str]:
    """One byte of length, then text; other bytes as escapes, so that ids stay distinct."""
    end = 1 + value[0]
    return end, value[1:end].decode("utf-8", "backslashreplace")


def timestamp(value: bytes) -> tuple[int, FieldValue]:
    """Eight bytes; nothing where they are no date."""
    try:
        return decode.timestamp(value)
    except (ValueError, OverflowError, OSError):
        return 8, None


def table(value: bytes) -> tuple[int, FieldTable]:
    """Four bytes of length, then pairs; empty where they cannot be read."""
    try:
        return decode.field_table(value)
    except (ValueError, OverflowError, RecursionError):
        return 4 + int.from_bytes(value[:4], "big"), {}
