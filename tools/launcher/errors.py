"""What the launcher says when it cannot go on."""


class LauncherError(Exception):
    """Something a person must change; the message says what happened and what to do."""
