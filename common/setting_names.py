"""Finds misspelt settings, which no service reads. Standard library only."""

import re
from collections.abc import Collection, Iterable
from difflib import get_close_matches

LIKENESS = 0.84
"""How like a setting's name another one is taken for its misspelling (``difflib``'s ratio)."""

FAMILIES = ("SMTP_", "DB_", "QUEUE_", "CSV_", "LEDGER_", "CANARY_", "CORS_", "MAILCATCHER_")
"""Beginnings that are ours wherever a setting of ours has them."""

_OF_KUBERNETES = re.compile(r"\w+_(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP)(_\w+)?)")
"""What Kubernetes sets for each service of a namespace."""


def misspelt(given: Iterable[str], known: Collection[str]) -> dict[str, str]:
    """Names in ``given`` that look like settings and are none; each with the one it is like.

    Args:
        given: Names of variables, of any program.
        known: All that are read, in capitals; each may have ``_FILE`` behind it.
    """
    families = tuple(start for start in FAMILIES if any(name.startswith(start) for name in known))
    found = {}
    for variable in sorted(set(given)):
        name = variable.upper().removesuffix("_FILE")
        if name in known or variable.upper() in known or _OF_KUBERNETES.fullmatch(name):
            continue
        like = get_close_matches(name, known, n=1, cutoff=LIKENESS)
        if like or name.startswith(families):
            found[variable] = like[0] if like else ""
    return found
