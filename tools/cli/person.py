"""Who sits here, for what is kept of a person's decisions."""

import getpass


def person() -> str:
    """Who sits here, as the system knows them."""
    try:
        return getpass.getuser()[:100]
    except (KeyError, OSError):  # a user without a name, as in some containers
        return ""
