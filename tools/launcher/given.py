"""What the environment names in place of a part of our own, and what goes with it."""

from collections.abc import Callable, Mapping

BELONGING: Mapping[str, tuple[str, ...]] = {
    "QUEUE_URL": ("QUEUE_MANAGEMENT_URL",),
    "DB_HOST": ("DB_PORT", "DB_NAME", "DB_USER", "DB_PASSWORD", "DB_SSL", "DB_SSL_CA"),
    "SMTP_HOST": ("SMTP_PORT", "SMTP_SECURE", "SMTP_USER", "SMTP_PASSWORD", "SMTP_CA_FILE"),
}
"""The variable that names a real part, to those that say more about it."""

OWN_PART = {
    "QUEUE_URL": "RabbitMQ",
    "DB_HOST": "PostgreSQL",
    "SMTP_HOST": "the mailbox",
}
"""What is started where the variable is not there."""


def is_given(given: Mapping[str, str], name: str) -> bool:
    """Whether the environment has a value, or names a file with it; an empty one is none."""
    return bool(given.get(name) or given.get(f"{name}_FILE"))


def drop_unused(given: Mapping[str, str], say: Callable[[str], None]) -> dict[str, str]:
    """The environment without empty addresses, and without what would mislead a part of our own.

    ``DB_PORT`` without ``DB_HOST`` is not the port of the PostgreSQL that is started here: it is
    left out, and said so.
    """
    kept = dict(given)
    for main, others in BELONGING.items():
        for name in (main, *others):
            for variable in (name, f"{name}_FILE"):
                if kept.get(variable) == "":
                    del kept[variable]
        if is_given(kept, main):
            continue
        unused = [v for name in others for v in (name, f"{name}_FILE") if kept.pop(v, None)]
        if unused:
            say(f"Not used: {', '.join(unused)}. Without {main}, {OWN_PART[main]} is started here.")
    return kept
