"""Names of encodings that publishers and clients give to bodies without one."""

_NO_CODING = frozenset({"", "identity", "utf8", "ascii", "usascii", "7bit", "8bit", "binary"})
"""A character set is no coding, but many libraries write theirs there: JSON is UTF-8 anyway."""


def is_plain_text(coding: object) -> bool:
    """Whether a ``content_encoding`` or ``Content-Encoding`` says that nothing was encoded."""
    if isinstance(coding, bytes):
        coding = coding.decode("latin-1")
    if coding is None:
        return True
    if not isinstance(coding, str):
        return False
    return coding.strip().lower().replace("-", "").replace("_", "") in _NO_CODING
