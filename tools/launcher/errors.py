"""What the launcher says when it can not go on."""


class LauncherError(Exception):
    """Something a person must change; the message says what happened and what to do."""
